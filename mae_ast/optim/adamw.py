"""fairseq optimizer ``mae_ast_adamw``: torch's AdamW, with rates that differ by parameter.

Parameters may be marked: ``p.lr_scale`` multiplies the learning rate, ``p.no_decay`` frees from
weight decay.
"""

# No postponed annotations here: fairseq reads the types of the fields.
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
    """``optimizer.*``."""

    adam_betas: Any = field(
        default=(0.9, 0.999), metadata={"help": "two rates, such as (0.9,0.98)"}
    )
    adam_eps: float = field(default=1e-8, metadata={"help": "added to the denominator"})
    weight_decay: float = field(default=0.0, metadata={"help": "decoupled from the gradient"})
    lr: Any = field(default=II("optimization.lr"))


@register_optimizer(MARKED_OPTIMIZER, dataclass=AdamWConfig)
class AdamW(FairseqOptimizer):  # type: ignore[misc]
    """AdamW (Loshchilov and Hutter 2019, arXiv 1711.05101) in one kernel a group."""

    def __init__(self, cfg: AdamWConfig, params: Iterable[torch.nn.Parameter]) -> None:
        super().__init__(cfg)
        groups: dict[tuple[float, bool], list[torch.nn.Parameter]] = {}
        for p in params:
            key = (getattr(p, "lr_scale", 1.0), getattr(p, "no_decay", False))
            groups.setdefault(key, []).append(p)
        self._lr = float(cfg.lr[0])
        self._optimizer = torch.optim.AdamW(
            [
                {
                    "params": members,
                    "lr": self._lr * scale,
                    "lr_scale": scale,
                    "weight_decay": 0.0 if no_decay else cfg.weight_decay,
                }
                for (scale, no_decay), members in groups.items()
            ],
            betas=_betas(cfg.adam_betas),
            eps=cfg.adam_eps,
            fused=True,
        )

    @property
    def optimizer_config(self) -> dict[str, Any]:
        """Nothing to override after loading: see :meth:`load_state_dict`."""
        return {}

    def get_lr(self) -> float:
        """The rate of parameters without a mark."""
        return self._lr

    def set_lr(self, lr: float) -> None:
        """Set the rate; each group gets its multiple."""
        self._lr = lr
        for group in self.param_groups:
            group["lr"] = lr * group["lr_scale"]

    def load_state_dict(
        self, state_dict: dict[str, Any], optimizer_overrides: dict[str, Any] | None = None
    ) -> None:
        """Take up moments; rates, decay and the like are those of this run's settings."""
        own = [
            {key: value for key, value in group.items() if key != "params"}
            for group in self.param_groups
        ]
        self.optimizer.load_state_dict(state_dict)
        for group, settings in zip(self.param_groups, own, strict=True):
            group.update(settings)


def _betas(value: Any) -> tuple[float, float]:
    """Of a pair, or of the text that fairseq's presets give."""
    parts = value.strip(" ()[]").split(",") if isinstance(value, str) else value
    try:
        first, second = (float(part) for part in parts)
        return first, second
    except (TypeError, ValueError):
        raise ValueError(
            f"optimizer.adam_betas={value}; two numbers below 1, such as (0.9,0.98)"
        ) from None
