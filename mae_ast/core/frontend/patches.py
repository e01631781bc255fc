"""Spectrograms cut into patches: (B, T, F) -> (B, N, P) and back.

Patches run along mel first: index n = t * per_column + f. Trailing frames that fill no patch are
dropped. A patch holds its values time-major, like a ``Conv2d`` kernel of (p_t, p_f). With a stride
smaller than the patch, as AST has it, neighbours overlap, and mel bins on top may be left over.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeVar

from torch import Tensor

from mae_ast.core.frontend.fbank import NUM_MEL_BINS, num_samples_of_frames

Count = TypeVar("Count", int, Tensor)  # one clip's, or (B,) int64


@dataclass(frozen=True)
class PatchShape:
    """How a spectrogram is cut.

    Args:
        time: frames of a patch.
        mel: mel bins of a patch.
        time_stride: frames from a patch to the next; 0: as many as a patch has, no overlap.
        mel_stride: mel bins, likewise.

    Raises:
        ValueError: a size is not positive, ``mel`` does not divide the 128 mel bins where patches
            do not overlap along it, or there are gaps between patches.
    """

    time: int
    mel: int
    time_stride: int = 0
    mel_stride: int = 0

    def __post_init__(self) -> None:
        for axis, unit in (("time", "frame"), ("mel", "mel bin")):
            size, stride = getattr(self, axis), getattr(self, f"{axis}_stride") or 0
            if axis == "time" and size < 1:
                raise ValueError(f"a patch has at least 1 frame, not {size}")
            if stride < 0 or stride > max(size, 0):
                raise ValueError(
                    f"a stride of {stride} {unit}s; 1 to {size}, the size of a patch, leave no gap"
                )
            object.__setattr__(self, f"{axis}_stride", stride or size)
        if self.mel < 1 or (NUM_MEL_BINS % self.mel and self.mel_stride == self.mel):
            raise ValueError(
                f"a patch of {self.mel} mel bins does not divide the {NUM_MEL_BINS} mel bins; "
                "1, 2, 4, 8, 16, 32, 64 and 128 do"
            )
        if self.mel > NUM_MEL_BINS:
            raise ValueError(f"a patch of {self.mel} mel bins; there are {NUM_MEL_BINS}")

    @property
    def dim(self) -> int:
        """P, values of a patch."""
        return self.time * self.mel

    @property
    def per_column(self) -> int:
        """Patches above one another at one time."""
        return (NUM_MEL_BINS - self.mel) // self.mel_stride + 1

    @property
    def overlaps(self) -> bool:
        """Whether neighbours share values."""
        return (self.time_stride, self.mel_stride) != (self.time, self.mel)

    @property
    def min_samples(self) -> int:
        """Samples at 16 kHz of the shortest clip that fills one column of patches."""
        return num_samples_of_frames(self.time)

    def grid(self, num_frames: Count) -> tuple[Count, int]:
        """(patches along time, patches along mel) of a clip, or of clips, of ``num_frames``."""
        along_time = (num_frames - self.time) // self.time_stride + 1
        if isinstance(along_time, Tensor):
            return along_time.clamp(min=0), self.per_column
        return max(0, along_time), self.per_column

    def num_frames_of(self, along_time: int) -> int:
        """The fewest frames that give ``along_time`` patches along time, at least one."""
        return self.time + (along_time - 1) * self.time_stride


def patchify(spectrogram: Tensor, shape: PatchShape) -> Tensor:
    """(B, T, F) -> (B, N, P)."""
    batch = spectrogram.shape[0]
    along_time, along_mel = shape.grid(spectrogram.shape[1])
    if shape.overlaps and along_time:
        x = spectrogram.unfold(1, shape.time, shape.time_stride)
        x = x.unfold(2, shape.mel, shape.mel_stride)  # (B, T', F', time, mel)
        return x.reshape(batch, along_time * along_mel, shape.dim)
    x = spectrogram[:, : along_time * shape.time, : along_mel * shape.mel]
    x = x.reshape(batch, along_time, shape.time, along_mel, shape.mel)
    return x.transpose(2, 3).reshape(batch, along_time * along_mel, shape.dim)


def unpatchify(patches: Tensor, shape: PatchShape) -> Tensor:
    """(B, N, P) -> (B, T', F), where T' is T without the trailing frames.

    Raises:
        ValueError: patches overlap, so that a value is in several of them.
    """
    if shape.overlaps:
        raise ValueError(
            f"patches of {shape.time} x {shape.mel} with strides {shape.time_stride} x "
            f"{shape.mel_stride} overlap; only patches without overlap go back together"
        )
    batch = patches.shape[0]
    along_time = patches.shape[1] // shape.per_column
    x = patches.reshape(batch, along_time, shape.per_column, shape.time, shape.mel)
    return x.transpose(2, 3).reshape(batch, along_time * shape.time, NUM_MEL_BINS)
