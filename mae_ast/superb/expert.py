"""s3prl upstream of each system: waveforms, a list of (L,), to hidden states (B, T', W).

A time step has C tokens (8 for 16 x 16 patches, 12 with AST's overlap, 1 for frames), in one of two
layouts:

    time_steps   concatenated into one vector, W = C * D, every 160 * s samples, where s is the
                 stride of the patches along time: the layout of s3prl's own upstream
    tokens       one vector per token, lowest mel first, W = D, every 160 * s / C samples: the
                 layout of MAE-AST's authors, used for the SUPERB scores of the paper
"""

from __future__ import annotations

import logging
import os
from typing import Any

import torch
from s3prl.upstream.interfaces import UpstreamBase
from torch import Tensor
from torch.nn import functional as F

from mae_ast.core.frontend.fbank import FRAME_SHIFT, num_frames
from mae_ast.core.inference.features import OVERLAP_S, WINDOW_S
from mae_ast.core.inference.windows import Part, Window, states_of_parts, window_columns, windows
from mae_ast.hub.load import load_encoder

TIME_STEPS, TOKENS = "time_steps", "tokens"
LAYOUTS = (TIME_STEPS, TOKENS)

logger = logging.getLogger(__name__)


class UpstreamExpert(UpstreamBase):  # type: ignore[misc]
    """Encoder of a checkpoint, for feature extraction or fine-tuning.

    In train mode, too, the input is normalised by the checkpoint's fixed statistics and layerdrop
    is off: a clip's features do not depend on its batch, and layer indices are stable.

    A clip is processed as a whole. Only models that cut or zero-pad their input to ``input_frames``
    process longer clips in overlapping windows: their vectors are the time steps of
    :func:`mae_ast.core.inference.features.extract_features`.

    A clip shorter than one patch is zero-padded to one, which is logged once.

    Args:
        ckpt: path of the checkpoint, or another argument of :func:`mae_ast.load`.
        layout: ``time_steps`` or ``tokens``.
        kwargs: arguments of s3prl's base class.

    Raises:
        ValueError: the layout does not exist, or the model's tokens are not a whole number of
            samples apart.
    """

    def __init__(
        self, ckpt: str | os.PathLike[str], layout: str = TIME_STEPS, **kwargs: Any
    ) -> None:
        super().__init__(**kwargs)
        if layout not in LAYOUTS:
            raise ValueError(f"layout {layout!r}: choose from {', '.join(LAYOUTS)}")
        self.model = load_encoder(ckpt)
        self.patch_shape = self.model.patch_shape
        self._per_step = self.patch_shape.per_column if layout == TOKENS else 1
        samples = FRAME_SHIFT * self.patch_shape.time_stride
        if samples % self._per_step:
            raise ValueError(
                f"layout {layout!r}: {self._per_step} tokens per {samples} samples are not a whole "
                f"number of samples apart; this model supports layout {TIME_STEPS!r} only"
            )
        self._rate = samples // self._per_step
        self._has_padded = False

    def get_downsample_rates(self, key: str | None = None) -> int:
        """Return the number of samples between two vectors, the same for every ``key``."""
        return self._rate

    def forward(self, wavs: list[Tensor]) -> dict[str, list[Tensor] | Tensor]:
        """Compute the features of a batch of clips.

        Args:
            wavs: B clips, each (L,) float in [-1, 1] at 16 kHz.

        Returns:
            ``hidden_states``: (B, T', W) per layer, with T' = ``len(range(0, longest L, rate))``,
            the length that s3prl expects. A clip has 1 to 4 time steps fewer on its own, and even
            fewer in a batch with longer clips: its last vector is repeated, so that s3prl never
            uses padding.
            ``last_hidden_state``: the output of the encoder: the last hidden state, followed by
            the layer norm of the stack in pre-norm models.

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
        last = self._vectors(self.model.last_hidden_state(states))[row, place]
        return {"hidden_states": hidden, "last_hidden_state": last}

    def _places(self, parts: list[Part], own: list[int], count: int) -> tuple[Tensor, Tensor]:
        """Return, for each vector of each clip, its part and its index in it, (B, count) each."""
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
        """Split clips with these numbers of time steps into parts that fit the model's input."""
        if self.model.config.input_frames is None:
            return [Part(clip, Window(0, n, 0, n)) for clip, n in enumerate(own)]
        length, overlap = window_columns(self.model, WINDOW_S, OVERLAP_S)
        return [Part(clip, w) for clip, n in enumerate(own) for w in windows(n, length, overlap)]

    def _vectors(self, tokens: Tensor) -> Tensor:
        """Arrange tokens (B, N, D) in the layout, (B, T', W)."""
        batch, _, width = tokens.shape
        return tokens.reshape(batch, -1, self.patch_shape.per_column // self._per_step * width)

    def _padded(self, wavs: list[Tensor]) -> list[Tensor]:
        """Zero-pad clips shorter than one patch."""
        min_samples = self.patch_shape.min_samples
        for index, wav in enumerate(wavs):
            if wav.ndim != 1 or not len(wav):
                raise ValueError(f"clip {index} has shape {tuple(wav.shape)}; expected (samples,)")
            if len(wav) < min_samples and not self._has_padded:
                self._has_padded = True
                logger.warning(
                    "clip %d of a batch has %d samples; clips below one patch (%d samples, %g ms "
                    "at 16 kHz) are zero-padded to it",
                    *(index, len(wav), min_samples, min_samples / 16),
                )
        return [F.pad(wav, (0, max(0, min_samples - len(wav)))) for wav in wavs]
