"""Spectrograms cut into patches: (B, T, F) -> (B, N, P) and back.

Patches run along mel first: index n = t * (F // p_f) + f. Trailing frames that fill no patch are
dropped. A patch holds its values time-major, like a ``Conv2d`` kernel of (p_t, p_f).
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from mae_ast.core.fbank import NUM_MEL_BINS, num_samples_of_frames


@dataclass(frozen=True)
class PatchShape:
    """How a spectrogram is cut.

    Args:
        time: frames of a patch.
        mel: mel bins of a patch.

    Raises:
        ValueError: a size is not positive, or ``mel`` does not divide the 128 mel bins.
    """

    time: int
    mel: int

    def __post_init__(self) -> None:
        if self.time < 1:
            raise ValueError(f"a patch has at least 1 frame, not {self.time}")
        if self.mel < 1 or NUM_MEL_BINS % self.mel:
            raise ValueError(
                f"a patch of {self.mel} mel bins does not divide the {NUM_MEL_BINS} mel bins; "
                "1, 2, 4, 8, 16, 32, 64 and 128 do"
            )

    @property
    def dim(self) -> int:
        """P, values of a patch."""
        return self.time * self.mel

    @property
    def per_column(self) -> int:
        """Patches above one another at one time."""
        return NUM_MEL_BINS // self.mel

    @property
    def min_samples(self) -> int:
        """Samples at 16 kHz of the shortest clip that fills one column of patches."""
        return num_samples_of_frames(self.time)

    def grid(self, num_frames: int) -> tuple[int, int]:
        """(patches along time, patches along mel) of a clip of ``num_frames``."""
        return num_frames // self.time, self.per_column


def patchify(spectrogram: Tensor, shape: PatchShape) -> Tensor:
    """(B, T, F) -> (B, N, P)."""
    batch = spectrogram.shape[0]
    along_time, along_mel = shape.grid(spectrogram.shape[1])
    x = spectrogram[:, : along_time * shape.time]
    x = x.reshape(batch, along_time, shape.time, along_mel, shape.mel)
    return x.transpose(2, 3).reshape(batch, along_time * along_mel, shape.dim)


def unpatchify(patches: Tensor, shape: PatchShape) -> Tensor:
    """(B, N, P) -> (B, T', F), where T' is T without the trailing frames."""
    batch = patches.shape[0]
    along_time = patches.shape[1] // shape.per_column
    x = patches.reshape(batch, along_time, shape.per_column, shape.time, shape.mel)
    return x.transpose(2, 3).reshape(batch, along_time * shape.time, NUM_MEL_BINS)
