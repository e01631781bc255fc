"""Augmentation for classification: waveforms (L,) int16 in the dataset, log-mel (B, T, F) after.

Waveforms are mixed, shifted and made noisy one clip at a time, where they are read. What
SpecAugment hides is drawn there too and travels as numbers; the hiding is done for a whole batch
on the device. All draws come from the generators that are passed in (see
:mod:`mae_ast.core.frontend.collate`).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from mae_ast.core.frontend.fbank import NUM_MEL_BINS
from mae_ast.core.frontend.masking import structured_mask
from mae_ast.core.frontend.patches import PatchShape

NOISE_RANGE_DB = 30.0  # how much fainter than the loudest the faintest noise is
_INT16 = torch.iinfo(torch.int16)


@dataclass(frozen=True)
class Augmentation:
    """How training clips are varied; the defaults leave them alone.

    Args:
        mixup: probability that a clip is mixed with another one.
        mixup_alpha: of Beta(alpha, alpha), from which the first clip's share is drawn.
        freq_mask: SpecAugment hides fewer mel bins than this, 0: none.
        time_mask: likewise, frames of 10 ms.
        shift_samples: waveforms are rotated by at most so much, either way.
        noise_snr_db: the loudest white noise, as the ratio of the clip to it; up to 30 dB fainter
            noise is as likely. ``None``: no noise.
        roll_mag: :func:`roll_and_scale` each clip.

    Raises:
        ValueError: a value cannot be.
    """

    mixup: float = 0.0
    mixup_alpha: float = 10.0
    freq_mask: int = 0
    time_mask: int = 0
    shift_samples: int = 0
    noise_snr_db: float | None = None
    roll_mag: bool = False

    def __post_init__(self) -> None:
        if not 0 <= self.mixup <= 1:
            raise ValueError(f"mixup={self.mixup}; a probability from 0 to 1")
        if not self.mixup_alpha > 0:
            raise ValueError(f"mixup_alpha={self.mixup_alpha}; a positive number")
        if not 0 <= self.freq_mask <= NUM_MEL_BINS:
            raise ValueError(f"freq_mask={self.freq_mask}; 0 to {NUM_MEL_BINS} mel bins")
        for name in ("time_mask", "shift_samples"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name}={getattr(self, name)}; 0 or more")

    def draw_mixing(self, num_clips: int, generator: torch.Generator) -> tuple[int, float] | None:
        """The clip to mix in, each equally likely, and the first clip's share of 1; or ``None``.

        The method is mixup (Zhang et al. 2018, arXiv 1710.09412) as AST uses it: not all clips
        are mixed.
        """
        if not self.mixup or float(torch.rand((), generator=generator)) >= self.mixup:
            return None
        partner = int(torch.randint(num_clips, (), generator=generator))
        seed = int(torch.randint(2**62, (), generator=generator))
        return partner, float(np.random.default_rng(seed).beta(self.mixup_alpha, self.mixup_alpha))

    def augment(self, samples: Tensor, generator: torch.Generator) -> Tensor:
        """Rotate a waveform (L,) int16, scale it and add noise."""
        if self.roll_mag:
            samples = roll_and_scale(samples, generator)
        if self.shift_samples:
            most = self.shift_samples
            by = int(torch.randint(-most, most + 1, (), generator=generator))
            samples = samples.roll(by)
        if self.noise_snr_db is not None:
            fainter = NOISE_RANGE_DB * float(torch.rand((), generator=generator))
            samples = add_noise(samples, self.noise_snr_db + fainter, generator)
        return samples

    def draw_hidden(self, num_frames: int, generator: torch.Generator) -> Tensor:
        """What SpecAugment hides of a clip: (2, 2) int64, begin and end in mel bins and frames.

        Widths are uniform from 0 to the greatest, places uniform (Park et al. 2019, arXiv
        1904.08779; one band of each kind).
        """
        spans = [(self.freq_mask, NUM_MEL_BINS), (self.time_mask, num_frames)]
        hidden = torch.zeros(2, 2, dtype=torch.int64)
        for row, (most, room) in zip(hidden, spans, strict=True):
            if most:
                width = int(torch.randint(min(most, room), (), generator=generator))
                begin = int(torch.randint(room - width + 1, (), generator=generator))
                row[0], row[1] = begin, begin + width
        return hidden


@dataclass(frozen=True)
class StructuredDrop:
    """Columns and rows of patches that an encoder does not see of a clip in training.

    Args:
        shape: of the patches.
        input_frames: that the encoder cuts or fills clips up to; ``None``: their own.
        drop_time, drop_mel: fractions of columns and of rows, from 0 to below 1.

    Raises:
        ValueError: a fraction cannot be.
    """

    shape: PatchShape
    input_frames: int | None
    drop_time: float = 0.0
    drop_mel: float = 0.0

    def __post_init__(self) -> None:
        for name in ("drop_time", "drop_mel"):
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)}; a fraction from 0 to below 1")

    def draw_visible(self, num_frames: int, generator: torch.Generator) -> Tensor:
        """(V,) int64, the patches of a clip that are left (:func:`structured_mask`)."""
        grid = self.shape.grid(self.input_frames or num_frames)
        mask = structured_mask(1, grid, self.drop_time, self.drop_mel, generator)
        return mask.visible_ids[0]


def mix(first: Tensor, second: Tensor, share: float) -> Tensor:
    """``share * first + (1 - share) * second`` of waveforms int16, as long as the first.

    A shorter second one is followed by silence, of a longer one the beginning is taken.
    """
    mixed = first.float() * share
    length = min(len(first), len(second))
    mixed[:length] += second[:length].float() * (1 - share)
    return mixed.round_().to(torch.int16)  # the shares' sum is 1: nothing overflows


def roll_and_scale(samples: Tensor, generator: torch.Generator) -> Tensor:
    """Rotate a waveform (L,) int16 by any amount, and multiply it by 0.5 + Beta(10, 10).

    Audio-MAE's "roll-mag" (Huang et al. 2022), which keeps its length. What it makes louder than
    16 bits hold is clipped.
    """
    by = int(torch.randint(len(samples), (), generator=generator))
    seed = int(torch.randint(2**62, (), generator=generator))
    scale = 0.5 + float(np.random.default_rng(seed).beta(10, 10))
    scaled = samples.roll(by).float() * scale
    return scaled.round_().clamp_(_INT16.min, _INT16.max).to(torch.int16)


def add_noise(samples: Tensor, snr_db: float, generator: torch.Generator) -> Tensor:
    """Add white noise to a waveform (L,) int16, ``snr_db`` below its mean power."""
    wave = samples.float()
    level = wave.square().mean().sqrt() * 10 ** (-snr_db / 20)
    noisy = wave + level * torch.randn(wave.shape, generator=generator)
    return noisy.round_().clamp_(_INT16.min, _INT16.max).to(torch.int16)


def mask_bands(log_mel: Tensor, hidden: Tensor, value: Tensor) -> Tensor:
    """Put ``value`` into a band of mel bins and one of frames of each clip.

    Args:
        log_mel: (B, T, F).
        hidden: (B, 2, 2) int64, from :meth:`Augmentation.draw_hidden`.
        value: (1,), such as the mean of the input.
    """
    _, frames, bins = log_mel.shape
    bin_, frame = (torch.arange(n, device=log_mel.device) for n in (bins, frames))
    begin, end = hidden[..., 0, None], hidden[..., 1, None]  # (B, 2, 1)
    in_bins = (bin_ >= begin[:, 0]) & (bin_ < end[:, 0])  # (B, F)
    in_frames = (frame >= begin[:, 1]) & (frame < end[:, 1])  # (B, T)
    return log_mel.where(~(in_bins[:, None] | in_frames[:, :, None]), value)
