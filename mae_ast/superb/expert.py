"""MAE-AST as an upstream of s3prl: waveforms, a list of (L,), -> hidden states (B, T', C * D).

A vector is a column of C patches (8 for 16 x 16 patches, 1 for frames), p_t frames wide, so that
one comes every 160 * p_t samples.
"""

from __future__ import annotations

import os
from typing import Any

import torch
from s3prl.upstream.interfaces import UpstreamBase
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from mae_ast import load
from mae_ast.core.encoder import encoder_only, last_hidden_state
from mae_ast.core.fbank import FRAME_SHIFT, num_frames_of


class UpstreamExpert(UpstreamBase):  # type: ignore[misc]
    """The encoder of a checkpoint, for features or for fine-tuning.

    In training too, the input is normalised by the checkpoint's statistics, which never move, and
    no layer is dropped: a clip's features do not depend on its batch, and layer i is layer i.

    Args:
        ckpt: the checkpoint's path, or whatever else :func:`mae_ast.load` takes.
        kwargs: for s3prl's base class.
    """

    def __init__(self, ckpt: str | os.PathLike[str], **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.model = encoder_only(load(ckpt))
        self.patch_shape = self.model.patch_shape

    def get_downsample_rates(self, key: str | None = None) -> int:
        """Samples from one vector to the next, whatever the ``key``."""
        return FRAME_SHIFT * self.patch_shape.time

    def forward(self, wavs: list[Tensor]) -> dict[str, list[Tensor] | Tensor]:
        """Compute the features of some clips.

        Args:
            wavs: B clips, each (L,) float in [-1, 1] at 16 kHz.

        Returns:
            ``hidden_states``: per layer (B, T', C * D), T' = ``len(range(0, longest L, rate))``.
            A clip has 1 or 2 vectors fewer than that alone, and fewer still in a longer batch: its
            last one is repeated, so that s3prl, which counts in rates, never takes padding.
            ``last_hidden_state``: the encoder's output, which is the last of them; of pre-norm
            layers, after the stack's layer norm.

        Raises:
            ValueError: a clip is shorter than one column of patches.
        """
        lengths = self._lengths(wavs)
        longest = max(lengths)
        source = pad_sequence(wavs, batch_first=True)
        num_samples = torch.tensor(lengths, device=source.device)
        # Attention is faster without a mask.
        padded = num_samples if min(lengths) < longest else None
        states = self.model.hidden_states(source, padded)

        own = num_frames_of(num_samples) // self.patch_shape.time
        wanted = torch.arange(0, longest, self.get_downsample_rates(), device=source.device)
        column = torch.arange(len(wanted), device=source.device).minimum(own[:, None] - 1)
        clip = torch.arange(len(wavs), device=source.device)[:, None]
        hidden = [self._columns(state)[clip, column] for state in states]
        last = self._columns(last_hidden_state(self.model, states))[clip, column]
        return {"hidden_states": hidden, "last_hidden_state": last}

    def _columns(self, tokens: Tensor) -> Tensor:
        """(B, N, D) -> (B, N / C, C * D)."""
        batch, _, width = tokens.shape
        return tokens.reshape(batch, -1, self.patch_shape.per_column * width)

    def _lengths(self, wavs: list[Tensor]) -> list[int]:
        least = self.patch_shape.min_samples
        for index, wav in enumerate(wavs):
            if wav.ndim != 1:
                raise ValueError(f"clip {index} has shape {tuple(wav.shape)}; (samples,) is wanted")
            if len(wav) < least:
                raise ValueError(
                    f"clip {index} has {len(wav)} samples; this model needs at least {least} "
                    f"({least / 16:g} ms at 16 kHz)"
                )
        return [len(wav) for wav in wavs]
