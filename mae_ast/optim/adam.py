"""fairseq optimizer ``mae_ast_adam``: the update of fairseq's ``adam`` in a few kernels.

With gradient g, learning rate r, betas b1 and b2, weight decay w and step t, both compute

    m = b1 m + (1 - b1) g        v = b2 v + (1 - b2) g^2
    p = p - r w p - r sqrt(1 - b2^t) / (1 - b1^t) * m / (sqrt(v) + eps)

Weight decay is decoupled and acts on all parameters, biases and layer norms included, as in the
trainings that the presets of MAE-AST and SSAST reproduce. ``mae_ast_adamw`` decays matrices only.
"""

# No postponed annotations: fairseq reads the field types at run time.
import math
from collections import defaultdict
from collections.abc import Callable, Iterable
from typing import Any

import torch
from fairseq.optim import register_optimizer
from fairseq.optim.adam import FairseqAdam
from torch import Tensor, nn

from mae_ast.optim.base import AdamSettings, FusedOptimizer, group_settings

_HALF = (torch.float16, torch.bfloat16)


@register_optimizer("mae_ast_adam", dataclass=AdamSettings)
class Adam(FusedOptimizer):
    """Adam with decoupled weight decay, as fairseq's, fused into one kernel."""

    def __init__(self, cfg: AdamSettings, params: Iterable[nn.Parameter]) -> None:
        super().__init__(cfg)
        self._optimizer = TorchAdam(params, group_settings(cfg))


# The trainer compares the names of classes before it loads moments. As the moments of both classes
# are the same, runs that either has begun resume with the other.
Adam.__name__ = FairseqAdam.__name__


class TorchAdam(torch.optim.Optimizer):
    """The update, in torch's interface, and the state of fairseq's Adam.

    The state of a parameter is ``step`` (int), ``exp_avg`` and ``exp_avg_sq``. Parameters in half
    precision have moments in float32, and are updated in float32 one after the other, so that a
    copy of one parameter exists at a time.
    """

    supports_memory_efficient_fp16 = True  # fairseq asks for both
    supports_flat_params = True

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Update all parameters that have a gradient; return what ``closure`` returns."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            together: dict[Any, list[nn.Parameter]] = defaultdict(list)
            for number, p in enumerate(group["params"]):
                if p.grad is not None:
                    step = self._count(p)
                    together[step, p.device, number if p.dtype in _HALF else p.dtype].append(p)
            for (step, *_), parameters in together.items():
                self._update(parameters, step, group)
        return loss

    def _count(self, p: nn.Parameter) -> int:
        """Count a step of a parameter, whose moments are zero at first, and return its number."""
        state, dtype = self.state[p], torch.float32 if p.dtype in _HALF else p.dtype
        if not state:
            moments = (torch.zeros_like(p, dtype=dtype) for _ in range(2))
            state["step"], state["exp_avg"], state["exp_avg_sq"] = 0, *moments
        for name in ("exp_avg", "exp_avg_sq"):  # fairseq's memory_efficient_fp16 loads to the CPU
            state[name] = state[name].to(p.device, dtype)
        state["step"] += 1
        step: int = state["step"]
        return step

    def _update(self, parameters: list[nn.Parameter], step: int, group: dict[str, Any]) -> None:
        """Update parameters of one device and dtype at the same step."""
        weights: list[Tensor] = [p.detach() for p in parameters]
        grads: Any = [p.grad for p in parameters]
        in_half = weights[0].dtype in _HALF
        if in_half:
            weights, grads = [w.float() for w in weights], [g.float() for g in grads]
        states = [self.state[p] for p in parameters]
        count = torch.full((), float(step), device=weights[0].device)  # without a copy to a GPU
        beta1, beta2 = group["betas"]
        torch._fused_adamw_(
            weights,
            grads,
            [state["exp_avg"] for state in states],
            [state["exp_avg_sq"] for state in states],
            [],
            [count] * len(weights),
            lr=group["lr"],
            beta1=beta1,
            beta2=beta2,
            weight_decay=group["weight_decay"],
            # The kernel adds it to sqrt(v / (1 - beta2^t)), fairseq's Adam to sqrt(v).
            eps=group["eps"] / math.sqrt(1 - beta2**step),
            amsgrad=False,
            maximize=False,
        )
        if in_half:
            for p, weight in zip(parameters, weights, strict=True):
                p.copy_(weight)
