"""Mean and std of log-mel values over many clips, and a check of a model's input statistics."""

from __future__ import annotations

import torch
from torch import Tensor

from mae_ast.core.frontend.fbank import FRAME_LENGTH, NUM_MEL_BINS, fbank

# A mean that is wrong by one std shifts the network's input from mean 0 to mean 0.5, which is above
# five sixths of the values it was trained on; with AudioSet's std of 4.57 this corresponds to audio
# that is 20 dB louder or quieter. Data sets at usual levels stay within the limits: the means
# published for AST are -4.3 (AudioSet), -6.6 (ESC-50) and -6.8 (Speech Commands), the stds 4.6 to
# 5.6.
MAX_SHIFT = 1.0  # maximum difference of the means, in units of the std in use
MAX_RATIO = 2.0  # maximum ratio of the stds, either way
MIN_VARIANCE = 1e-6  # log-mel variance; anything smaller is rounding error


def moments(waveform: Tensor, window: str) -> Tensor:
    """Return count, sum and sum of squares of a clip's log-mel values, (3,) float64.

    Args:
        waveform: (L,) int16, or float in [-1, 1], at 16 kHz. If it is shorter than one
            window of 400 samples, all three are 0.
        window: window of the filterbank, "povey" or "hanning".
    """
    if len(waveform) < FRAME_LENGTH:
        return torch.zeros(3, dtype=torch.float64)
    values = fbank(waveform.unsqueeze(0), window)[0].double()
    count = torch.tensor(float(len(values) * NUM_MEL_BINS), dtype=torch.float64)
    return torch.stack([count, values.sum(), values.square().sum()])


def mean_and_std(total: Tensor) -> tuple[float, float]:
    """Return mean and std, given the sum of :func:`moments` over clips.

    Raises:
        ValueError: there are no values, or their variance is zero.
    """
    count, values, squares = total.tolist()
    if not count:
        raise ValueError("no log-mel values: no clip is as long as one window of 25 ms")
    mean = values / count
    variance = squares / count - mean**2
    if variance < MIN_VARIANCE:
        raise ValueError("the log-mel variance is zero (only silence?); cannot compute statistics")
    return mean, variance**0.5


def are_far(mean: float, std: float, used_mean: float, used_std: float) -> bool:
    """Return whether a model's input statistics are far from those of its data.

    Args:
        mean, std: log-mel statistics of the data.
        used_mean, used_std: log-mel statistics that the model normalises by.
    """
    ratio = max(std / used_std, used_std / std)
    return abs(mean - used_mean) > MAX_SHIFT * used_std or ratio > MAX_RATIO
