"""``mae-ast bench``: measure the speed of this machine, part by part."""

from __future__ import annotations

import signal
import sys
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Annotated, Any, NoReturn

import torch
import typer
import yaml

from mae_ast.bench.machine import hardware
from mae_ast.bench.parts import PARTS
from mae_ast.bench.report import (
    PICTURE_FILE,
    earlier_parts,
    results_folder,
    tables,
    write_results,
)
from mae_ast.bench.setting import Setting
from mae_ast.bench.steps import OUT_OF_MEMORY, check_overrides
from mae_ast.bench.suite import Measured, expected_seconds, is_complete, run_parts
from mae_ast.core.io.plural import plural
from mae_ast.core.nn.precision import PRECISIONS

BATCHES = {"cuda": "64,256", "cpu": "4"}
LOG_FILE = "log.txt"


def bench(
    context: typer.Context,
    parts: Annotated[
        str, typer.Option(help=f"Comma-separated parts: {', '.join(PARTS)}.")
    ] = ",".join(PARTS),
    batches: Annotated[
        str | None, typer.Option(help="Clips of a training step, such as 64,256.")
    ] = None,
    precision: Annotated[
        str, typer.Option(help="Precision of the transformers: auto, float32 or bfloat16.")
    ] = "auto",
    device: Annotated[
        str | None, typer.Option(help="cpu or cuda; default: a GPU if there is one.")
    ] = None,
    out: Annotated[Path, typer.Option(help="Parent of the results folder.")] = Path(
        "benchmarks/results"
    ),
    minutes: Annotated[
        float, typer.Option(help="Start no further case after so many minutes.")
    ] = 60,
    quick: Annotated[bool, typer.Option(help="Tiny sizes, to see that everything works.")] = False,
) -> None:
    """Measure this machine; further arguments, model.KEY=VALUE, change the models of the steps.

    Results are written after each part, and when the command is interrupted. Parts that were
    measured earlier on the same day are kept beside those measured now.
    """
    names = [name for name in parts.split(",") if name]
    unknown = [name for name in names if name not in PARTS]
    if unknown or not names:
        raise ValueError(f"--parts {parts}: of {', '.join(PARTS)}, with commas between")
    if precision not in PRECISIONS:
        raise ValueError(f"--precision {precision}: one of {', '.join(PRECISIONS)}")
    if minutes <= 0:
        raise ValueError(f"--minutes {minutes:g}: a positive number")
    kind = _device(device)
    names = [name for name in PARTS if name in names]
    with tempfile.TemporaryDirectory(prefix="mae_ast_bench_") as folder:
        setting = Setting(
            device=kind,
            folder=folder,
            batches=_batches(batches or ("2" if quick else BATCHES[kind])),
            precision=precision,
            model=_overrides(context.args),
            quick=quick,
        )
        results = results_folder(out, setting)
        earlier_parts(results)  # refused now rather than after the measurements
        results.mkdir(parents=True, exist_ok=True)
        expected = expected_seconds(names, setting)
        typer.echo(hardware(kind))
        if kind == "cpu":
            typer.echo("there is no GPU here; the same command measures one where there is")
        each = ", ".join(f"{name} {seconds / 60:.1f}" for name, seconds in expected.items())
        total = min(sum(expected.values()) / 60, minutes)
        typer.echo(f"about {plural(max(1, round(total)), 'minute')} ({each})")
        command = ["mae-ast", "bench", *sys.argv[2 if Path(sys.argv[0]).name == "mae-ast" else 1 :]]
        measured, written = {}, {}
        try:
            with _sigterm_interrupts():
                for name, part in run_parts(
                    names, setting, 60 * minutes, results / LOG_FILE, typer.echo
                ):
                    written = write_results(results, {name: part}, setting, command)
                    measured[name] = part
        except KeyboardInterrupt:
            _end_early(results, names, measured)
    errors = [row["error"] for part in measured.values() for row in part.rows if "error" in row]
    failed = sum(error != OUT_OF_MEMORY for error in errors)  # that one is a result
    if not failed:
        (results / LOG_FILE).unlink()
    typer.echo("\n" + tables({**written, "parts": {n: written["parts"][n] for n in names}}))
    picture = f", {PICTURE_FILE}" if "lengths" in names else ""
    typer.echo(f"written: {results}/results.json, results.md{picture}")
    if failed:
        raise SystemExit(
            f"mae-ast: error: {plural(failed, 'case')} failed, the rest is written; see "
            f"{results / LOG_FILE}"
        )


@contextmanager
def _sigterm_interrupts() -> Iterator[None]:
    """Raise ``KeyboardInterrupt`` on SIGTERM, as on SIGINT."""

    def interrupt(number: int, frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    earlier = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, earlier)


def _end_early(results: Path, names: list[str], measured: Mapping[str, Measured]) -> NoReturn:
    """Say what is written and which parts are missing, and exit with status 1."""
    if not any(results.glob("results.*")):
        raise SystemExit("mae-ast: interrupted before the first result")
    missing = [n for n in names if n not in measured or not is_complete(measured[n].rows)]
    raise SystemExit(
        f"mae-ast: interrupted; results so far are in {results}. Measure the rest with "
        f"--parts {','.join(missing)}"
    )


def _device(wanted: str | None) -> str:
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
        raise ValueError(f"--batches {text}: whole numbers, at least 1, with commas between")
    return sizes


def _overrides(arguments: list[str]) -> dict[str, Any]:
    values = {}
    for argument in arguments:
        key, equals, value = argument.partition("=")
        if not equals or not key.startswith("model."):
            raise ValueError(f"{argument}: further arguments are model.KEY=VALUE")
        values[key.removeprefix("model.")] = yaml.safe_load(value)
    check_overrides(values)
    return values
