"""Normalise log-mel input to mean 0 and std 0.5: (B, T, F) -> (B, T, F), always in float32."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, distributed, nn

TARGET_STD = 0.5
EPS = 1e-5
MOMENTUM = 0.1


class InputNorm(nn.Module):
    """Batch norm of the input: one channel, not affine, over valid frames only, scaled by 0.5.

    Buffers are named and updated as in ``nn.BatchNorm2d(1, affine=False)``.

    If ``torch.distributed`` is initialised, each rank normalises a training batch by its own
    statistics, and every rank tracks the statistics of all ranks in rank order, as a single process
    that sees these batches one after another would. As with ``nn.SyncBatchNorm``, every rank must
    therefore take part in each training step, with ``num_frames`` of 0 if it has run out of clips.

    Args:
        update: normalise a training batch by its own statistics and track them. ``False``: always
            use the initial statistics, so that a clip's values do not depend on its batch.
        mean, std: initial running mean and std of log-mel values.

    Raises:
        ValueError: ``std`` is not positive.
    """

    running_mean: Tensor
    running_var: Tensor
    num_batches_tracked: Tensor

    def __init__(self, update: bool = True, mean: float = 0.0, std: float = 1.0) -> None:
        super().__init__()
        if not std > 0:
            raise ValueError(f"input_std={std}; must be positive")
        self.update = update
        self.register_buffer("running_mean", torch.tensor([float(mean)]))
        self.register_buffer("running_var", torch.tensor([float(std) ** 2]))
        self.register_buffer("num_batches_tracked", torch.tensor(0))

    def forward(self, spectrogram: Tensor, num_frames: Tensor | None = None) -> Tensor:
        """Normalise.

        Args:
            spectrogram: (B, T, F) float32 log-mel.
            num_frames: (B,) int64, valid frames of each clip; ``None``: all.

        Returns:
            (B, T, F) float32.
        """
        mean, var = self.running_mean, self.running_var
        if self.training and self.update:
            mean, var = self._track(spectrogram, num_frames)
        return (spectrogram - mean) * (torch.rsqrt(var + EPS) * TARGET_STD)

    def invert(self, normalised: Tensor) -> Tensor:
        """Return the log-mel values, of any shape, of input that was normalised in eval mode."""
        return normalised * ((self.running_var + EPS).sqrt() / TARGET_STD) + self.running_mean

    @torch.no_grad()
    def _track(self, x: Tensor, num_frames: Tensor | None) -> tuple[Tensor, Tensor]:
        count, mean, var = _statistics(x, num_frames)
        unbiased = var * count / (count - 1).clamp(min=1)
        counts, means, variances = _all_gather(torch.stack([count, mean, unbiased])).unbind(1)
        self._update_running(counts, means, variances)
        is_empty = count == 0
        return mean.where(~is_empty, self.running_mean), var.where(~is_empty, self.running_var)

    def _update_running(self, counts: Tensor, means: Tensor, variances: Tensor) -> None:
        """Update the running statistics by N batches, (N,) each, in closed form.

        The result equals N successive updates with momentum 0.1.
        """
        weights = MOMENTUM * (counts > 0)  # an empty batch changes nothing
        kept = (1 - weights).flip(0).cumprod(0).flip(0)  # fraction left by batches n to N
        weights = weights * torch.cat([kept[1:], kept.new_ones(1)])
        total = weights.sum()
        weights = weights / total.clamp(min=torch.finfo(total.dtype).tiny)
        self.running_mean.lerp_((weights * means).sum(), total)
        self.running_var.lerp_((weights * variances).sum(), total)
        self.num_batches_tracked += (counts > 0).sum()

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> InputNorm:
        """Follow the model to a device, but keep the buffers' dtype when it is cast."""
        exact = dict(self.named_buffers())
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        for name, buffer in exact.items():
            moved = getattr(self, name)
            if moved.dtype != buffer.dtype:
                setattr(self, name, buffer.to(moved.device))
        return self


def _statistics(x: Tensor, num_frames: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
    """Return count, mean and biased variance, each (), of the valid values of (B, T, F)."""
    if num_frames is None:
        count = torch.full((), x.numel(), dtype=torch.float32, device=x.device)
        var, mean = torch.var_mean(x, correction=0)
        return count, mean, var
    valid = torch.arange(x.shape[1], device=x.device) < num_frames[:, None]
    valid = valid[:, :, None]
    count = valid.sum() * float(x.shape[2])
    mean = x.where(valid, 0.0).sum() / count.clamp(min=1)
    var = (x - mean).where(valid, 0.0).square().sum() / count.clamp(min=1)
    return count, mean, var


def _all_gather(values: Tensor) -> Tensor:
    """Gather (K,) from each rank: (ranks, K), in rank order.

    Implemented as an all-reduce of rows that are zero on the other ranks: exact, and available in
    every backend.
    """
    if not (distributed.is_available() and distributed.is_initialized()):
        return values[None]
    rows = values.new_zeros(distributed.get_world_size(), len(values))
    rows[distributed.get_rank()] = values
    distributed.all_reduce(rows)
    return rows
