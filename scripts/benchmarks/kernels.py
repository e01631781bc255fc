"""Count the kernels of an update's optimizer, fairseq's ``adam`` and ``mae_ast_adam``.

    python scripts/benchmarks/kernels.py

An update of the full-size model (MAE-AST, 12 + 2 layers of width 768) scales the gradients,
computes and clips their norm, and steps. On a GPU, the kernels that are launched are counted. On a
CPU, PyTorch's operations are counted instead, without those that only create or view a tensor.
There, an operation on all parameters counts once; on a GPU, PyTorch launches several kernels for
it, one for up to 36 parameters (for the step) or 320 blocks of 65,536 values.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable

import torch
from fairseq import optim
from omegaconf import OmegaConf
from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity, profile

from mae_ast import plugin
from mae_ast.core.models.config import MaeAstConfig
from mae_ast.core.models.mae_ast import MaeAst

OPTIMIZERS = ("adam", "mae_ast_adam")
CLIP_NORM = 10.0
WITHOUT_KERNEL = {
    f"aten::{name}" for name in ("alias", "detach", "empty", "empty_like", "to", "unbind", "view")
}


def phases(name: str, device: str) -> dict[str, Callable[[], object]]:
    """Return the phases of an update with an optimizer of that name, after a first update."""
    model = MaeAst(MaeAstConfig()).to(device)
    settings = {"_name": name, "adam_betas": "(0.9,0.98)", "adam_eps": 1e-6, "lr": [1e-4]}
    if name == "adam":
        settings["tpu"] = False
    parameters = list(model.parameters())
    optimizer = optim.build_optimizer(
        OmegaConf.create({**settings, "weight_decay": 0.01}), parameters
    )
    for p in parameters:
        p.grad = torch.full_like(p, 1e-3)
    found = {
        "scale the gradients": lambda: optimizer.multiply_grads(0.5),
        "norm and clipping": lambda: optimizer.clip_grad_norm(CLIP_NORM),
        "step": optimizer.step,
    }
    for run in found.values():
        run()
    return found


def count(run: Callable[[], object], device: str) -> int:
    """Count the kernels of a call on a GPU, or its operations on a CPU."""
    on_gpu = device == "cuda"
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if on_gpu else [])]
    with profile(activities=activities) as profiled:
        run()
        if on_gpu:
            torch.cuda.synchronize()
    events = profiled.events() or []
    if on_gpu:
        return sum(event.device_type == DeviceType.CUDA for event in events)
    return sum(
        event.name.startswith("aten::")
        and event.name not in WITHOUT_KERNEL
        and not (event.cpu_parent and event.cpu_parent.name.startswith("aten::"))
        for event in events
    )


def main() -> None:
    """Print a table of the phases of an update."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.parse_args()
    plugin.register()
    device = "cuda" if torch.cuda.is_available() else "cpu"
    counts = {
        name: {phase: count(run, device) for phase, run in phases(name, device).items()}
        for name in OPTIMIZERS
    }
    what = "kernels" if device == "cuda" else "operations"
    print(f"| {what} of an update, {device} | {' | '.join(OPTIMIZERS)} |")
    print("| --- | --- | --- |")
    for phase in counts[OPTIMIZERS[0]]:
        print(f"| {phase} | {' | '.join(str(counts[name][phase]) for name in OPTIMIZERS)} |")
    totals = (str(sum(found.values())) for found in counts.values())
    print(f"| all | {' | '.join(totals)} |")


if __name__ == "__main__":
    main()
