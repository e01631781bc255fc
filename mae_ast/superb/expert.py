"""Each system as an upstream of s3prl: waveforms, a list of (L,), -> hidden states (B, T', C * D).

A vector is a column of C patches (8 for 16 x 16 patches, 12 where they overlap as AST's, 1 for
frames), and one comes every 160 * s samples, s the patches' stride along time.
"""

from __future__ import annotations

import os
from typing import Any

import torch
from s3prl.upstream.interfaces import UpstreamBase
from torch import Tensor

from mae_ast import load
from mae_ast.core.encoder import encoder_only, last_hidden_state
from mae_ast.core.fbank import FRAME_SHIFT, num_frames
from mae_ast.core.features import OVERLAP_S, WINDOW_S
from mae_ast.core.windows import Part, Window, states_of_parts, window_columns, windows


class UpstreamExpert(UpstreamBase):  # type: ignore[misc]
    """The encoder of a checkpoint, for features or for fine-tuning.

    In training too, the input is normalised by the checkpoint's statistics, which never move, and
    no layer is dropped: a clip's features do not depend on its batch, and layer i is layer i.

    A clip goes through as a whole. Only models that cut or fill up their input to ``input_frames``
    get longer clips in windows that overlap: their vectors are the time steps of
    :func:`mae_ast.core.features.extract_features`.

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
        return FRAME_SHIFT * self.patch_shape.time_stride

    def forward(self, wavs: list[Tensor]) -> dict[str, list[Tensor] | Tensor]:
        """Compute the features of some clips.

        Args:
            wavs: B clips, each (L,) float in [-1, 1] at 16 kHz.

        Returns:
            ``hidden_states``: per layer (B, T', C * D), T' = ``len(range(0, longest L, rate))``.
            A clip has 1 to 4 vectors fewer than that alone, and fewer still in a longer batch: its
            last one is repeated, so that s3prl, which counts in rates, never takes padding.
            ``last_hidden_state``: the encoder's output, which is the last of them; of pre-norm
            layers, after the stack's layer norm.

        Raises:
            ValueError: a clip is shorter than one column of patches.
        """
        lengths = self._lengths(wavs)
        own = [self.patch_shape.grid(num_frames(length))[0] for length in lengths]
        parts = self._parts(own)
        states = states_of_parts(self.model, wavs, parts)

        count = len(range(0, max(lengths), self.get_downsample_rates()))
        row, column = (torch.zeros(len(wavs), count, dtype=torch.int64) for _ in range(2))
        for number, part in enumerate(parts):
            w = part.window
            row[part.clip, w.keep_from : w.keep_to] = number
            column[part.clip, w.keep_from : w.keep_to] = torch.arange(w.keep_from, w.keep_to)
            column[part.clip, w.keep_from : w.keep_to] -= w.start
        last_own = torch.arange(count).minimum(torch.tensor(own)[:, None] - 1)
        row, column = (place.gather(1, last_own).to(states[0].device) for place in (row, column))

        hidden = [self._columns(state)[row, column] for state in states]
        last = self._columns(last_hidden_state(self.model, states))[row, column]
        return {"hidden_states": hidden, "last_hidden_state": last}

    def _parts(self, own: list[int]) -> list[Part]:
        """Clips of so many columns as the model takes them."""
        if self.model.config.input_frames is None:
            return [Part(clip, Window(0, n, 0, n)) for clip, n in enumerate(own)]
        length, overlap = window_columns(self.model, WINDOW_S, OVERLAP_S)
        return [Part(clip, w) for clip, n in enumerate(own) for w in windows(n, length, overlap)]

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
