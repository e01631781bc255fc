"""Cut spectrograms into patches and put them back together: (B, T, F) <-> (B, N, P).

Patches are ordered time step by time step, n = t * per_column + f, from low to high mel bins.
Trailing frames that do not fill a patch are dropped. The values of a patch are time-major, as in a
``Conv2d`` kernel of size (p_t, p_f). With a stride smaller than the patch, as in AST, adjacent
patches overlap, and the highest mel bins may belong to no patch.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeVar

from torch import Tensor

from mae_ast.core.frontend.fbank import NUM_MEL_BINS, num_samples_of_frames

Count = TypeVar("Count", int, Tensor)  # of one clip, or (B,) int64 of a batch


@dataclass(frozen=True)
class PatchShape:
    """Size and stride of patches.

    Args:
        time: length of a patch in 10 ms frames.
        mel: height of a patch in mel bins.
        time_stride: frames between the starts of successive patches; 0: equal to ``time``.
        mel_stride: mel bins between the starts of successive patches; 0: equal to ``mel``.

    Raises:
        ValueError: a size is not positive, a stride leaves gaps between patches, or patches do not
            overlap along mel and ``mel`` does not divide the 128 mel bins.
    """

    time: int
    mel: int
    time_stride: int = 0
    mel_stride: int = 0

    def __post_init__(self) -> None:
        for axis, unit in (("time", "frame"), ("mel", "mel bin")):
            size, stride = getattr(self, axis), getattr(self, f"{axis}_stride") or 0
            if axis == "time" and size < 1:
                raise ValueError(f"a patch must have at least 1 frame, not {size}")
            if stride < 0 or stride > max(size, 0):
                raise ValueError(
                    f"a stride of {stride} {unit}s; must be 1 to {size}, the size of a patch, so "
                    "that there are no gaps"
                )
            object.__setattr__(self, f"{axis}_stride", stride or size)
        if self.mel < 1 or (NUM_MEL_BINS % self.mel and self.mel_stride == self.mel):
            raise ValueError(
                f"a patch of {self.mel} mel bins does not divide the {NUM_MEL_BINS} mel bins; "
                "must be 1, 2, 4, 8, 16, 32, 64 or 128"
            )
        if self.mel > NUM_MEL_BINS:
            raise ValueError(f"a patch of {self.mel} mel bins; must be at most {NUM_MEL_BINS}")

    @property
    def dim(self) -> int:
        """P, the number of values of a patch."""
        return self.time * self.mel

    @property
    def per_column(self) -> int:
        """Number of patches along mel, F'."""
        return (NUM_MEL_BINS - self.mel) // self.mel_stride + 1

    @property
    def overlaps(self) -> bool:
        """True if adjacent patches overlap."""
        return (self.time_stride, self.mel_stride) != (self.time, self.mel)

    @property
    def min_samples(self) -> int:
        """Minimum number of samples at 16 kHz of a clip that has one time step of patches."""
        return num_samples_of_frames(self.time)

    def grid(self, num_frames: Count) -> tuple[Count, int]:
        """Return (T', F'), the patches along time and mel, of one clip or of a batch (B,)."""
        along_time = (num_frames - self.time) // self.time_stride + 1
        if isinstance(along_time, Tensor):
            return along_time.clamp(min=0), self.per_column
        return max(0, along_time), self.per_column

    def num_frames_of(self, along_time: int) -> int:
        """Return the minimum number of frames that gives ``along_time`` >= 1 patches along time."""
        return self.time + (along_time - 1) * self.time_stride


def patchify(spectrogram: Tensor, shape: PatchShape) -> Tensor:
    """Cut spectrograms into patches: (B, T, F) -> (B, N, P)."""
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
    """Put patches back together: (B, N, P) -> (B, T, F), without the trailing frames.

    Raises:
        ValueError: patches overlap.
    """
    if shape.overlaps:
        raise ValueError(
            f"patches of {shape.time} x {shape.mel} with strides {shape.time_stride} x "
            f"{shape.mel_stride} overlap; only patches without overlap can be put back together"
        )
    batch = patches.shape[0]
    along_time = patches.shape[1] // shape.per_column
    x = patches.reshape(batch, along_time, shape.per_column, shape.time, shape.mel)
    return x.transpose(2, 3).reshape(batch, along_time * shape.time, NUM_MEL_BINS)


def time_steps(tokens: Tensor, per_column: int) -> Tensor:
    """Concatenate the tokens of each time step, low mel first: (B, N, D) -> (B, T', F' D)."""
    batch, _, width = tokens.shape
    return tokens.reshape(batch, -1, per_column * width)
