"""Mean and standard deviation of log-mel values over many clips, and how far a model's are off."""

from __future__ import annotations

import torch
from torch import Tensor

from mae_ast.core.frontend.fbank import FRAME_LENGTH, NUM_MEL_BINS, fbank

# A mean that is off by one standard deviation moves the network's input from N(0, 0.5^2) to a mean
# of 0.5, beyond five sixths of the values that it was trained on; with AudioSet's 4.57 that is
# audio 20 dB louder or quieter. Corpora at usual levels stay within: the means published for AST's
# data sets are -4.3 (AudioSet), -6.6 (ESC-50) and -6.8 (Speech Commands), their standard deviations
# 4.6 to 5.6.
MAX_SHIFT = 1.0  # of the mean, in standard deviations in use
MAX_RATIO = 2.0  # of the standard deviations, either way
MIN_VARIANCE = 1e-6  # of log-mel; below, rounding is all there is


def moments(waveform: Tensor, window: str) -> Tensor:
    """Return number of values, sum and sum of squares of a clip's log-mel, (3,) float64.

    Args:
        waveform: (L,) int16, or float in [-1, 1], at 16 kHz; zeros if it has no frame.
        window: of the filterbank, "povey" or "hanning".
    """
    if len(waveform) < FRAME_LENGTH:
        return torch.zeros(3, dtype=torch.float64)
    values = fbank(waveform.unsqueeze(0), window)[0].double()
    count = torch.tensor(float(len(values) * NUM_MEL_BINS), dtype=torch.float64)
    return torch.stack([count, values.sum(), values.square().sum()])


def mean_and_std(total: Tensor) -> tuple[float, float]:
    """Return mean and standard deviation from the sum of :func:`moments` over clips.

    Raises:
        ValueError: there are no values, or they do not vary.
    """
    count, values, squares = total.tolist()
    if not count:
        raise ValueError("no log-mel values")
    mean = values / count
    variance = squares / count - mean**2
    if variance < MIN_VARIANCE:
        raise ValueError("the log-mel variance is zero (only silence?); cannot compute statistics")
    return mean, variance**0.5


def are_far(mean: float, std: float, used_mean: float, used_std: float) -> bool:
    """Return whether a model's input statistics are far from those of its data.

    Args:
        mean, std: of the data.
        used_mean, used_std: by which the model normalises.
    """
    ratio = max(std / used_std, used_std / std)
    return abs(mean - used_mean) > MAX_SHIFT * used_std or ratio > MAX_RATIO
