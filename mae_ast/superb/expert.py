"""Each system as an upstream of s3prl: waveforms, a list of (L,), -> hidden states (B, T', W).

Two layouts of a time step's C tokens (8 for 16 x 16 patches, 12 with AST's overlap, 1 for frames):

    time_steps   side by side in one vector, W = C * D, one every 160 * s samples, s the stride of
                 the patches along time: s3prl's own upstream
    tokens       one after the other, lowest mel first, W = D, one every 160 * s / C samples: the
                 upstream of MAE-AST's authors, with which the paper's SUPERB scores were measured
"""

from __future__ import annotations

import logging
import os
from typing import Any

import torch
from s3prl.upstream.interfaces import UpstreamBase
from torch import Tensor
from torch.nn import functional as F

from mae_ast import load
from mae_ast.core.frontend.fbank import FRAME_SHIFT, num_frames
from mae_ast.core.inference.features import OVERLAP_S, WINDOW_S
from mae_ast.core.inference.windows import Part, Window, states_of_parts, window_columns, windows
from mae_ast.core.models.encoder import encoder_only, last_hidden_state

TIME_STEPS, TOKENS = "time_steps", "tokens"
LAYOUTS = (TIME_STEPS, TOKENS)

logger = logging.getLogger(__name__)


class UpstreamExpert(UpstreamBase):  # type: ignore[misc]
    """The encoder of a checkpoint, for features or for fine-tuning.

    In training too, the input is normalised by the checkpoint's fixed statistics, and no layer is
    dropped: a clip's features do not depend on its batch, and layer indices are stable.

    A clip is processed as a whole. Only models that cut or zero-pad their input to ``input_frames``
    process longer clips in overlapping windows: their vectors are the time steps of
    :func:`mae_ast.core.inference.features.extract_features`.

    A clip shorter than one patch is zero-padded to one, which is logged once.

    Args:
        ckpt: the checkpoint's path, or whatever else :func:`mae_ast.load` takes.
        layout: ``time_steps`` or ``tokens``.
        kwargs: for s3prl's base class.

    Raises:
        ValueError: there is no such layout, or tokens of this model do not start at whole samples.
    """

    def __init__(
        self, ckpt: str | os.PathLike[str], layout: str = TIME_STEPS, **kwargs: Any
    ) -> None:
        super().__init__(**kwargs)
        if layout not in LAYOUTS:
            raise ValueError(f"layout {layout!r}; it is one of {', '.join(LAYOUTS)}")
        self.model = encoder_only(load(ckpt))
        self.patch_shape = self.model.patch_shape
        self._per_step = self.patch_shape.per_column if layout == TOKENS else 1
        samples = FRAME_SHIFT * self.patch_shape.time_stride
        if samples % self._per_step:
            raise ValueError(
                f"layout {layout!r}: {self._per_step} tokens for {samples} samples have no whole "
                f"number of samples each; this model has layout {TIME_STEPS!r} only"
            )
        self._rate = samples // self._per_step
        self._has_padded = False

    def get_downsample_rates(self, key: str | None = None) -> int:
        """Samples from one vector to the next, whatever the ``key``."""
        return self._rate

    def forward(self, wavs: list[Tensor]) -> dict[str, list[Tensor] | Tensor]:
        """Compute the features of some clips.

        Args:
            wavs: B clips, each (L,) float in [-1, 1] at 16 kHz.

        Returns:
            ``hidden_states``: per layer (B, T', W), T' = ``len(range(0, longest L, rate))``.
            A clip has 1 to 4 time steps fewer than that alone, and fewer still in a longer batch:
            its last vector is repeated, so that s3prl, which counts in rates, never takes padding.
            ``last_hidden_state``: the encoder's output, which is the last of them; of pre-norm
            layers, after the stack's layer norm.

        Raises:
            ValueError: a clip is not (L,), or has no samples.
        """
        clips = self._padded(wavs)
        count = len(range(0, max(map(len, wavs)), self._rate))
        own = [self.patch_shape.grid(num_frames(len(clip)))[0] for clip in clips]
        parts = self._parts(own)
        states = states_of_parts(self.model, clips, parts)
        row, place = self._places(parts, own, count)
        row, place = row.to(states[0].device), place.to(states[0].device)
        hidden = [self._vectors(state)[row, place] for state in states]
        last = self._vectors(last_hidden_state(self.model, states))[row, place]
        return {"hidden_states": hidden, "last_hidden_state": last}

    def _places(self, parts: list[Part], own: list[int], count: int) -> tuple[Tensor, Tensor]:
        """For each clip's vectors (B, count), the part that has it, and its place in that part."""
        size = max(count, max(own) * self._per_step)
        row, place = (torch.zeros(len(own), size, dtype=torch.int64) for _ in range(2))
        for number, part in enumerate(parts):
            w = part.window
            kept = slice(w.keep_from * self._per_step, w.keep_to * self._per_step)
            row[part.clip, kept] = number
            place[part.clip, kept] = torch.arange(kept.start, kept.stop) - w.start * self._per_step
        last_own = torch.tensor(own)[:, None] * self._per_step - 1
        index = torch.arange(count).minimum(last_own)
        return row.gather(1, index), place.gather(1, index)

    def _parts(self, own: list[int]) -> list[Part]:
        """Clips of so many columns as the model takes them."""
        if self.model.config.input_frames is None:
            return [Part(clip, Window(0, n, 0, n)) for clip, n in enumerate(own)]
        length, overlap = window_columns(self.model, WINDOW_S, OVERLAP_S)
        return [Part(clip, w) for clip, n in enumerate(own) for w in windows(n, length, overlap)]

    def _vectors(self, tokens: Tensor) -> Tensor:
        """(B, N, D) -> (B, T', W)."""
        batch, _, width = tokens.shape
        return tokens.reshape(batch, -1, self.patch_shape.per_column // self._per_step * width)

    def _padded(self, wavs: list[Tensor]) -> list[Tensor]:
        """Zero-pad clips shorter than one patch."""
        least = self.patch_shape.min_samples
        for index, wav in enumerate(wavs):
            if wav.ndim != 1 or not len(wav):
                raise ValueError(f"clip {index} has shape {tuple(wav.shape)}; (samples,) is wanted")
            if len(wav) < least and not self._has_padded:
                self._has_padded = True
                logger.warning(
                    "clip %d of a batch has %d samples; clips below one patch (%d samples, %g ms "
                    "at 16 kHz) are zero-padded to it",
                    *(index, len(wav), least, least / 16),
                )
        return [F.pad(wav, (0, max(0, least - len(wav)))) for wav in wavs]
