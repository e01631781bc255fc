"""Augmentation for fine-tuning: waveforms (L,) int16 in the dataset, log-mel (B, T, F) on device.

Mixup, time shifts and noise are applied to one waveform at a time in the dataset. The SpecAugment
bands are also drawn there, but :func:`mask_bands` applies them to a whole batch on the device. All
random numbers come from the generators that are passed in (see
:mod:`mae_ast.core.frontend.collate`).
"""

# No postponed annotations: fairseq reads the field types at run time.
from dataclasses import dataclass
from typing import Optional

import numpy as np
import torch
from torch import Tensor

from mae_ast.core.frontend.fbank import NUM_MEL_BINS
from mae_ast.core.frontend.masking import structured_mask
from mae_ast.core.frontend.patches import PatchShape
from mae_ast.core.settings import check_fields, setting

NOISE_RANGE_DB = 30.0  # the weakest noise is this far below the strongest
_INT16 = torch.iinfo(torch.int16)


# Optional[...] instead of X | None: the configuration library of fairseq reads these types.
@dataclass
class AugmentationConfig:
    """Augmentation of training clips; by default, none.

    Raises:
        ValueError: a value is out of range.
    """

    mixup: float = setting(
        0.0, help="probability that a training clip is mixed with another one (mixup)"
    )
    mixup_alpha: float = setting(
        10.0,
        help="alpha of the distribution Beta(alpha, alpha) from which mixup draws the mixing ratio",
        positive=True,
    )
    freq_mask: int = setting(
        0,
        help="SpecAugment: mask a band of fewer than this many of the 128 mel bins in training; 0: "
        "none",
        minimum=0,
    )
    time_mask: int = setting(
        0,
        help="SpecAugment: mask a band of fewer than this many frames of 10 ms in training; 0: "
        "none",
        minimum=0,
    )
    shift_samples: int = setting(
        0,
        help="circular shift of training waveforms by up to this many samples, in either "
        "direction; 0: no shift",
        minimum=0,
    )
    noise_snr_db: Optional[float] = setting(  # noqa: UP045
        None,
        help="add white noise to training waveforms, at a signal-to-noise ratio drawn from this "
        "value to 30 dB above it (dB); null: no noise",
    )
    roll_mag: bool = setting(
        False,
        help="shift training waveforms circularly by a random offset and scale by a random factor "
        "from 0.5 to 1.5 (Audio-MAE's roll-mag)",
    )

    def __post_init__(self) -> None:
        check_fields(self)
        if not 0 <= self.mixup <= 1:
            raise ValueError(f"mixup={self.mixup}; must be a probability from 0 to 1")
        if self.freq_mask > NUM_MEL_BINS:
            raise ValueError(f"freq_mask={self.freq_mask}; must be 0 to {NUM_MEL_BINS} mel bins")


@dataclass
class Augmentation(AugmentationConfig):
    """Augmentation of waveforms, and draws for that of batches."""

    def draw_mixing(self, num_clips: int, generator: torch.Generator) -> tuple[int, float] | None:
        """Draw the index of the clip to mix in and the first clip's weight, or ``None``.

        This is mixup (Zhang et al. 2018, arXiv 1710.09412) as in AST, where only some of the clips
        are mixed. The index is uniform; the weight is between 0 and 1.
        """
        if not self.mixup or float(torch.rand((), generator=generator)) >= self.mixup:
            return None
        partner = int(torch.randint(num_clips, (), generator=generator))
        seed = int(torch.randint(2**62, (), generator=generator))
        return partner, float(np.random.default_rng(seed).beta(self.mixup_alpha, self.mixup_alpha))

    def augment(self, samples: Tensor, generator: torch.Generator) -> Tensor:
        """Apply roll-mag, circular shift and noise to a waveform (L,) int16, as configured."""
        if self.roll_mag:
            samples = roll_and_scale(samples, generator)
        if self.shift_samples:
            limit = self.shift_samples
            shift = int(torch.randint(-limit, limit + 1, (), generator=generator))
            samples = samples.roll(shift)
        if self.noise_snr_db is not None:
            attenuation = NOISE_RANGE_DB * float(torch.rand((), generator=generator))
            samples = add_noise(samples, self.noise_snr_db + attenuation, generator)
        return samples

    def draw_hidden(self, num_frames: int, generator: torch.Generator) -> Tensor:
        """Draw the SpecAugment bands of a clip, one of mel bins and one of frames.

        Width and position are uniform (Park et al. 2019, arXiv 1904.08779).

        Returns:
            (2, 2) int64: start and end (exclusive) of the mel bins, then of the frames; equal where
            nothing is masked.
        """
        axes = [(self.freq_mask, NUM_MEL_BINS), (self.time_mask, num_frames)]
        bands = torch.zeros(2, 2, dtype=torch.int64)
        for band, (max_width, size) in zip(bands, axes, strict=True):
            if max_width:
                width = int(torch.randint(min(max_width, size), (), generator=generator))
                begin = int(torch.randint(size - width + 1, (), generator=generator))
                band[0], band[1] = begin, begin + width
        return bands


@dataclass
class DropConfig:
    """Structured patch dropout: fractions of time steps and of mel rows, from 0 to below 1.

    Raises:
        ValueError: a fraction is out of range.
    """

    drop_time: float = setting(
        0.0,
        help="fraction of the time steps of the patch grid that are hidden from the encoder in "
        "training; not with model.pool=time_steps; 0: none",
        probability=True,
    )
    drop_mel: float = setting(
        0.0,
        help="fraction of the mel rows of the patch grid that are hidden from the encoder in "
        "training; not with model.pool=time_steps; 0: none",
        probability=True,
    )

    def __post_init__(self) -> None:
        check_fields(self)


@dataclass(frozen=True)
class StructuredDrop:
    """Structured patch dropout: drop whole time steps and whole mel rows of patches in training.

    Args:
        shape: size and stride of the patches.
        input_frames: frames that the encoder crops or pads clips to; ``None``: it does neither.
        config: fractions to drop.
    """

    shape: PatchShape
    input_frames: int | None
    config: DropConfig

    def draw_visible(self, num_frames: int, generator: torch.Generator) -> Tensor:
        """Draw the ids (V,) int64 of the patches to keep (see :func:`structured_mask`)."""
        grid = self.shape.grid(self.input_frames or num_frames)
        mask = structured_mask(1, grid, self.config.drop_time, self.config.drop_mel, generator)
        return mask.visible_ids[0]


def mix(first: Tensor, second: Tensor, weight: float) -> Tensor:
    """Mix two int16 waveforms: ``weight * first + (1 - weight) * second``.

    The result is as long as ``first``; ``second`` is zero-padded or cut at its end.
    """
    mixed = first.float() * weight
    length = min(len(first), len(second))
    mixed[:length] += second[:length].float() * (1 - weight)
    return mixed.round_().to(torch.int16)  # the weights sum to 1: no overflow


def roll_and_scale(samples: Tensor, generator: torch.Generator) -> Tensor:
    """Shift a waveform (L,) int16 circularly by any amount and scale it by 0.5 + Beta(10, 10).

    This is the "roll-mag" augmentation of Audio-MAE (Huang et al. 2022). Values beyond the int16
    range are clipped.
    """
    shift = int(torch.randint(len(samples), (), generator=generator))
    seed = int(torch.randint(2**62, (), generator=generator))
    scale = 0.5 + float(np.random.default_rng(seed).beta(10, 10))
    scaled = samples.roll(shift).float() * scale
    return scaled.round_().clamp_(_INT16.min, _INT16.max).to(torch.int16)


def add_noise(samples: Tensor, snr_db: float, generator: torch.Generator) -> Tensor:
    """Add white noise to a waveform (L,) int16 at a signal-to-noise ratio of ``snr_db``."""
    wave = samples.float()
    level = wave.square().mean().sqrt() * 10 ** (-snr_db / 20)
    noisy = wave + level * torch.randn(wave.shape, generator=generator)
    return noisy.round_().clamp_(_INT16.min, _INT16.max).to(torch.int16)


def mask_bands(log_mel: Tensor, hidden: Tensor, value: Tensor) -> Tensor:
    """Fill a band of mel bins and a band of frames of each clip with ``value`` (SpecAugment).

    Args:
        log_mel: (B, T, F).
        hidden: (B, 2, 2) int64, from :meth:`Augmentation.draw_hidden` for each clip.
        value: (1,), such as the mean of the input.

    Returns:
        (B, T, F).
    """
    _, frames, bins = log_mel.shape
    bin_, frame = (torch.arange(n, device=log_mel.device) for n in (bins, frames))
    begin, end = hidden[..., 0, None], hidden[..., 1, None]  # (B, 2, 1)
    in_bins = (bin_ >= begin[:, 0]) & (bin_ < end[:, 0])  # (B, F)
    in_frames = (frame >= begin[:, 1]) & (frame < end[:, 1])  # (B, T)
    return log_mel.where(~(in_bins[:, None] | in_frames[:, :, None]), value)
