"""The command line that starts a training: presets and user-dir found, paths made absolute."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import mae_ast
from mae_ast.hub.sources import is_path
from mae_ast.trainer import sweep

PACKAGE = Path(mae_ast.__file__).absolute().parent  # as in its __path__, links and all
NOTE = "begun_with.json"  # in a run's folder
# Overrides that hold a path: hydra changes the working folder before they are read.
PATH_KEYS = (
    *("task.data", "hydra.run.dir", "checkpoint.save_dir", "checkpoint.restore_file"),
    *("common.tensorboard_logdir", "task.probe_data", "hydra.sweep.dir"),
)
# Overrides that hold a path, or the name of a model elsewhere.
SOURCE_KEYS = (
    *("model.checkpoint", "model.architecture_of", "model.encoder_weights"),
    "checkpoint.finetune_from_model",
)


def config_dir() -> Path:
    """The presets: inside an installed package, beside it in a checkout."""
    installed = PACKAGE / "config"
    return installed if installed.is_dir() else PACKAGE.parent / "config"


def preset_names(kind: str) -> list[str]:
    """Return the names of the presets of a kind, "pretrain" or "finetune"."""
    return sorted(path.stem for path in (config_dir() / kind).glob("*.yaml"))


def find_preset(config: str, kind: str) -> Path:
    """Return the YAML file of a preset.

    Args:
        config: name of a preset or path of a YAML file; empty if missing.
        kind: kind of the preset, "pretrain" or "finetune".

    Raises:
        ValueError: there is no such preset, it is of the other kind, or ``config`` is empty.
    """
    known = ", ".join(preset_names(kind))
    if not config:
        raise ValueError(f"--config is missing; give a preset ({known}) or a YAML file")
    is_path = config.endswith(".yaml")
    preset = Path(config) if is_path else config_dir() / kind / f"{config}.yaml"
    if preset.is_file():
        return preset
    wanted, other = "pretraining", "fine-tuning"
    if kind == "finetune":
        wanted, other = other, wanted
    if config in preset_names("pretrain" if kind == "finetune" else "finetune"):
        raise ValueError(
            f"--config {config}: is a preset for {other}; those for {wanted} are {known}"
        )
    raise ValueError(f"--config {config}: no such preset or file; presets are {known}")


def module_command(name: str) -> list[str]:
    """Return the command line that runs a module of this package.

    Nothing in the working directory shadows its imports or those of its child processes.
    A checkout that this package is imported from stays on the path, since it need not be installed.
    """
    safe = () if PACKAGE.parent == Path.cwd() else ("-P",)
    return [sys.executable, *safe, "-m", name]


def train_command(
    data: Path, config: str, out: Path, overrides: list[str], kind: str = "pretrain"
) -> list[str]:
    """Return the command line of a training process.

    Args:
        data: folder of the manifests.
        config: a preset's name or a YAML file's path; empty: not given.
        out: folder of the run; of a sweep, the parent of its jobs' folders.
        overrides: for hydra, and its options, in any order; relative paths are made absolute.
        kind: of the preset, "pretrain" or "finetune".

    Raises:
        ValueError: there is no such preset, or none is given.
    """
    preset = find_preset(config, kind)
    is_multirun = sweep.is_multirun(overrides)
    options, settings = sweep.split_options(overrides)
    settings = [_absolute(override, is_multirun) for override in settings]
    folders = [f"hydra.run.dir={_quoted(out.resolve())}"]
    if is_multirun:
        folders += [
            f"hydra.sweep.dir={_quoted(out.resolve())}",
            f"hydra.sweep.subdir={sweep.subdir(settings)}",
        ]
    return [
        *module_command("mae_ast.launch"),
        *options,
        *("--config-dir", str(preset.resolve().parent), "--config-name", preset.stem),
        f"common.user_dir={_quoted(PACKAGE)}",
        f"task.data={_quoted(data.resolve())}",
        *folders,
        *settings,
    ]


def begun_with(data: Path, config: str, checkpoint: str | None = None) -> dict[str, str]:
    """What a run is, whatever its further settings: its data, preset, and where it starts."""
    preset = str(Path(config).resolve()) if config.endswith(".yaml") else config
    return {
        "data": str(data.resolve()),
        "config": preset,
        **({} if checkpoint is None else {"checkpoint": _source(checkpoint)}),
    }


def start_of(checkpoint: str, random_weights: bool) -> list[str]:
    """Overrides that say where fine-tuning starts; a preset may name a start of its own.

    Args:
        checkpoint: of which network.
        random_weights: that network, not pretrained.
    """
    if random_weights:
        return ["model.checkpoint=null", f"model.architecture_of={checkpoint}"]
    return [f"model.checkpoint={checkpoint}"]


def _absolute(override: str, is_multirun: bool = False) -> str:
    key, equals, value = override.partition("=")
    if is_multirun and _is_path(key) and re.fullmatch(r"[^'\"\[({]+,[^'\"\[({]+", value):
        return f"{key}=" + ",".join(
            _absolute(f"{key}={each.strip()}").removeprefix(f"{key}=") for each in value.split(",")
        )
    source = value.strip("\"'")
    path = Path(source).expanduser()
    if key.lstrip("+") in PATH_KEYS and equals and value not in ("null", "checkpoint_last.pt"):
        return f"{key}={_quoted(path.resolve())}"
    if key.lstrip("+") in SOURCE_KEYS and equals and value != "null":
        return f"{key}={_quoted(_source(source))}"
    return override


def _is_path(key: str) -> bool:
    return key.lstrip("+") in (*PATH_KEYS, *SOURCE_KEYS)


def _source(source: str) -> str:
    """A model's file or folder made absolute, even if missing, or its name elsewhere."""
    path = Path(source).expanduser()
    return str(path.resolve()) if path.exists() or is_path(source) else source


def _quoted(path: Path | str) -> str:
    """As hydra's grammar wants a path with spaces, commas or brackets."""
    escaped = str(path).replace("\\", "\\\\").replace("'", "\\'")
    return f"'{escaped}'"
