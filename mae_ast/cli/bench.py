"""``mae-ast bench``: measure the speed of training on this machine."""

from __future__ import annotations

import signal
import sys
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

import typer

from mae_ast.core.io.plural import plural

if TYPE_CHECKING:
    from mae_ast.bench.setting import Setting
    from mae_ast.bench.suite import Measured

# Names of mae_ast.bench.parts.PARTS, in their order.
PART_NAMES = ("masks", "fbank", "decoding", "loading", "training", "steps", "packing", "lengths")
BATCHES = {"cuda": "64,256", "cpu": "4"}
LOG_FILE = "log.txt"


def bench(
    overrides: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="model.KEY=VALUE",
            help="Settings of the models in the parts steps, packing and lengths.",
            show_default=False,
        ),
    ] = None,
    parts: Annotated[
        str, typer.Option(help=f"Comma-separated parts to measure: {', '.join(PART_NAMES)}.")
    ] = ",".join(PART_NAMES),
    batches: Annotated[
        str | None,
        typer.Option(
            help="Comma-separated batch sizes of a training step, in clips; default: "
            f"{BATCHES['cuda']} on a GPU, {BATCHES['cpu']} on a CPU."
        ),
    ] = None,
    precision: Annotated[
        str, typer.Option(help="Precision of the transformers: auto, float32 or bfloat16.")
    ] = "auto",
    device: Annotated[
        str | None, typer.Option(help="Device: cpu or cuda; default: cuda if available.")
    ] = None,
    out: Annotated[
        Path, typer.Option(help="Parent folder; the results are written to a new subfolder.")
    ] = Path("benchmarks/results"),
    minutes: Annotated[
        float, typer.Option(help="Time limit in minutes, after which no further case is started.")
    ] = 60,
    quick: Annotated[
        bool, typer.Option("--quick", help="Use tiny sizes, to check that everything works.")
    ] = False,
) -> None:
    """Measure the speed of training on this machine.

    Results are written after each part, and when the command is interrupted. Parts that were
    measured earlier on the same day are kept.
    """
    from mae_ast.bench.setting import Setting
    from mae_ast.console import TRAINING, require
    from mae_ast.core.nn.precision import PRECISIONS

    require(*TRAINING, "matplotlib")
    names = _parts(parts)
    if precision not in PRECISIONS:
        raise ValueError(f"--precision {precision}: choose from {', '.join(PRECISIONS)}")
    if minutes <= 0:
        raise ValueError(f"--minutes {minutes:g}: must be positive")
    kind = _device(device)
    with tempfile.TemporaryDirectory(prefix="mae_ast_bench_") as folder:
        setting = Setting(
            device=kind,
            folder=folder,
            batches=_batches(batches or ("2" if quick else BATCHES[kind])),
            precision=precision,
            model=_overrides(overrides or []),
            quick=quick,
        )
        _measure(names, setting, out, minutes)


def _measure(names: list[str], setting: Setting, out: Path, minutes: float) -> None:
    """Measure parts, write their results below ``out`` and print them."""
    from mae_ast.bench.machine import hardware
    from mae_ast.bench.report import (
        PLOT_FILE,
        earlier_parts,
        results_folder,
        tables,
        write_results,
    )
    from mae_ast.bench.steps import OUT_OF_MEMORY
    from mae_ast.bench.suite import expected_seconds, run_parts

    results = results_folder(out, setting)
    earlier_parts(results)  # refuse damaged results before measuring
    results.mkdir(parents=True, exist_ok=True)
    expected = expected_seconds(names, setting)
    typer.echo(hardware(setting.device))
    if not setting.is_gpu:
        typer.echo("measuring the CPU; --device cuda measures a GPU")
    each = ", ".join(f"{name} {seconds / 60:.1f}" for name, seconds in expected.items())
    total = min(sum(expected.values()) / 60, minutes)
    typer.echo(f"about {plural(max(1, round(total)), 'minute')} ({each})")
    log = results / LOG_FILE
    measured: dict[str, Measured] = {}
    written: dict[str, Any] = {}
    try:
        with _sigterm_interrupts():
            for name, part in run_parts(names, setting, 60 * minutes, log, typer.echo):
                written = write_results(results, {name: part}, setting, _command())
                measured[name] = part
    except KeyboardInterrupt:
        _end_early(results, names, measured)
    errors = [row["error"] for part in measured.values() for row in part.rows if "error" in row]
    failed = sum(error != OUT_OF_MEMORY for error in errors)  # that one is a result
    if not failed:
        log.unlink()
    typer.echo("\n" + tables({**written, "parts": {n: written["parts"][n] for n in names}}))
    plot = f", {PLOT_FILE}" if "lengths" in names else ""
    typer.echo(f"written: {results}/results.json, results.md{plot}")
    if failed:
        raise SystemExit(
            f"mae-ast: error: {plural(failed, 'case')} failed, the rest is written; see {log}"
        )


def _command() -> list[str]:
    """Return the command line that started this process, for the results."""
    arguments = sys.argv[1:]  # "python -m mae_ast.bench" has no name of a sub-command
    return ["mae-ast", "bench", *arguments[arguments[:1] == ["bench"] :]]


@contextmanager
def _sigterm_interrupts() -> Iterator[None]:
    """Raise ``KeyboardInterrupt`` on SIGTERM, as on SIGINT."""
    earlier = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, earlier)


def _end_early(results: Path, names: list[str], measured: Mapping[str, Measured]) -> NoReturn:
    """Report what is written and which parts are missing, and exit with status 1."""
    if not any(results.glob("results.*")):
        raise SystemExit("mae-ast: interrupted before the first result")
    from mae_ast.bench.suite import is_complete

    missing = [n for n in names if n not in measured or not is_complete(measured[n].rows)]
    raise SystemExit(
        f"mae-ast: interrupted; results so far are in {results}. Measure the rest with "
        f"--parts {','.join(missing)}"
    )


def _parts(text: str) -> list[str]:
    asked = [name for name in text.split(",") if name]
    if not asked or not set(asked) <= set(PART_NAMES):
        raise ValueError(f"--parts {text}: choose from {', '.join(PART_NAMES)}")
    return [name for name in PART_NAMES if name in asked]


def _device(wanted: str | None) -> str:
    import torch

    has_gpu = torch.cuda.is_available()
    if wanted not in (None, "cpu", "cuda") or (wanted == "cuda" and not has_gpu):
        there = "cpu or cuda" if has_gpu else "cpu; there is no GPU here"
        raise ValueError(f"--device {wanted}: {there}")
    return wanted or ("cuda" if has_gpu else "cpu")


def _batches(text: str) -> list[int]:
    try:
        sizes = [int(size) for size in text.split(",")]
    except ValueError:
        sizes = [0]
    if min(sizes) < 1:
        raise ValueError(f"--batches {text}: must be positive integers, separated by commas")
    return sizes


def _overrides(arguments: list[str]) -> dict[str, Any]:
    import yaml

    from mae_ast.bench.steps import check_overrides

    values = {}
    for argument in arguments:
        key, equals, value = argument.partition("=")
        if not equals or not key.startswith("model."):
            raise ValueError(f"{argument}: further arguments are model.KEY=VALUE")
        values[key.removeprefix("model.")] = yaml.safe_load(value)
    check_overrides(values)
    return values
