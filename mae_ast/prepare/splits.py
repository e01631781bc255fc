"""Write clips to ``{train,valid,test}.tsv``, ``.lbl`` and ``labels.csv``, and report the result."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from mae_ast.core.io.labels import LABELS_FILE, Labels, write_clip_labels
from mae_ast.core.io.manifest import PROBE_THREADS
from mae_ast.core.io.plural import plural
from mae_ast.prepare.clips import (
    SKIPPED_FILE,
    SPLITS,
    Clip,
    Headers,
    read_headers,
    write_clips,
    write_report,
)

MISSING_FILE = "missing.txt"


@dataclass(frozen=True)
class Split:
    """Statistics of a written split.

    Args:
        name: path of its files in the output folder, without suffix: ``train``, ``fold1/train``.
        clips: number of clips.
        seconds: total duration.
        classes: number of classes that occur.
        missing: number of clips in the data set's lists that do not exist.
    """

    name: str
    clips: int
    seconds: float
    classes: int
    missing: int


@dataclass(frozen=True)
class Prepared:
    """Result of preparing a data set.

    Args:
        out: the output folder.
        splits: statistics of its splits.
        num_classes: number of classes in ``labels.csv``; 0 without labels.
        missing: listed clips that do not exist; written to ``missing.txt``.
        skipped: path and reason for each unusable file; written to ``left_out.txt``.
        notes: further remarks for the user, one line each.
    """

    out: Path
    splits: tuple[Split, ...]
    num_classes: int
    missing: tuple[str, ...]
    skipped: tuple[tuple[str, str], ...]
    notes: tuple[str, ...]


def write_splits(
    out: Path,
    root: Path,
    splits: Mapping[str, Sequence[Clip]],
    labels: Labels | None = None,
    missing: Mapping[str, Sequence[str]] | None = None,
    remarks: Callable[[Headers], Iterable[str]] = lambda headers: (),
    jobs: int = PROBE_THREADS,
    headers: Headers | None = None,
) -> Prepared:
    """Read the clips' headers, and write splits of the usable clips.

    Args:
        out: output folder.
        root: folder that paths in the manifests are relative to; it contains all clips.
        splits: name (``train``, ``fold1/train``) to clips, in the order of the manifest.
        labels: list of classes; ``None`` writes no labels.
        missing: split to clips already known to be missing.
        remarks: function of the headers that returns further lines for the report.
        jobs: number of headers read at a time.
        headers: the clips' headers, if they have been read.

    Raises:
        ValueError: a split has no usable clip, two splits share a clip, or files of an earlier run
            would remain among the new ones.
    """
    splits = {name: list(dict.fromkeys(clips)) for name, clips in splits.items()}
    _check_disjoint(splits)
    _check_stale_files(out, splits, labels is not None)
    if headers is None:
        paths = dict.fromkeys(clip.path for clips in splits.values() for clip in clips)
        headers = read_headers(list(paths), jobs)
    usable = {
        name: [clip for clip in clips if clip.path in headers.infos]
        for name, clips in splits.items()
    }
    for name, clips in usable.items():
        if not clips:
            raise ValueError(_why_empty(name, splits[name], headers))
    report = []
    for name, clips in usable.items():
        _write(out / name, root, clips, labels, headers)
        gone = len((missing or {}).get(name, ()))
        gone += sum(clip.path in headers.missing for clip in splits[name])
        seconds = sum(clip.seconds(headers.infos[clip.path]) for clip in clips)
        classes = {mid for clip in clips for mid in clip.mids}
        report.append(Split(name, len(clips), seconds, len(classes), gone))
    all_missing = [line for lines in (missing or {}).values() for line in lines]
    prepared = Prepared(
        out,
        tuple(report),
        len(labels) if labels is not None else 0,
        tuple(dict.fromkeys([*all_missing, *headers.missing])),
        tuple(headers.skipped.items()),
        (*remarks(headers), *headers.remarks()),
    )
    write_report(out / MISSING_FILE, prepared.missing)
    write_report(out / SKIPPED_FILE, ["\t".join(pair) for pair in prepared.skipped])
    return prepared


def _write(
    stem: Path, root: Path, clips: list[Clip], labels: Labels | None, headers: Headers
) -> None:
    folder = stem.parent
    folder.mkdir(parents=True, exist_ok=True)
    if labels is not None:
        labels.write(folder / LABELS_FILE)
        write_clip_labels(f"{stem}.lbl", (clip.mids for clip in clips))
    write_clips(folder / f"{stem.name}.tsv", root, clips, headers.infos)


def _check_disjoint(splits: Mapping[str, Sequence[Clip]]) -> None:
    """Raise if a clip is in two splits of a folder, or in one split with different labels."""
    folders: dict[str, dict[tuple[object, ...], str]] = {}
    for name, clips in splits.items():
        seen = folders.setdefault(os.path.dirname(name), {})
        for clip in clips:
            segment = clip.path, clip.start, clip.length
            if segment in seen:
                raise ValueError(
                    f"{clip.path}: is listed in {seen[segment]} and again in {name}; expected "
                    "one entry in the data set's lists"
                )
            seen[segment] = name


def _check_stale_files(out: Path, names: Iterable[str], labelled: bool) -> None:
    """Raise if a manifest or label file of an earlier run would remain among the new files."""
    suffixes = (".tsv", ".lbl") if labelled else (".tsv",)
    written = {out / f"{name}{suffix}" for name in names for suffix in suffixes}
    folders = {path.parent for path in written}
    if labelled:
        written |= {folder / LABELS_FILE for folder in folders}
    kinds = [*(f"{name}{suffix}" for name in SPLITS for suffix in (".tsv", ".lbl")), LABELS_FILE]
    for path in sorted(folder / kind for folder in folders for kind in kinds):
        if path not in written and path.exists():
            raise ValueError(
                f"{path}: exists from an earlier run and would remain among the new files; remove "
                "it, or choose another --out"
            )


def _why_empty(name: str, clips: Sequence[Clip], headers: Headers) -> str:
    """Return a message that explains why a split is empty."""
    if not clips:
        return f"{name}: none of the clips that the data set lists for it exist"
    first = clips[0].path
    reason = headers.skipped.get(first, "no such file")
    summary = f"none of {plural(len(clips), 'clip')} of {name} can be used"
    return f"{summary}; the first is {first}: {reason}"
