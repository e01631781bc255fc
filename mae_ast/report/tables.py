"""Tables of a page: facts about runs, results of validations, probes and evaluations."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any

from mae_ast.report.collect import Run
from mae_ast.report.curves import EPOCH_MEANS, FEATURES, TRAINING

VALIDATION = ("loss", "mse", "info_nce_accuracy", "info_nce_chance", "accuracy", "mAP")
PROBE = ("rank_me", "layer")  # in front; the other metrics of a probe follow
_NO_SCORES = frozenset(("timestamp", "kind", "epoch", "num_updates", "skipped", "seconds", *PROBE))
EVALUATION = ("accuracy", "mean_average_precision", "mean_auc", "d_prime", "num_clips")

Table = dict[str, Any]  # "columns", and "rows" of texts; the first column is the run


def facts(runs: Sequence[Run]) -> Table:
    """Return a column for each run: stage, data, date, command, versions, hardware."""
    described = [_facts_of(run) for run in runs]
    names = dict.fromkeys(name for each in described for name in each)
    rows = [[name, *(each.get(name, "") for each in described)] for name in names]
    rows = [row for row in rows if any(row[1:])]
    return {"columns": ["", *(run.name for run in runs)], "rows": rows}


def validation_table(runs: Sequence[Run]) -> Table:
    """Return the last validation of each run and split."""
    rows = []
    for run in runs:
        kinds = dict.fromkeys(line["kind"] for line in run.lines)
        for kind in (k for k in kinds if k not in (TRAINING, EPOCH_MEANS, FEATURES)):
            last = [line for line in run.lines if line["kind"] == kind][-1]
            rows.append(({"run": run.name, "split": kind, "updates": last["num_updates"]}, last))
    return _table(rows, VALIDATION)


def probe_table(runs: Sequence[Run]) -> Table:
    """Return the last feature metrics of each run."""
    rows = []
    for run in runs:
        if lines := [line for line in run.lines if line["kind"] == FEATURES]:
            rows.append(({"run": run.name, "updates": lines[-1]["num_updates"]}, lines[-1]))
    scores = dict.fromkeys(key for _, line in rows for key in line if key not in _NO_SCORES)
    return _table(rows, (*PROBE, *sorted(scores, key=lambda key: key.startswith("log_mel"))))


def evaluation_table(runs: Sequence[Run]) -> Table:
    """Return the summaries of ``mae-ast evaluate``."""
    rows = [
        ({"run": run.name, "report": name, "split": summary.get("split", "")}, summary)
        for run in runs
        for name, summary in run.evaluations.items()
    ]
    return _table(rows, EVALUATION)


def number_text(value: Any) -> str:
    """Return a number with four significant digits, other values as text; ``None``: nothing."""
    if isinstance(value, float):
        return f"{value:.4g}"
    return "" if value is None else str(value)


def _table(
    rows: Sequence[tuple[Mapping[str, Any], Mapping[str, Any]]], keys: Sequence[str]
) -> Table:
    """Return a table of entries that name a row, and of those of ``keys`` that a row has."""
    used = [key for key in keys if any(values.get(key) is not None for _, values in rows)]
    heads = list(rows[0][0]) if rows else []
    return {
        "columns": [*heads, *(key.replace("_", " ") for key in used)],
        "rows": [
            [number_text(value) for value in (*head.values(), *map(values.get, used))]
            for head, values in rows
        ],
    }


def _facts_of(run: Run) -> dict[str, str]:
    stage = "fine-tuning" if run.is_finetuned else "pretraining"
    found = {
        "stage": " ".join(filter(None, (stage, str(run.setting("model", "_name") or "")))),
        "folder": str(run.folder),
        "data": ", ".join(map(str, run.data)),
        "preset": str(run.begun_with.get("config") or ""),
        "updates": str(run.num_updates),
    }
    if not run.starts:
        return found
    first, last = run.starts[0], run.starts[-1]
    versions = last.get("versions")
    texts = {
        "begun": _date(first.get("timestamp")),
        "last value": _date(run.lines[-1].get("timestamp")) if run.lines else "",
        "starts": _starts(run),
        "command": first.get("command", ""),
        "last command": last.get("command", "") if last != first else "",
        "commit": last.get("commit") or "not recorded",
        "hardware": last.get("hardware", ""),
        "processes": last.get("processes", ""),
        "versions": ", ".join(f"{name} {version}" for name, version in versions.items())
        if isinstance(versions, Mapping)
        else "",
    }
    if texts["last command"] == texts["command"]:
        texts["last command"] = ""
    return found | {name: str(text) for name, text in texts.items() if text not in ("", None)}


def _starts(run: Run) -> str:
    resumed = [str(start.get("num_updates")) for start in run.starts if start.get("num_updates")]
    after = f" (resumed after update {', '.join(resumed)})" if resumed else ""
    return f"{len(run.starts)}{after}"


def _date(timestamp: Any) -> str:
    try:
        return f"{datetime.fromisoformat(str(timestamp)):%Y-%m-%d %H:%M} UTC"
    except ValueError:
        return ""
