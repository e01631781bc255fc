"""Base of the optimizers: settings, clipping of gradients, loading of moments."""

# No postponed annotations: fairseq reads the field types at run time.
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from fairseq.dataclass import FairseqDataclass
from fairseq.optim import FairseqOptimizer
from omegaconf import II
from torch import Tensor

CLIP_EPS = 1e-6  # added to the norm of the gradients before a division, as in fairseq and torch


@dataclass
class AdamSettings(FairseqDataclass):  # type: ignore[misc]
    """Settings under ``optimizer.*``."""

    adam_betas: Any = field(
        default=(0.9, 0.999),
        metadata={"help": "decay rates of the first and second moments, such as (0.9,0.98)"},
    )
    adam_eps: float = field(
        default=1e-8,
        metadata={"help": "constant added to the denominator for numerical stability"},
    )
    weight_decay: float = field(
        default=0.0,
        metadata={"help": "decoupled weight decay coefficient, for all parameters; 0: none"},
    )
    lr: Any = field(default=II("optimization.lr"))


def group_settings(cfg: Any) -> dict[str, Any]:
    """Return the settings of a parameter group, as torch's optimizers name them.

    Args:
        cfg: :class:`AdamSettings`, resolved.

    Raises:
        ValueError: a setting is out of range.
    """
    lr = float(cfg.lr[0])
    for key, value in (
        ("optimization.lr", lr),
        ("optimizer.adam_eps", cfg.adam_eps),
        ("optimizer.weight_decay", cfg.weight_decay),
    ):
        if not value >= 0:
            raise ValueError(f"{key}={value}: must be 0 or more")
    betas = _parse_betas(cfg.adam_betas)
    return {"lr": lr, "betas": betas, "eps": cfg.adam_eps, "weight_decay": cfg.weight_decay}


def _parse_betas(value: Any) -> tuple[float, float]:
    """Parse a pair of numbers, or a string such as "(0.9,0.98)" as in fairseq's presets."""
    parts = value.strip(" ()[]").split(",") if isinstance(value, str) else value
    try:
        first, second = (float(part) for part in parts)
        if 0 <= first < 1 and 0 <= second < 1:
            return first, second
    except (TypeError, ValueError):
        pass
    raise ValueError(
        f"optimizer.adam_betas={value}: must be two numbers from 0 to below 1, such as (0.9,0.98)"
    )


class FusedOptimizer(FairseqOptimizer):  # type: ignore[misc]
    """fairseq optimizer without a loop over parameters and without host synchronisation.

    A subclass sets ``_optimizer``, one of torch's optimizers.
    """

    @property
    def optimizer_config(self) -> dict[str, Any]:
        """Settings to override after loading: none, see :meth:`load_state_dict`."""
        return {}

    @torch.no_grad()
    def clip_grad_norm(
        self,
        max_norm: float,
        aggregate_norm_fn: Callable[[Tensor], Tensor] | None = None,
    ) -> Tensor:
        """Scale all gradients so that their norm is at most ``max_norm``.

        The result is that of fairseq's method, which computes the norm of each parameter by itself.

        Args:
            max_norm: maximum norm; 0: do not scale.
            aggregate_norm_fn: turns the norm of this process's gradients into that of all.

        Returns:
            The norm before scaling, () float32.
        """
        grads = [p.grad for p in self.params if p.grad is not None]
        if not grads:
            return torch.zeros((), device=next(iter(self.params)).device)
        norms: Any = torch._foreach_norm(grads, 2, torch.float32)
        norm: Tensor = torch.linalg.vector_norm(torch.stack(norms))
        if aggregate_norm_fn is not None:
            norm = aggregate_norm_fn(norm)
        if max_norm > 0:
            torch._foreach_mul_(grads, (float(max_norm) / (norm + CLIP_EPS)).clamp_(max=1))
        return norm

    def load_state_dict(
        self, state_dict: dict[str, Any], optimizer_overrides: dict[str, Any] | None = None
    ) -> None:
        """Load the moments; learning rate, weight decay and so on keep this run's settings.

        Args:
            state_dict: state of the same kind of optimizer.
            optimizer_overrides: settings of parameter groups to replace.
        """
        current = [
            {key: value for key, value in group.items() if key != "params"}
            for group in self.param_groups
        ]
        self.optimizer.load_state_dict(state_dict)
        for group, settings in zip(self.param_groups, current, strict=True):
            group.update({**settings, **(optimizer_overrides or {})})
