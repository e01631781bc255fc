"""Run s3prl's unmodified ``run_downstream`` with our upstream and the settings of the paper.

A run folder holds s3prl's files (``states-*.ckpt``, ``dev-best.ckpt``, ``log.log``) and
``run.json``, which records the settings of the run. Calling :func:`run` again with the same
arguments resumes it from its last saved step.
"""

from __future__ import annotations

import argparse
import ast
import glob
import os
from collections.abc import Mapping
from contextlib import suppress
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

import torch
import yaml

import mae_ast
from mae_ast.console import require
from mae_ast.core.io.near_files import suggestion
from mae_ast.core.io.settings_note import assert_same_as_note, read_note, write_note
from mae_ast.hub.sources import is_path
from mae_ast.superb.environment import atomic_saves, command_line, patched_s3prl
from mae_ast.superb.tasks import TASKS, Task

PACKAGE = Path(mae_ast.__file__).resolve().parent
UPSTREAMS = {"time_steps": "mae_ast_local", "tokens": "mae_ast_local_tokens"}  # by layout
RUN_FILE = "run.json"
BEFORE_LAYOUTS = {"layout": "time_steps"}  # of runs that record no layout
ADVICE = "choose another --out"
S3PRL_CONFIGS = "s3prl/downstream/NAME/config.yaml of github.com/s3prl/s3prl"
MAX_SAVE_RATIO = 10  # maximum ratio of the configured interval to the one that is used


def config_dir() -> Path:
    """Return the folder of the task settings, in the installed package or in the checkout."""
    installed = PACKAGE / "superb_config"
    return installed if installed.is_dir() else PACKAGE.parent / "s3prl" / "config"


def run(
    task_name: str,
    checkpoint: str,
    data: Path | None,
    out: Path,
    mode: str,
    steps: int | None,
    fold: int,
    device: str | None,
    arguments: list[str],
    layout: str,
) -> None:
    """Train, resume training, or evaluate.

    Args:
        task_name: ks, sid, er, or any downstream of s3prl.
        checkpoint: checkpoint to start from: any argument of :func:`mae_ast.load`.
        data: folder of the task's data; ``None``: the downstream's config names it.
        out: run folder.
        mode: "train" or "evaluate".
        steps: total number of training steps; default: as in the paper.
        fold: session of IEMOCAP used as test set, 1 to 5.
        device: device for s3prl; default: cuda if available.
        arguments: further arguments of s3prl's ``run_downstream``.
        layout: layout of :mod:`mae_ast.superb.expert`, "time_steps" or "tokens".

    Raises:
        FileNotFoundError: data or the checkpoint to evaluate is missing.
        ValueError: arguments are invalid, or differ from those of the run in ``out``.
    """
    require("s3prl.run_downstream")  # a folder named s3prl, such as ours, is a package without it
    out = _checked_folder(out)
    task = TASKS.get(task_name) or _other_task(task_name)
    checkpoint = _absolute(checkpoint)
    ours, rest = _split(arguments)
    recorded = _recorded_run(out)
    settings = _settings(task_name, ours, recorded, steps)
    current = {"task": task_name, "checkpoint": checkpoint, "fold": fold, "layout": layout}
    if mode == "train":
        current |= {"arguments": rest, "config": settings.own_file}
    if recorded:
        assert_same_as_note(out / RUN_FILE, current, ADVICE, absent=BEFORE_LAYOUTS)
    upstream = UPSTREAMS[layout]
    overrides = {
        **{"args.expdir": str(out), "args.upstream_ckpt": checkpoint},
        **_intervals(settings.config["runner"]),
        **_datarc(task_name, task, data, out, fold, settings.config),
    }
    command = [
        *("-m", mode, *_experiment(mode, task, upstream, checkpoint, out, settings.file)),
        *("--device", device or ("cuda" if torch.cuda.is_available() else "cpu")),
        *(*rest, "-o", _joined(settings.override, overrides)),
    ]
    with patched_s3prl(upstream), atomic_saves(), command_line(command):
        from s3prl.run_downstream import main

        task.prepare(settings.config["downstream_expert"]["datarc"], out, mode == "train")
        if mode == "train":
            write_note(out / RUN_FILE, {**current, "override": settings.override})
        main()


def _checked_folder(out: Path) -> Path:
    out = out.resolve()
    if glob.escape(str(out)) != str(out):
        raise ValueError(
            f"{out}: s3prl does not find its checkpoints in a folder with [, ], * or ? in its "
            "name; choose another --out"
        )
    return out


def _absolute(checkpoint: str) -> str:
    """Make the path of a checkpoint absolute; return a name or URL unchanged."""
    if os.path.exists(checkpoint):
        return os.path.abspath(checkpoint)
    if is_path(checkpoint):
        raise FileNotFoundError(f"{checkpoint}: no such checkpoint{suggestion(Path(checkpoint))}")
    return checkpoint


def _other_task(name: str) -> Task:
    if "." in name or find_spec(f"s3prl.downstream.{name}") is None:
        raise ValueError(
            f"{name}: no such task; choose from {', '.join(TASKS)} or a downstream of s3prl"
        )

    def locate(data: Path, out: Path) -> dict[str, Any]:
        raise ValueError(
            f"--data is not supported for {name}; set its data folder with "
            "-- -o config.downstream_expert.datarc.KEY=PATH"
        )

    return Task(name, "hidden_states", locate)


def _split(arguments: list[str]) -> tuple[argparse.Namespace, list[str]]:
    """Split arguments of s3prl into those that are parsed here and the rest."""
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument("-c", "--config")
    parser.add_argument("-o", "--override", default="")
    return parser.parse_known_args(arguments)


class _Settings(NamedTuple):
    """Settings of a task.

    Args:
        own_file: YAML file given by the user, if any.
        file: YAML file that is used.
        override: s3prl's ``-o`` given by the user.
        config: content of ``file``, overridden.
    """

    own_file: str | None
    file: str
    override: str
    config: dict[str, Any]


def _settings(
    task_name: str, ours: argparse.Namespace, recorded: Mapping[str, Any], steps: int | None
) -> _Settings:
    """Return the settings given now or in the recorded run, else those of the paper."""
    own_file = os.path.abspath(ours.config) if ours.config else recorded.get("config")
    path = Path(own_file or config_dir() / f"{task_name}.yaml")
    if not path.is_file():
        raise FileNotFoundError(
            f"{path}: no such file; give the settings of {task_name} with -- -c FILE; those of "
            f"s3prl, which are not part of its wheel, are {S3PRL_CONFIGS}"
        )
    config = yaml.safe_load(path.read_text(encoding="utf-8"))
    if not isinstance(config, dict) or "runner" not in config:
        raise ValueError(f"{path}: has no 'runner', which s3prl needs, as in {S3PRL_CONFIGS}")
    config.setdefault("downstream_expert", {}).setdefault("datarc", {})
    override = ours.override or recorded.get("override") or ""
    _override(config, override)
    if steps is not None:
        config["runner"]["total_steps"] = steps
    return _Settings(own_file, str(path), override, config)


def _override(config: dict[str, Any], text: str) -> None:
    """Apply an override to a config as s3prl's ``-o`` does: ``config.a.b=1,,config.c='x'``."""
    for option in filter(None, map(str.strip, text.split(",,"))):
        key, equals, value = (part.strip() for part in option.partition("="))
        if not equals or "=" in value:
            raise ValueError(f"-o {option}: expected config.KEY.KEY=VALUE, with one '='")
        first, *parents, last = key.split(".")
        if first == "config":
            target = config
            for parent in parents:
                target = target.setdefault(parent, {})
            target[last] = value
            with suppress(ValueError, SyntaxError):
                target[last] = ast.literal_eval(value)


def _joined(given: str, overrides: Mapping[str, object]) -> str:
    """Join overrides into one ``-o``; values are Python literals, which support any path."""
    ours = (
        f"{key}={value!r}".replace("=", "\x00", 1)
        .replace("=", "\\x3d")
        .replace(",", "\\x2c")
        .replace("\x00", "=")
        for key, value in overrides.items()
    )
    return ",,".join([*filter(None, [given.strip()]), *ours])


def _intervals(runner: Mapping[str, Any]) -> dict[str, int]:
    """Return intervals of saving and evaluation that divide the number of steps.

    s3prl only saves at multiples of ``save_step``: later steps would be lost.
    """
    total = int(runner["total_steps"])
    found = {"config.runner.total_steps": total}
    for name in ("save_step", "eval_step"):
        interval = int(runner[name])
        if total < 1 or interval < 1:
            raise ValueError(f"{total} steps with {name}={interval}: both must be at least 1")
        divisor = max(step for step in range(1, min(interval, total) + 1) if total % step == 0)
        if divisor * MAX_SAVE_RATIO < min(interval, total):
            near = max(1, round(total / interval)) * interval
            raise ValueError(
                f"--steps {total} has no divisor slightly below {name}={interval}, so that the "
                f"last step would not be saved; use {near} steps, or set {name} with -- -o"
            )
        found[f"config.runner.{name}"] = divisor
    return found


def _datarc(
    task_name: str, task: Task, data: Path | None, out: Path, fold: int, config: dict[str, Any]
) -> dict[str, object]:
    """Return overrides of the location and reading of data; add them to ``config``, too."""
    datarc = config["downstream_expert"]["datarc"]
    found: dict[str, object] = {}
    if data is not None:
        found |= task.locate(data.resolve(), out)
    elif task_name in TASKS:
        raise ValueError(f"{task_name} needs --data, the folder of its data")
    if task_name == "er":
        found["test_fold"] = f"fold{fold}"
    if "num_workers" in datarc:  # more workers than cores do not help
        found["num_workers"] = min(int(datarc["num_workers"]), os.cpu_count() or 1)
    datarc |= found
    return {f"config.downstream_expert.datarc.{key}": value for key, value in found.items()}


def _recorded_run(out: Path) -> dict[str, Any]:
    """Read the settings of the run; empty if there is no checkpoint to resume from."""
    path = out / RUN_FILE
    return read_note(path, ADVICE) if path.is_file() and any(out.glob("*.ckpt")) else {}


def _experiment(
    mode: str, task: Task, upstream: str, checkpoint: str, out: Path, preset: str
) -> list[str]:
    """Return arguments for a new experiment, or the checkpoint to resume or evaluate."""
    states = sorted(out.glob("states-*.ckpt"), key=lambda path: int(path.stem.rpartition("-")[2]))
    if mode == "evaluate":
        best = out / "dev-best.ckpt"
        if best.is_file():
            states.append(best)
        elif states:  # the dev score never rose above its initial value
            print(f"{best}: no such file; evaluating the last saved step, {states[-1].name}")
        else:
            raise FileNotFoundError(f"{out}: nothing to evaluate yet; train first")
    if states:
        return ["-e", str(states[-1])]
    return [
        *("-d", task.downstream, "-c", preset, "-p", str(out)),
        *("-u", upstream, "-k", checkpoint, "-s", task.features, "-f"),
    ]
