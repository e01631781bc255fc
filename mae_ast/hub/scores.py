"""Measured scores of a model, read from the reports of ``mae-ast evaluate``."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mae_ast.core.checkpoints.reader import RUN_FILE, file_of
from mae_ast.core.io.first_line import first_line

SUMMARY_FILE = "summary.json"  # in the folder of a report
_METRICS = {
    "accuracy": "accuracy",
    "mean_average_precision": "mAP",
    "mean_auc": "mean AUC",
    "d_prime": "d-prime",
}


@dataclass(frozen=True)
class Score:
    """A measured score.

    Args:
        data: name of the data's folder; empty: not recorded.
        split: name of the split; empty: not recorded.
        metric: name of the metric.
        value: its value.
    """

    data: str
    split: str
    metric: str
    value: float


def read_report(folder: Path) -> list[Score]:
    """Read the scores in a report.

    Raises:
        FileNotFoundError: the folder has no report.
        ValueError: the report is not valid; it is named.
    """
    values = _read_summary(folder / SUMMARY_FILE)
    data, split = (str(values.get(key, "")) for key in ("data", "split"))
    scores = [
        Score(data, split, name, float(values[key]))
        for key, name in _METRICS.items()
        if isinstance(values.get(key), (int, float))
    ]
    if not scores:
        raise ValueError(
            f"{folder / SUMMARY_FILE}: not a report of 'mae-ast evaluate'; it has none of "
            f"{', '.join(_METRICS)}"
        )
    return scores


def reports_in_run(source: str) -> list[Path]:
    """Return the reports about a checkpoint in the folder of its run, unless it is newer.

    Args:
        source: run or checkpoint; of other sources of :func:`mae_ast.load`, there are none.

    Raises:
        ValueError: a report is not valid; it is named.
        CheckpointError: all checkpoints of the run are damaged.
    """
    if not Path(source).exists():
        return []
    checkpoint = file_of(source)
    if checkpoint.parent.name != RUN_FILE.parent.name:
        return []
    saved = checkpoint.stat().st_mtime
    return [
        path.parent
        for path in sorted(checkpoint.parent.parent.glob(f"*/{SUMMARY_FILE}"))
        if path.stat().st_mtime >= saved
        and _read_summary(path).get("checkpoints") == [checkpoint.name]
    ]


def _read_summary(path: Path) -> Mapping[str, Any]:
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file; 'mae-ast evaluate --out DIR' writes one")
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path}: not valid JSON ({first_line(error)})") from error
    if not isinstance(values, Mapping):
        raise ValueError(f"{path}: not a report of 'mae-ast evaluate'")
    return values
