"""Parse hydra's options of a command line, and choose the folders of a sweep's jobs."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path

# Options of hydra that take a value; that of the last two is optional.
_WITH_VALUE = (
    *("--cfg", "-c", "--package", "-p", "--config-path", "-cp", "--config-name", "-cn"),
    *("--config-dir", "-cd", "--experimental-rerun", "--info", "-i"),
)
_MULTIRUN = ("--multirun", "-m", "hydra.mode=MULTIRUN")


def split_options(arguments: Sequence[str]) -> tuple[list[str], list[str]]:
    """Split a command line for hydra, whose parser accepts no options between overrides.

    Returns:
        The options with their values, and the overrides.
    """
    options: list[str] = []
    overrides: list[str] = []
    takes_value = False
    for argument in arguments:
        is_option = argument.startswith("-")
        is_value = takes_value and not argument.startswith(("-", "+", "~")) and "=" not in argument
        (options if is_option or is_value else overrides).append(argument)
        takes_value = argument in _WITH_VALUE
    return options, overrides


def is_multirun(arguments: Sequence[str]) -> bool:
    """Return ``True`` if hydra's launcher and sweeper start the jobs."""
    return any(argument in _MULTIRUN for argument in arguments)


def sweep_overrides(arguments: Sequence[str]) -> list[str]:
    """Return the overrides with several values, such as ``model.encoder_layers=6,12``."""
    _, overrides = split_options(arguments)
    return [override for override in overrides if _is_sweep(override)]


def _is_sweep(override: str) -> bool:
    from hydra.core.override_parser.overrides_parser import OverridesParser
    from hydra.errors import OverrideParseException

    try:
        return bool(OverridesParser.create().parse_override(override).is_sweep_override())
    except OverrideParseException:  # reported by hydra later
        return False


def check_launcher(arguments: Sequence[str]) -> None:
    """Refuse submitit's SLURM launcher on a machine that cannot submit jobs.

    Raises:
        ValueError: ``srun`` is not on the PATH.
    """
    _, overrides = split_options(arguments)
    launcher = "hydra/launcher=submitit_slurm"
    if any(each.lstrip("+") == launcher for each in overrides) and shutil.which("srun") is None:
        raise ValueError(
            f"{launcher}: srun is not on the PATH; run the command on a login node of the cluster, "
            "or use hydra/launcher=submitit_local"
        )


def subdir(arguments: Sequence[str]) -> str:
    """Return the value of ``hydra.sweep.subdir``: a job's folder below that of the command.

    A single job uses the command's own folder. Several jobs, and those of a sweeper that chooses
    the values, have numbered folders: 0, 1, ...
    """
    _, overrides = split_options(arguments)
    has_sweeper = any(each.lstrip("+").startswith("hydra/sweeper") for each in overrides)
    return "${hydra.job.num}" if has_sweeper or sweep_overrides(arguments) else "'.'"


def note(arguments: Sequence[str]) -> dict[str, list[str]]:
    """Return the settings that a resumed sweep must keep: the values that number its jobs."""
    return {"sweep": sweep_overrides(arguments)} if is_multirun(arguments) else {}


def has_begun(out: Path) -> bool:
    """Return ``True`` if there is a checkpoint of the run or of one of a sweep's jobs."""
    from mae_ast.core.checkpoints.reader import RUN_FILE
    from mae_ast.core.checkpoints.run_files import list_checkpoints

    return any(list_checkpoints(run / RUN_FILE.parent) for run in (out, *out.glob("[0-9]*")))
