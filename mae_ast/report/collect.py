"""Read what the folders of runs hold: starts, metrics, checkpoint, evaluations."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mae_ast.core.checkpoints.reader import CheckpointError, file_of, read_state
from mae_ast.core.checkpoints.run_files import list_checkpoints
from mae_ast.core.checkpoints.training_record import training_record
from mae_ast.core.io.joined import load_manifests
from mae_ast.core.io.manifest import Manifest
from mae_ast.core.io.near_files import suggestion
from mae_ast.trainer.command import NOTE
from mae_ast.trainer.metrics_log import END, METRICS_FILE, read_metrics
from mae_ast.trainer.run_record import STARTS_FILE

EVALUATION_FILE = "summary.json"  # of `mae-ast evaluate`

Entries = dict[str, Any]


@dataclass(frozen=True)
class Run:
    """A run folder of ``mae-ast pretrain`` or ``mae-ast finetune``.

    Args:
        name: short name, unique among the runs of a report.
        folder: folder of the run.
        starts: lines of ``starts.jsonl``.
        lines: lines of ``metrics.jsonl`` with metrics.
        ends: its lines on the ends of processes.
        begun_with: content of ``begun_with.json``.
        checkpoint: the last checkpoint; ``None`` if there is none.
        cfg: settings in the checkpoint, by section.
        data: folders of its manifests; empty if they are not recorded.
        num_updates: updates of the checkpoint, or of the last line.
        is_finetuned: whether the run trained a classifier.
        evaluations: summaries of ``mae-ast evaluate``, by the name of their folder.
        notes: one line for each part that is missing.
    """

    name: str
    folder: Path
    starts: list[Entries]
    lines: list[Entries]
    ends: list[Entries]
    begun_with: Entries
    checkpoint: Path | None
    cfg: Mapping[str, Mapping[str, Any]]
    data: tuple[Path, ...]
    num_updates: int
    is_finetuned: bool
    evaluations: dict[str, Entries]
    notes: list[str] = field(default_factory=list)

    def setting(self, section: str, key: str) -> Any:
        """Return a setting of the checkpoint; ``None`` if it is not recorded."""
        return self.cfg.get(section, {}).get(key)

    def load_manifest(self, key: str, default: str) -> Manifest:
        """Load the manifests of a split, joined; ``key`` of ``dataset.*`` names the split.

        Raises:
            ValueError: the folder of the data is not recorded.
            FileNotFoundError, ManifestError: a manifest does not exist, or is invalid.
        """
        if not self.data:
            raise ValueError("the folder of the data is not recorded; --data names it")
        split = str(self.setting("dataset", key) or default).split(",")[0]
        return load_manifests([folder / f"{split}.tsv" for folder in self.data])

    def note(self, part: str, reason: object) -> None:
        """Note that a part is missing on the page, and why."""
        self.notes.append(f"{part}: {' '.join(str(reason).split())}")


def read_runs(folders: Sequence[Path], data: Path | None = None) -> list[Run]:
    """Read run folders.

    Args:
        folders: run folders of any number.
        data: folder of their manifests, if it was moved.

    Raises:
        FileNotFoundError: a folder does not exist.
        ValueError: a folder is no run, or is given twice.
    """
    resolved = [folder.resolve() for folder in folders]
    for number, folder in enumerate(resolved):
        if folder in resolved[:number]:
            raise ValueError(f"{folders[number]}: given twice")
    names = unique_names(resolved)
    return [read_run(folder, name, data) for folder, name in zip(folders, names, strict=True)]


def read_run(folder: Path, name: str, data: Path | None = None) -> Run:
    """Read a run folder; parts that are missing or damaged are noted.

    Args:
        folder: the run folder.
        name: name of the run on the page.
        data: folder of its manifests; default: as recorded.

    Raises:
        FileNotFoundError: the folder does not exist.
        ValueError: the folder is no run.
    """
    _check_run(folder)
    notes: list[str] = []
    all_lines = []
    if (folder / METRICS_FILE).is_file():
        all_lines = [line for line in read_metrics(folder) if isinstance(line.get("kind"), str)]
    lines = [line for line in all_lines if line["kind"] != END]
    if not lines:
        notes.append(f"curves: {folder / METRICS_FILE} does not exist or is empty")
    starts = _json_lines(folder / STARTS_FILE)
    if not starts:
        notes.append(f"command, versions: {folder / STARTS_FILE} does not exist or is empty")
    checkpoint, state = _last_checkpoint(folder, notes)
    cfg = state.get("cfg")
    sections = {key: value for key, value in _mapping(cfg).items() if isinstance(value, Mapping)}
    updates = training_record(state, "").get("updates")
    begun_with = _json(folder / NOTE)
    is_finetuned, evaluations = _is_finetuned(sections, begun_with), _evaluations(folder)
    if is_finetuned and not evaluations:
        notes.append(
            f"evaluation: 'mae-ast evaluate {folder} DATA --out {folder}/report' makes one"
        )
    recorded = _mapping(sections.get("task")).get("data") or begun_with.get("data")
    return Run(
        name,
        folder,
        starts,
        lines,
        [line for line in all_lines if line["kind"] == END],
        begun_with,
        checkpoint,
        sections,
        (data,) if data is not None else _paths(recorded),
        int(updates or max((line["num_updates"] for line in lines), default=0)),
        is_finetuned,
        evaluations,
        notes,
    )


def _paths(recorded: Any) -> tuple[Path, ...]:
    """Return the data folders that are recorded: a path, a list of paths, or nothing."""
    if isinstance(recorded, (list, tuple)):
        return tuple(Path(str(folder)) for folder in recorded)
    return (Path(str(recorded)),) if recorded else ()


def unique_names(folders: Sequence[Path]) -> list[str]:
    """Return the last parts of paths, as few as make them different."""
    longest = max((len(folder.parts) for folder in folders), default=1)
    for count in range(1, longest):
        names = ["/".join(folder.parts[-count:]) for folder in folders]
        if len(set(names)) == len(names):
            return names
    return [str(folder) for folder in folders]


def _check_run(folder: Path) -> None:
    if not folder.exists():
        raise FileNotFoundError(f"{folder}: no such run folder{suggestion(folder)}")
    if not folder.is_dir():
        raise ValueError(f"{folder}: is a file; the folder of a run is needed")
    is_run = (folder / METRICS_FILE).is_file() or (folder / STARTS_FILE).is_file()
    if not is_run and not list_checkpoints(folder / "checkpoints"):
        raise ValueError(
            f"{folder}: is no run folder of 'mae-ast pretrain' or 'mae-ast finetune': it has "
            f"neither {METRICS_FILE} nor checkpoints/"
        )


def _last_checkpoint(folder: Path, notes: list[str]) -> tuple[Path | None, Entries]:
    """Return the last checkpoint and its content; ``None`` and nothing if it cannot be read."""
    try:
        path = file_of(folder)
        return path, read_state(path)
    except FileNotFoundError:
        notes.append(
            f"settings, reconstructions and embeddings: {folder / 'checkpoints'} has no checkpoint"
        )
    except CheckpointError as error:
        notes.append(f"settings, reconstructions and embeddings: {error}")
    return None, {}


def _is_finetuned(cfg: Mapping[str, Any], begun_with: Entries) -> bool:
    """Return whether a run trained a classifier, by its settings or the record of its start."""
    task = _mapping(cfg.get("task")).get("_name")
    return "classification" in str(task) if task else "checkpoint" in begun_with


def _evaluations(folder: Path) -> dict[str, Entries]:
    """Return the summaries of evaluations in a run folder and its subfolders."""
    paths = [folder / EVALUATION_FILE, *sorted(folder.glob(f"*/{EVALUATION_FILE}"))]
    found = {path.parent.relative_to(folder).as_posix(): _json(path) for path in paths}
    return {name: entries for name, entries in found.items() if "num_clips" in entries}


def _json(path: Path) -> Entries:
    """Return the object in a JSON file; empty if there is no such file, or it holds none."""
    with suppress(OSError, ValueError):
        return dict(_mapping(json.loads(path.read_text(encoding="utf-8"))))
    return {}


def _json_lines(path: Path) -> list[Entries]:
    """Return the objects in a file, one a line; a damaged line is skipped."""
    found = []
    with suppress(OSError, UnicodeDecodeError):
        for line in path.read_text(encoding="utf-8").splitlines():
            with suppress(ValueError):
                found.append(dict(_mapping(json.loads(line))))
    return [entries for entries in found if entries]


def _mapping(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else {}
