"""Build the command line that starts a run, with the preset's folder and absolute paths."""

from __future__ import annotations

import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import mae_ast
from mae_ast.hub.sources import is_path
from mae_ast.trainer import sweep

Data = Path | Sequence[Path]  # one data folder, or several

PACKAGE = Path(mae_ast.__file__).absolute().parent  # links unresolved, as in its __path__
NOTE = "begun_with.json"  # in a run's folder
OWN_DATA_PRESET = "own"  # of fine-tuning; some of its settings follow from the data
# Overrides that hold a path: hydra changes the working folder before they are read.
PATH_KEYS = (
    *("task.data", "hydra.run.dir", "checkpoint.save_dir", "checkpoint.restore_file"),
    *("common.tensorboard_logdir", "task.probe_data", "hydra.sweep.dir"),
)
# Overrides that hold a path or a model's name (a released model, a URL, a hub ID).
SOURCE_KEYS = (
    *("model.checkpoint", "model.architecture_of", "model.encoder_weights"),
    "checkpoint.finetune_from_model",
)


def config_dir() -> Path:
    """Return the folder of the presets: in the installed package, or beside it in a checkout."""
    installed = PACKAGE / "config"
    return installed if installed.is_dir() else PACKAGE.parent / "config"


def preset_names(kind: str) -> list[str]:
    """Return the names of the presets of a kind, "pretrain" or "finetune"."""
    return sorted(path.stem for path in (config_dir() / kind).glob("*.yaml"))


def find_preset(config: str, kind: str) -> Path:
    """Return the YAML file of a preset.

    Args:
        config: name of a preset or path of a YAML file.
        kind: kind of the preset, "pretrain" or "finetune".

    Raises:
        ValueError: there is no such preset, or it is of the other kind.
    """
    known = ", ".join(preset_names(kind))
    is_file = config.endswith(".yaml")
    if is_file and Path(config).is_file():
        return Path(config)
    if config in preset_names(kind):
        return config_dir() / kind / f"{config}.yaml"
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

    ``-P`` keeps files in the working directory from shadowing the imports of the module and of its
    child processes. It is omitted in the checkout that this package is imported from, which need
    not be installed.
    """
    safe = () if PACKAGE.parent == Path.cwd() else ("-P",)
    return [sys.executable, *safe, "-m", name]


def train_command(
    data: Data, config: str, out: Path, overrides: list[str], kind: str = "pretrain"
) -> list[str]:
    """Return the command line of a training process.

    Args:
        data: folder of the manifests, or several.
        config: name of a preset or path of a YAML file.
        out: folder of the run; for a sweep, the parent of the jobs' folders.
        overrides: hydra's overrides and options, in any order; relative paths are made absolute.
        kind: kind of the preset, "pretrain" or "finetune".

    Raises:
        ValueError: there is no such preset, or a file is invalid.
    """
    preset = find_preset(config, kind)
    is_multirun = sweep.is_multirun(overrides)
    options, settings = sweep.split_options(overrides)
    settings = [_absolute(override, is_multirun) for override in settings]
    search_path = _search_path(preset, config_dir() / kind, settings)
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
        f"task.data={_data(data)}",
        *folders,
        *search_path,
        *settings,
    ]


def _search_path(preset: Path, parts: Path, settings: list[str]) -> list[str]:
    """Return the override that lets a file of the user's own list the parts of this package."""
    if preset.resolve().parent == parts.resolve():
        return []
    from mae_ast.trainer.presets import SEARCH_PATH, has_search_path, search_path_of

    if search_path_of(settings) or has_search_path(preset):
        return []
    return [f"{SEARCH_PATH}[{_quoted(f'file://{parts}')}]"]


def run_identity(data: Data, config: str, checkpoint: str | None = None) -> dict[str, Any]:
    """Return the settings that identify a run: data, preset and initial checkpoint."""
    preset = str(Path(config).resolve()) if config.endswith(".yaml") else config
    folders = [str(folder.resolve()) for folder in _folders(data)]
    return {
        "data": folders[0] if len(folders) == 1 else folders,
        "config": preset,
        **({} if checkpoint is None else {"checkpoint": _source(checkpoint)}),
    }


def initial_weights(checkpoint: str, random_weights: bool) -> list[str]:
    """Return the overrides that initialise fine-tuning; they replace those of the preset.

    Args:
        checkpoint: checkpoint that gives the architecture and the weights.
        random_weights: use its architecture only, with random weights.
    """
    if random_weights:
        return ["model.checkpoint=null", f"model.architecture_of={checkpoint}"]
    return [f"model.checkpoint={checkpoint}"]


def _folders(data: Data) -> Sequence[Path]:
    return [data] if isinstance(data, Path) else data


def _data(data: Data) -> str:
    """Return a value of ``task.data`` in hydra's grammar, with absolute paths."""
    quoted = [_quoted(folder.resolve()) for folder in _folders(data)]
    return quoted[0] if len(quoted) == 1 else f"[{','.join(quoted)}]"


def _absolute(override: str, is_multirun: bool = False) -> str:
    key, equals, value = override.partition("=")
    if is_multirun and _is_path(key) and re.fullmatch(r"[^'\"\[({]+,[^'\"\[({]+", value):
        return f"{key}=" + ",".join(
            _absolute(f"{key}={each.strip()}").removeprefix(f"{key}=") for each in value.split(",")
        )
    if key.lstrip("+") == "task.data" and value.startswith("["):
        return override  # the task makes the paths of a list absolute
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
    """Make the path of a model absolute, even if it does not exist; return a name unchanged."""
    path = Path(source).expanduser()
    return str(path.resolve()) if path.exists() or is_path(source) else source


def _quoted(path: Path | str) -> str:
    """Quote a path for hydra's grammar, for spaces, commas and brackets."""
    escaped = str(path).replace("\\", "\\\\").replace("'", "\\'")
    return f"'{escaped}'"
