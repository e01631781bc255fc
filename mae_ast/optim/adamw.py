"""fairseq optimizer ``mae_ast_adamw``: fused AdamW with per-parameter learning rates.

Two attributes of a parameter are honoured: ``p.lr_scale`` multiplies its learning rate, and
``p.no_decay`` exempts it from weight decay.
"""

# No postponed annotations: fairseq reads the field types at run time.
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import torch
from fairseq.dataclass import FairseqDataclass
from fairseq.optim import FairseqOptimizer, register_optimizer
from omegaconf import II

MARKED_OPTIMIZER, MARKS = "mae_ast_adamw", ("lr_scale", "no_decay")


@dataclass
class AdamWConfig(FairseqDataclass):  # type: ignore[misc]
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
        metadata={
            "help": "decoupled weight decay coefficient, for the weight matrices of linear layers "
            "only; 0: none"
        },
    )
    lr: Any = field(default=II("optimization.lr"))


@register_optimizer(MARKED_OPTIMIZER, dataclass=AdamWConfig)
class AdamW(FairseqOptimizer):  # type: ignore[misc]
    """AdamW (Loshchilov and Hutter 2019, arXiv 1711.05101), fused into one kernel per group."""

    def __init__(self, cfg: AdamWConfig, params: Iterable[torch.nn.Parameter]) -> None:
        super().__init__(cfg)
        groups: dict[tuple[float, bool], list[torch.nn.Parameter]] = {}
        for p in params:
            key = (getattr(p, "lr_scale", 1.0), getattr(p, "no_decay", False))
            groups.setdefault(key, []).append(p)
        self._lr = float(cfg.lr[0])
        settings = [
            {
                "params": members,
                "lr": self._lr * scale,
                "lr_scale": scale,
                "weight_decay": 0.0 if no_decay else cfg.weight_decay,
            }
            for (scale, no_decay), members in groups.items()
        ]
        common: dict[str, Any] = {
            "lr": self._lr,
            "eps": cfg.adam_eps,
            "weight_decay": cfg.weight_decay,
        }
        betas = _parse_betas(cfg.adam_betas)
        try:  # torch checks the settings that are common to all groups
            self._optimizer = torch.optim.AdamW(settings, betas=betas, fused=True, **common)
        except ValueError as error:
            raise ValueError(f"optimizer: {error}") from error

    @property
    def optimizer_config(self) -> dict[str, Any]:
        """Settings to override after loading: none, see :meth:`load_state_dict`."""
        return {}

    def get_lr(self) -> float:
        """Return the learning rate of parameters with ``lr_scale`` 1."""
        return self._lr

    def set_lr(self, lr: float) -> None:
        """Set the learning rate; each group gets it times its ``lr_scale``."""
        self._lr = lr
        for group in self.param_groups:
            group["lr"] = lr * group["lr_scale"]

    def load_state_dict(
        self, state_dict: dict[str, Any], optimizer_overrides: dict[str, Any] | None = None
    ) -> None:
        """Load the moments; learning rate, weight decay and so on keep this run's settings."""
        current = [
            {key: value for key, value in group.items() if key != "params"}
            for group in self.param_groups
        ]
        self.optimizer.load_state_dict(state_dict)
        for group, settings in zip(self.param_groups, current, strict=True):
            group.update(settings)


def _parse_betas(value: Any) -> tuple[float, float]:
    """Parse a pair of numbers, or a string such as "(0.9,0.98)" as in fairseq's presets."""
    parts = value.strip(" ()[]").split(",") if isinstance(value, str) else value
    try:
        first, second = (float(part) for part in parts)
        return first, second
    except (TypeError, ValueError):
        raise ValueError(
            f"optimizer.adam_betas={value}: must be two numbers below 1, such as (0.9,0.98)"
        ) from None
