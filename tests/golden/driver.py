"""Run ``mae-ast`` commands that train, and record each update in full precision.

``python -m tests.golden.driver JOBS`` reads a JSON list of objects with

    arguments   of ``mae-ast``
    log         file for what the command prints
    record      file for one JSON object per update (``update``, ``loss``, ``gnorm``, ``masked``)
                and per validation (``valid``)
    stop_at     optional: a SIGTERM arrives during this update
    head        optional: initial weights of the classification head, as lists

fairseq prints gradient norms with three decimals, so methods of its trainer are wrapped. PyTorch
and fairseq are imported once; each job runs in a fork, because fairseq keeps global state.
"""

from __future__ import annotations

import json
import math
import os
import runpy
import signal
import sys
import traceback
from pathlib import Path
from typing import Any, NoReturn

import torch


def trunc_normal(
    tensor: torch.Tensor,
    mean: float = 0.0,
    std: float = 1.0,
    a: float = -2.0,
    b: float = 2.0,
    generator: torch.Generator | None = None,
) -> torch.Tensor:
    """Draw a truncated normal by its inverse distribution function, as PyTorch did before 2.14.

    Later versions draw other values, and take others for all that is drawn after them.
    """
    below, above = (math.erf((limit - mean) / std / math.sqrt(2)) for limit in (a, b))
    with torch.no_grad():
        tensor.uniform_(below, above, generator=generator).erfinv_()
        return tensor.mul_(std * math.sqrt(2)).add_(mean).clamp_(a, b)


def find(batch: Any, name: str) -> Any:
    """Find an entry or attribute of that name anywhere in nested batches."""
    if isinstance(batch, dict):
        children = batch
    elif hasattr(batch, "_asdict"):
        children = batch._asdict()
    elif isinstance(batch, (list, tuple)):
        children = dict(enumerate(batch))
    else:
        children = getattr(batch, "__dict__", {})
    if name in children:
        return children[name]
    found = (find(child, name) for child in children.values() if not torch.is_tensor(child))
    return next((each for each in found if each is not None), None)


def record(path: str, stop_at: int | None) -> None:
    """Wrap fairseq's trainer to write a line per update and validation."""
    import fairseq_cli.train
    from fairseq.trainer import Trainer

    norms: list[float] = []
    clip_grad_norm, train_step = Trainer.clip_grad_norm, Trainer.train_step
    get_valid_stats = fairseq_cli.train.get_valid_stats

    def write(**values: Any) -> None:
        with open(path, "a") as file:
            file.write(json.dumps(values) + "\n")

    def clip_and_record(self: Any, *args: Any, **kwargs: Any) -> Any:
        norm = clip_grad_norm(self, *args, **kwargs)
        norms.append(float(norm))
        return norm

    def step_and_record(self: Any, samples: Any, *args: Any, **kwargs: Any) -> Any:
        if self.get_num_updates() + 1 == stop_at:
            os.kill(os.getpid(), signal.SIGTERM)
        logged = train_step(self, samples, *args, **kwargs)
        ids, masked = find(samples, "id"), find(samples, "masked_ids")
        draws = {} if masked is None else dict(zip(ids.tolist(), masked.tolist(), strict=True))
        loss = float(logged["loss"])
        write(update=self.get_num_updates(), loss=loss, gnorm=norms[-1], masked=draws)
        return logged

    def stats_and_record(cfg: Any, trainer: Any, stats: dict[str, Any], *args: Any) -> Any:
        names = sorted({"loss", "accuracy"} & set(stats))
        write(valid={name: float(stats[name]) for name in names})
        return get_valid_stats(cfg, trainer, stats, *args)

    Trainer.clip_grad_norm, Trainer.train_step = clip_and_record, step_and_record
    fairseq_cli.train.get_valid_stats = stats_and_record


def fix_head(weights: dict[str, list[Any]]) -> None:
    """Start each classifier from these weights of its head.

    A head that is drawn depends on all that was drawn before it, such as an encoder's weights.
    """
    from mae_ast.core.models.classifier import Classifier

    init = Classifier.__init__

    def init_and_fix(self: Any, *args: Any, **kwargs: Any) -> None:
        init(self, *args, **kwargs)
        self.head.load_state_dict({name: torch.tensor(value) for name, value in weights.items()})

    Classifier.__init__ = init_and_fix  # type: ignore[method-assign]


def launch(program: str, command: list[str]) -> NoReturn:
    """Run ``python -m MODULE ...`` here instead of in a new interpreter, which records nothing."""
    _, _, module, *arguments = command[command.index("-m") - 1 :]
    sys.argv = [module, *arguments]
    runpy.run_module(module, run_name="__main__", alter_sys=True)
    sys.exit(0)


def run(job: dict[str, Any]) -> NoReturn:
    """Run one command in this process, which has been forked for it."""
    log = os.open(job["log"], os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(log, 1)
    os.dup2(log, 2)
    status = 1
    try:
        from mae_ast.cli.main import main

        record(job["record"], job.get("stop_at"))
        if job["head"] is not None:
            fix_head(job["head"])
        os.execv = launch  # type: ignore[assignment]
        sys.argv = ["mae-ast", *job["arguments"]]
        main()
        status = 0
    except SystemExit as end:
        status = 0 if end.code in (None, 0) else 1
        if isinstance(end.code, str):
            print(end.code, file=sys.stderr)
    except BaseException:
        traceback.print_exc()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)


def main() -> None:
    """Run the jobs up to the first that fails, and show the end of its log."""
    torch.nn.init.trunc_normal_ = trunc_normal
    import fairseq_cli.hydra_train  # noqa: F401

    import mae_ast.cli.main  # noqa: F401
    from mae_ast import plugin

    torch.set_num_threads(1)
    plugin.register()
    for job in json.loads(Path(sys.argv[1]).read_text()):
        pid = os.fork()
        if pid == 0:
            run(job)
        if os.waitpid(pid, 0)[1]:
            sys.exit(f"{job['log']}: {job['arguments']}\n{Path(job['log']).read_text()[-2000:]}")


if __name__ == "__main__":
    main()
