"""Settings that differ between runs of a stage or, of a single run, from its preset."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

from mae_ast.report.collect import Run
from mae_ast.report.tables import Table

# Settings that follow from others, from the machine, or from the folder of the run.
_DERIVED_SECTIONS = ("job_logging_cfg", "common_eval", "generation", "eval_lm", "interactive")
_DERIVED = frozenset(
    ("common.user_dir", "optimizer.lr", "lr_scheduler.lr", "task.tensorboard_logdir")
)
NOT_SET = ""

Settings = dict[str, Any]


def settings_tables(runs: Sequence[Run]) -> list[Table]:
    """Return a table for pretraining and one for fine-tuning, as far as runs have settings.

    Rows are settings that differ between the runs; if there is one run only, from its preset. A
    table has a ``title``, ``columns`` and ``rows`` of texts.
    """
    tables = []
    for stage, is_finetuned in (("pretraining", False), ("fine-tuning", True)):
        some = [run for run in runs if run.is_finetuned == is_finetuned and run.cfg]
        if len(some) > 1:
            title, names = f"{stage}, different between runs", [run.name for run in some]
            rows = different_settings([settings_of(run.cfg) for run in some])
        elif some:
            title, names = f"{stage}, different from the preset", ["preset", some[0].name]
            if (preset := preset_of(some[0])) is not None:
                names[0] = f"preset {Path(preset).stem}"
            rows = _different_from_preset(some[0])
        else:
            continue
        tables.append({"title": title, "columns": ["setting", *names], "rows": rows})
    return tables


def different_settings(settings: Sequence[Settings]) -> list[list[str]]:
    """Return key and values, as texts, of settings that are not the same everywhere."""
    keys = sorted({key for each in settings for key in each})
    rows = [[key, *(as_text(each.get(key, NOT_SET)) for each in settings)] for key in keys]
    return [row for row in rows if len(set(row[1:])) > 1]


def preset_of(run: Run) -> str | None:
    """Return the name or path of a run's preset; ``None`` if it is not recorded.

    A run that ``mae-ast`` did not start has it in its command, as ``--config-name``.
    """
    preset = run.begun_with.get("config") or _option(run, "--config-name")
    return preset if isinstance(preset, str) else None


def settings_of(sections: Mapping[str, Any]) -> Settings:
    """Return settings by ``section.key``, without those that follow from others."""
    return {
        f"{section}.{key}": value
        for section, values in sections.items()
        if isinstance(values, Mapping) and section not in _DERIVED_SECTIONS
        for key, value in values.items()
        if f"{section}.{key}" not in _DERIVED
    }


def as_text(value: Any) -> str:
    """Return a setting as text; equal numbers give equal texts."""
    if isinstance(value, float):
        return f"{value:.10g}"
    if isinstance(value, (list, tuple)):
        return f"[{', '.join(map(as_text, value))}]"
    return "null" if value is None else str(value)


def _different_from_preset(run: Run) -> list[list[str]]:
    """Return settings that the preset or the command sets, where they differ from the preset."""
    own, preset = settings_of(run.cfg), _preset_settings(run)
    resolved = {key: value for key, value in preset.items() if not str(value).startswith("${")}
    own = {key: value for key, value in own.items() if resolved.get(key) != "???"}  # the data
    chosen = {key for key in (*resolved, *_keys_in_command(run)) if key in own}
    pairs = ({key: resolved.get(key, NOT_SET) for key in chosen}, {key: own[key] for key in chosen})
    return different_settings(pairs)


def _preset_settings(run: Run) -> Settings:
    """Return the settings of a run's preset; empty, with a note, if it cannot be read."""
    from mae_ast.trainer.command import find_preset
    from mae_ast.trainer.presets import read_valid_preset

    if (preset := preset_of(run)) is None:
        run.note("preset", "not recorded; the settings of the command are listed")
        return {}
    try:
        file = find_preset(preset, "finetune" if run.is_finetuned else "pretrain")
        return settings_of(read_valid_preset(file))
    except (ValueError, OSError) as error:
        run.note("preset", error)
        return {}


def _keys_in_command(run: Run) -> list[str]:
    """Return the keys that the first command line of a run sets."""
    words = (word for word in _command(run) if not word.startswith("-"))
    pairs = (word.lstrip("+").partition("=") for word in words)
    return [key for key, equals, _ in pairs if equals]


def _option(run: Run, name: str) -> str | None:
    """Return the value of an option of the first command line of a run."""
    for word, following in pairwise([*_command(run), ""]):
        if word == name:
            return following or None
        if word.startswith(f"{name}="):
            return word.partition("=")[2]
    return None


def _command(run: Run) -> list[str]:
    command = str(run.starts[0].get("command", "")) if run.starts else ""
    try:
        return shlex.split(command)
    except ValueError:  # a quotation without an end
        return command.split()
