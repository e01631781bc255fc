"""Studies among the folders of a report: their summaries, and the runs that stand for them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from mae_ast.study.summary import SUMMARY_FILE, read_summary


def split_studies(folders: Sequence[Path]) -> tuple[list[Path], list[dict[str, Any]]]:
    """Return the folders of runs, and the summaries of studies.

    A study is replaced by the first trained run of each of its settings.

    Args:
        folders: folders of runs and of studies.

    Raises:
        ValueError: the summary of a study is damaged, or the study has no trained run.
    """
    runs: list[Path] = []
    studies = []
    for folder in folders:
        summary = read_summary(folder)
        if summary is None:
            runs.append(folder)
            continue
        first = [folder / names[0] for names in summary["runs"] if names]
        if not first:
            raise ValueError(f"{folder / SUMMARY_FILE}: none of the study's runs was trained")
        runs += first
        studies.append(summary)
    return runs, studies
