"""s3prl's own ``run_downstream``, unmodified, with our upstream, the paper's settings and data.

A run folder holds s3prl's files (``states-*.ckpt``, ``dev-best.ckpt``, ``log.log``) and
``run.json``, which says what the run is. The same call again goes on from its last step.
"""

from __future__ import annotations

import argparse
import ast
import glob
import json
import os
from collections.abc import Mapping
from contextlib import suppress
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
import yaml

import mae_ast
from mae_ast.core.io.atomic import atomic_write
from mae_ast.core.io.near_files import suggestion
from mae_ast.hub.sources import is_path
from mae_ast.superb.environment import bridged, command_line, whole_files
from mae_ast.superb.tasks import TASKS, Task

PACKAGE = Path(mae_ast.__file__).resolve().parent
UPSTREAMS = {"time_steps": "mae_ast_local", "tokens": "mae_ast_local_tokens"}  # by layout
NOTE = "run.json"
S3PRL_CONFIGS = "s3prl/downstream/NAME/config.yaml of github.com/s3prl/s3prl"
FINEST = 10  # a step is saved at most so many times more often than configured


def config_dir() -> Path:
    """The tasks' settings: inside an installed package, beside it in a checkout."""
    installed = PACKAGE / "superb_config"
    return installed if installed.is_dir() else PACKAGE.parent / "s3prl" / "config"


def run(
    task_name: str,
    checkpoint: str,
    data: Path | None,
    out: Path,
    mode: str = "train",
    steps: int | None = None,
    fold: int = 1,
    device: str | None = None,
    arguments: list[str] | None = None,
    layout: str = "time_steps",
) -> None:
    """Train, resume training, or evaluate.

    Args:
        task_name: ks, sid, er, or any downstream of s3prl.
        checkpoint: the model to start from: whatever :func:`mae_ast.load` takes.
        data: the task's data; ``None`` for other downstreams, which say so themselves.
        out: the run's folder.
        mode: "train" or "evaluate".
        steps: of training, all in all; default: the paper's.
        fold: the session of IEMOCAP that is the test set, 1 to 5.
        device: for s3prl; default: a GPU where there is one.
        arguments: further ones, for s3prl's ``run_downstream``.
        layout: of the features, "time_steps" or "tokens", see :mod:`mae_ast.superb.expert`.

    Raises:
        FileNotFoundError: data or the checkpoint to evaluate is missing.
        ValueError: something does not fit together; the message says what would.
    """
    _check_s3prl()
    out = out.resolve()
    if glob.escape(str(out)) != str(out):
        raise ValueError(
            f"{out}: [, ], * and ? in the name keep s3prl from finding, and deleting, its old "
            "checkpoints; choose another --out"
        )
    if layout not in UPSTREAMS:
        raise ValueError(f"--layout {layout}; it is one of {', '.join(UPSTREAMS)}")
    task = TASKS.get(task_name) or _other_task(task_name)
    if os.path.exists(checkpoint):
        checkpoint = os.path.abspath(checkpoint)
    elif is_path(checkpoint):
        raise FileNotFoundError(f"{checkpoint}: no such checkpoint{suggestion(Path(checkpoint))}")
    ours, rest = _split(arguments or [])
    noted = _noted(out)
    own_config = os.path.abspath(ours.config) if ours.config else noted.get("config")
    preset = own_config or str(config_dir() / f"{task_name}.yaml")
    given = ours.override or noted.get("override") or ""
    config = _config(task_name, Path(preset))
    _override(config, given)
    if steps is not None:
        config["runner"]["total_steps"] = steps

    note = {"task": task_name, "checkpoint": checkpoint, "fold": fold, "layout": layout}
    if mode == "train":
        note |= {"arguments": rest, "config": own_config}
    _check_same(noted, note, out)
    overrides = {
        "args.expdir": str(out),
        "args.upstream_ckpt": checkpoint,
        **_intervals(config["runner"]),
        **_datarc(task_name, task, data, out, fold, config),
    }
    command = [
        *("-m", mode),
        *_experiment(mode, task, UPSTREAMS[layout], checkpoint, out, preset),
        *("--device", device or ("cuda" if torch.cuda.is_available() else "cpu")),
        *rest,
        *("-o", _joined(given, overrides)),
    ]
    with bridged(UPSTREAMS[layout]), whole_files(), command_line(command):
        from s3prl.run_downstream import main

        task.prepare(config["downstream_expert"]["datarc"], out, mode == "train")
        if mode == "train":
            out.mkdir(parents=True, exist_ok=True)
            with atomic_write(out / NOTE) as part:
                part.write_text(json.dumps({**note, "override": given}, indent=1))
        main()


def _check_s3prl() -> None:
    # A folder named s3prl, such as ours, passes for the package, but not for its modules.
    if find_spec("s3prl") is None or find_spec("s3prl.run_downstream") is None:
        raise ValueError("s3prl is not installed: pip install 'mae-ast[s3prl]'")


def _other_task(name: str) -> Task:
    if "." in name or find_spec(f"s3prl.downstream.{name}") is None:
        raise ValueError(f"{name}: no such task; {', '.join(TASKS)} or a downstream of s3prl")

    def locate(data: Path, out: Path) -> dict[str, Any]:
        raise ValueError(
            f"--data: where {name} has its data is for its config to say; "
            "give -- -o config.downstream_expert.datarc.KEY=PATH"
        )

    return Task(name, "hidden_states", locate)


def _split(arguments: list[str]) -> tuple[argparse.Namespace, list[str]]:
    """Those of s3prl's arguments that are looked into here, and the rest."""
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument("-c", "--config")
    parser.add_argument("-o", "--override", default="")
    return parser.parse_known_args(arguments)


def _config(task_name: str, path: Path) -> dict[str, Any]:
    if not path.is_file():
        raise FileNotFoundError(
            f"{path}: no such file; the settings of {task_name} come from -- -c FILE, and s3prl's "
            f"own, which its wheel lacks, are {S3PRL_CONFIGS}"
        )
    config = yaml.safe_load(path.read_text(encoding="utf-8"))
    if not isinstance(config, dict) or "runner" not in config:
        raise ValueError(f"{path}: has no 'runner'; s3prl wants one as in {S3PRL_CONFIGS}")
    config.setdefault("downstream_expert", {}).setdefault("datarc", {})
    return config


def _override(config: dict[str, Any], text: str) -> None:
    """Change a config as s3prl's ``-o`` will: ``config.a.b=1,,config.c='x'``."""
    for option in filter(None, map(str.strip, text.split(",,"))):
        key, equals, value = (part.strip() for part in option.partition("="))
        if not equals or "=" in value:
            raise ValueError(f"-o {option}: config.KEY.KEY=VALUE is wanted, with one '='")
        first, *parents, last = key.split(".")
        if first == "config":
            target = config
            for parent in parents:
                target = target.setdefault(parent, {})
            target[last] = value
            with suppress(ValueError, SyntaxError):
                target[last] = ast.literal_eval(value)


def _joined(given: str, overrides: Mapping[str, object]) -> str:
    """One ``-o``; its values are Python, so that any path can be written."""
    ours = (
        f"{key}={value!r}".replace("=", "\x00", 1)
        .replace("=", "\\x3d")
        .replace(",", "\\x2c")
        .replace("\x00", "=")
        for key, value in overrides.items()
    )
    return ",,".join([*filter(None, [given.strip()]), *ours])


def _intervals(runner: Mapping[str, Any]) -> dict[str, int]:
    """Saving and evaluating such that the last step is among the steps when it is done.

    s3prl saves at multiples of ``save_step`` only: what comes after the last one would be lost.
    """
    total = int(runner["total_steps"])
    found = {"config.runner.total_steps": total}
    for name in ("save_step", "eval_step"):
        wanted = int(runner[name])
        if total < 1 or wanted < 1:
            raise ValueError(f"{total} steps with {name}={wanted}: both are at least 1")
        steps = max(step for step in range(1, min(wanted, total) + 1) if total % step == 0)
        if steps * FINEST < min(wanted, total):
            near = max(1, round(total / wanted)) * wanted
            raise ValueError(
                f"--steps {total} has no divisor close below {name}={wanted}, so that the last "
                f"step would not be saved; take {near}, or another {name} by -- -o"
            )
        found[f"config.runner.{name}"] = steps
    return found


def _datarc(
    task_name: str, task: Task, data: Path | None, out: Path, fold: int, config: dict[str, Any]
) -> dict[str, object]:
    """Overrides of where the data is and how it is read; entered into ``config``, too."""
    datarc = config["downstream_expert"]["datarc"]
    found: dict[str, object] = {}
    if data is not None:
        found |= task.locate(data.resolve(), out)
    elif task_name in TASKS:
        raise ValueError(f"{task_name} needs --data, the folder of its data")
    if task_name == "er":
        found["test_fold"] = f"fold{fold}"
    if "num_workers" in datarc:  # more than there are cores only wait for one another
        found["num_workers"] = min(int(datarc["num_workers"]), os.cpu_count() or 1)
    datarc |= found
    return {f"config.downstream_expert.datarc.{key}": value for key, value in found.items()}


def _noted(out: Path) -> dict[str, Any]:
    """What the run is, once there is something to go on with."""
    note = out / NOTE
    if not note.is_file() or not any(out.glob("*.ckpt")):
        return {}
    try:
        return {"layout": "time_steps", **json.loads(note.read_text())}  # once the only layout
    except (TypeError, ValueError) as error:
        raise ValueError(f"{note}: is damaged; choose another --out") from error


def _check_same(noted: Mapping[str, Any], wanted: Mapping[str, Any], out: Path) -> None:
    """Refuse to go on with another run: s3prl would, with the old settings."""
    for key, value in wanted.items():
        if noted and noted[key] != value:
            raise ValueError(
                f"{out}: holds a run with {key} {noted[key]!r}, not {value!r}; choose another --out"
            )


def _experiment(
    mode: str, task: Task, upstream: str, checkpoint: str, out: Path, preset: str
) -> list[str]:
    """Which experiment: a checkpoint of it, from which s3prl takes all settings, or a new one."""
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
