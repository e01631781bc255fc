"""Average the channels of a recording, and warn if they cancel each other."""

from __future__ import annotations

import torch
from torch import Tensor

from mae_ast.core.io.decoding.audio_file import warn_once

_STEP = 16  # every 16th frame is checked
_CANCELLED = 1e-4  # power of the average relative to that of the channels: -40 dB
_QUIET = 1e-8  # power below which audio counts as silence; full scale is 1


class Downmix:
    """Average channels block by block.

    Args:
        path: path of the file, for warnings.
    """

    def __init__(self, path: str) -> None:
        self._path = path
        self._frames = 0
        self._channels = self._average = 0.0  # sums of squares

    def __call__(self, frames: Tensor) -> Tensor:
        """Average (L, channels) to (L,): int16 for int16 input with one channel, else float32."""
        if frames.shape[1] == 1:
            return frames[:, 0]
        scale = 32768 if frames.dtype == torch.int16 else 1
        if scale > 1:
            # A matrix product is several times faster than a mean, and sums of int16 values are
            # exact in float32.
            average = frames.float() @ torch.ones(frames.shape[1]) / frames.shape[1] / scale
        else:
            average = frames.mean(dim=1)
        sampled = frames[::_STEP].float() / scale
        self._frames += len(sampled)
        self._channels += float(sampled.square().mean(dim=1).sum())
        self._average += float(average[::_STEP].square().sum())
        return average

    def check(self) -> None:
        """Warn once about a file whose channels average to silence."""
        if self._channels > _QUIET * self._frames and self._average < _CANCELLED * self._channels:
            warn_once(
                self._path,
                "its channels are in opposite phase and average to silence; downmix it another way",
            )
