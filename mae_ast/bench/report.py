"""Write and read results: tables, JSON, and a plot over clip lengths."""

from __future__ import annotations

import dataclasses
import json
import shlex
from collections.abc import Callable, Mapping, Sequence
from datetime import date
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from mae_ast import __version__
from mae_ast.bench.machine import commit, hardware, slug, versions
from mae_ast.bench.parts import PARTS
from mae_ast.bench.setting import Part, Row, Setting
from mae_ast.bench.suite import Measured, is_complete
from mae_ast.core.io.atomic import atomic_write
from mae_ast.core.io.plural import plural

RESULTS_FILE, TABLE_FILE, PLOT_FILE = "results.json", "results.md", "lengths.png"


def results_folder(out: Path, setting: Setting) -> Path:
    """Return ``mae_ast_{hardware}_{date}`` in ``out``; for quick runs ``quick_...``."""
    kind = "quick" if setting.quick else "mae_ast"
    return out / f"{kind}_{slug(setting.device)}_{date.today()}"


def write_results(
    folder: Path, measured: Mapping[str, Measured], setting: Setting, command: Sequence[str]
) -> dict[str, Any]:
    """Write the table, the JSON and, if clip lengths were measured, their plot.

    Parts of an earlier run in the same folder are kept unless they were measured again; a complete
    part is not replaced by one with skipped cases.

    Returns:
        The content of the JSON file.

    Raises:
        ValueError: the JSON file of the earlier run cannot be read.
        OSError: a file could not be written.
    """
    earlier = earlier_parts(folder)
    about = {
        "date": str(date.today()),
        "command": shlex.join(command),
        "commit": commit(),
        "hardware": hardware(setting.device),
    }
    new = {
        name: {**about, "seconds": each.seconds, "rows": each.rows}
        for name, each in measured.items()
        if is_complete(each.rows) or name not in earlier or not is_complete(earlier[name]["rows"])
    }
    asked = dataclasses.asdict(setting)
    del asked["folder"]
    parts = {name: {**earlier, **new}[name] for name in PARTS if name in {**earlier, **new}}
    results: dict[str, Any] = {
        **about,
        "device": setting.device,
        "versions": {"mae-ast": __version__, **versions()},
        "setting": asked,
        "parts": parts,
    }
    rows = parts.get("lengths", {}).get("rows", [])
    if any("error" not in row for row in rows):
        with atomic_write(folder / PLOT_FILE) as part:
            lengths_figure(rows).savefig(part, dpi=100, format="png")
    with atomic_write(folder / TABLE_FILE) as part:
        part.write_text(tables(results), encoding="utf-8")
    with atomic_write(folder / RESULTS_FILE) as part:
        part.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    return results


def earlier_parts(folder: Path) -> dict[str, Any]:
    """Return the parts in a results folder by name; none if it holds no results yet.

    Raises:
        ValueError: the results cannot be read.
    """
    path = folder / RESULTS_FILE
    parts: dict[str, Any] = read_results(path)["parts"] if path.exists() else {}
    return parts


def read_results(path: Path) -> dict[str, Any]:
    """Read results of :func:`write_results` from a file or its folder.

    Raises:
        FileNotFoundError: the file does not exist.
        ValueError: the file does not hold results.
    """
    path = path / RESULTS_FILE if path.is_dir() else path
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file; 'mae-ast bench' writes {RESULTS_FILE}")
    try:
        results: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        results["parts"].items()
    except (ValueError, KeyError, TypeError, AttributeError):
        raise ValueError(f"{path}: holds no results of 'mae-ast bench'") from None
    return results


def tables(results: Mapping[str, Any]) -> str:
    """Format results as Markdown tables."""
    packages = ", ".join(f"{name} {number}" for name, number in results["versions"].items())
    lines = [f"# {results['hardware']}", "", f"{packages}; commit {results['commit']}.", ""]
    for name, part in results["parts"].items():
        lines += [f"## {PARTS[name].title}", "", PARTS[name].about, ""]
        lines += [f"```\n{part['command']}\n```", ""]
        lines += [f"{part['date']}, {part['seconds']:.0f} s.", ""]
        lines += [*table(PARTS[name], part["rows"]), ""]
    return "\n".join(lines)


def table(part: Part, rows: Sequence[Row]) -> list[str]:
    """Return the lines of a Markdown table, and of a list of failed cases."""
    good = [row for row in rows if "error" not in row]
    lines = []
    if good:
        lines += ["| " + " | ".join(column.heading for column in part.columns) + " |"]
        lines += ["| --- " * len(part.columns) + "|"]
        lines += ["| " + " | ".join(c.show(row) for c in part.columns) + " |" for row in good]
    failed = [row for row in rows if "error" in row]
    if failed:
        lines += ["", "Failed:", ""]
        lines += [f"- {_describe(row)}: {row['error']}" for row in failed]
    return lines


def _describe(row: Row) -> str:
    return f"{row['name']}, {plural(row['batch'], 'clip')}" if "batch" in row else str(row["name"])


def lengths_figure(rows: Sequence[Row]) -> Figure:
    """Plot step time and memory over clip length and mask ratio, measured and counted.

    Counted time is the time of the optimizer plus the operations at the rate measured at 10 s (or
    at the length closest to it).
    """
    good = [row for row in rows if "error" not in row]
    sweeps: dict[str, tuple[str, Callable[[Row], float]]] = {
        "length": ("clip length (s)", lambda row: row["clip_s"]),
        "ratio": ("mask ratio", lambda row: row["config"]["random_mask_prob"]),
    }
    figure = Figure(figsize=(11, 7), layout="constrained")
    axes = figure.subplots(2, 2, squeeze=False)
    rate = _rate(good)
    for column, (sweep, (label, value_of)) in enumerate(sweeps.items()):
        some = [row for row in good if row["sweep"] == sweep]
        x = [value_of(row) for row in some]
        counted = [r["optimizer_s"] + r["batch"] * r["flops_per_clip"] / rate for r in some]
        axes[0][column].plot(x, [row["median_s"] for row in some], "o", label="measured")
        axes[0][column].plot(x, counted, "-", label="counted")
        axes[0][column].set_ylabel("step time (s)")
        axes[1][column].plot(x, [row["peak_gib"] for row in some], "o", label="measured")
        axes[1][column].plot(x, [row["predicted_peak_gib"] for row in some], "-", label="counted")
        axes[1][column].set_ylabel("peak memory (GiB)")
        for axis in (axes[0][column], axes[1][column]):
            axis.set_xlabel(label)
            axis.margins(y=0.1)
            axis.set_ylim(bottom=0)
            axis.grid(alpha=0.3)
            axis.legend()
    if good:
        row, config = good[0], good[0]["config"]
        layers = f"{config['encoder_layers']} + {config['decoder_layers']} layers"
        clips = plural(row["batch"], "clip")
        figure.suptitle(f"MAE-AST patch, {layers}, {clips}, {row['precision']}, dropout 0")
    return figure


def _rate(rows: Sequence[Row]) -> float:
    """Return the FLOP/s without the optimizer, at 10 s or the closest length."""
    some = [row for row in rows if row["sweep"] == "length"] or rows
    row = min(some, key=lambda row: (abs(row["clip_s"] - 10), -row["clip_s"]))
    return float(
        row["batch"] * row["flops_per_clip"] / max(row["median_s"] - row["optimizer_s"], 1e-9)
    )
