"""fairseq optimizer ``mae_ast_adamw``: fused AdamW with per-parameter learning rates.

Two attributes of a parameter are honoured: ``p.lr_scale`` multiplies its learning rate, and
``p.no_decay`` exempts it from weight decay.
"""

# No postponed annotations: fairseq reads the field types at run time.
from collections.abc import Iterable
from dataclasses import dataclass, field

import torch
from fairseq.optim import register_optimizer

from mae_ast.optim.base import AdamSettings, FusedOptimizer, group_settings

MARKED_OPTIMIZER, MARKS = "mae_ast_adamw", ("lr_scale", "no_decay")


@dataclass
class AdamWSettings(AdamSettings):
    """Settings under ``optimizer.*``."""

    weight_decay: float = field(
        default=0.0,
        metadata={
            "help": "decoupled weight decay coefficient, for the weight matrices of linear layers "
            "only; 0: none"
        },
    )


@register_optimizer(MARKED_OPTIMIZER, dataclass=AdamWSettings)
class AdamW(FusedOptimizer):
    """AdamW (Loshchilov and Hutter 2019, arXiv 1711.05101), fused into one kernel per group."""

    def __init__(self, cfg: AdamWSettings, params: Iterable[torch.nn.Parameter]) -> None:
        super().__init__(cfg)
        groups: dict[tuple[float, bool], list[torch.nn.Parameter]] = {}
        for p in params:
            key = (getattr(p, "lr_scale", 1.0), getattr(p, "no_decay", False))
            groups.setdefault(key, []).append(p)
        common = group_settings(cfg)
        self._lr: float = common["lr"]
        settings = [
            {
                "params": members,
                "lr": self._lr * scale,
                "lr_scale": scale,
                "weight_decay": 0.0 if no_decay else cfg.weight_decay,
            }
            for (scale, no_decay), members in groups.items()
        ]
        self._optimizer = torch.optim.AdamW(settings, fused=True, **common)

    def get_lr(self) -> float:
        """Return the learning rate of parameters with ``lr_scale`` 1."""
        return self._lr

    def set_lr(self, lr: float) -> None:
        """Set the learning rate; each group gets it times its ``lr_scale``."""
        self._lr = lr
        for group in self.param_groups:
            group["lr"] = lr * group["lr_scale"]
