"""Clips to ``{train,valid,test}.tsv``, ``.lbl`` and ``labels.csv``, and a report of it."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from mae_ast.core.io.labels import LABELS_FILE, Labels, write_clip_labels
from mae_ast.core.io.manifest import PROBE_THREADS, write_manifest
from mae_ast.core.io.plural import plural
from mae_ast.prepare.clips import Clip, Headers, read_headers

SPLITS = ("train", "valid", "test")
MISSING_FILE = "missing.txt"
LEFT_OUT_FILE = "left_out.txt"


@dataclass(frozen=True)
class Split:
    """One split, as it was written.

    Args:
        name: of its files without their suffix, below the output folder: ``train``.
        clips: that are listed.
        seconds: of them all.
        classes: that occur.
        missing: clips of the data set that are not there.
    """

    name: str
    clips: int
    seconds: float
    classes: int
    missing: int


@dataclass(frozen=True)
class Prepared:
    """What was written.

    Args:
        out: the folder.
        splits: in it.
        num_classes: in ``labels.csv``; 0 where there are no labels.
        missing: clips of the data set that are not there, as in ``missing.txt``.
        left_out: path and reason of each file that cannot be used, as in ``left_out.txt``.
        notes: what else one should know, a line each.
    """

    out: Path
    splits: tuple[Split, ...]
    num_classes: int
    missing: tuple[str, ...]
    left_out: tuple[tuple[str, str], ...]
    notes: tuple[str, ...]


def write_splits(
    out: Path,
    root: Path,
    splits: Mapping[str, Sequence[Clip]],
    labels: Labels | None = None,
    missing: Mapping[str, Sequence[str]] | None = None,
    remarks: Callable[[Headers], Iterable[str]] = lambda headers: (),
    jobs: int = PROBE_THREADS,
) -> Prepared:
    """Read the clips' headers and write the splits of those that can be used.

    Args:
        out: where the files go.
        root: folder that paths in the manifests start from; all clips are below it.
        splits: name (``train``, ``fold1/train``) to clips, in the order that they will have.
        labels: the classes; ``None`` writes no labels.
        missing: split to what is known already to be missing.
        remarks: headers to further lines for the report.
        jobs: headers read at a time.

    Raises:
        ValueError: a split has no clip that can be used, two splits share a clip, or files of an
            earlier preparation would stay between the new ones.
    """
    splits = {name: list(dict.fromkeys(clips)) for name, clips in splits.items()}
    _check_disjoint(splits)
    _check_leftovers(out, splits, labels is not None)
    headers = read_headers(
        list(dict.fromkeys(clip.path for clips in splits.values() for clip in clips)), jobs
    )
    usable = {
        name: [clip for clip in clips if clip.path in headers.infos]
        for name, clips in splits.items()
    }
    for name, clips in usable.items():
        if not clips:
            raise ValueError(_nothing(name, splits[name], headers))
    report = []
    for name, clips in usable.items():
        _write(out / name, root, clips, labels, headers)
        gone = (missing or {}).get(name, ())
        report.append(
            Split(
                name,
                len(clips),
                sum(_seconds(clip, headers) for clip in clips),
                len({mid for clip in clips for mid in clip.mids}),
                len(gone) + sum(clip.path in headers.missing for clip in splits[name]),
            )
        )
    all_gone = [line for lines in (missing or {}).values() for line in lines]
    prepared = Prepared(
        out,
        tuple(report),
        len(labels) if labels is not None else 0,
        tuple(dict.fromkeys([*all_gone, *headers.missing])),
        tuple(headers.left_out.items()),
        (*remarks(headers), *headers.remarks()),
    )
    _write_report(out / MISSING_FILE, prepared.missing)
    _write_report(out / LEFT_OUT_FILE, ["\t".join(pair) for pair in prepared.left_out])
    return prepared


def _write(
    stem: Path, root: Path, clips: list[Clip], labels: Labels | None, headers: Headers
) -> None:
    folder = stem.parent
    folder.mkdir(parents=True, exist_ok=True)
    if labels is not None:
        labels.write(folder / LABELS_FILE)
        write_clip_labels(f"{stem}.lbl", (clip.mids for clip in clips))
    infos = ((clip.path, headers.infos[clip.path]) for clip in clips)
    write_manifest(
        f"{stem}.tsv",
        str(root),
        ((os.path.relpath(path, root), i.num_frames, i.sample_rate) for path, i in infos),
    )


def _write_report(path: Path, lines: Iterable[str]) -> None:
    """Write lines; no file where there are none, not even an earlier one."""
    text = "".join(f"{line}\n" for line in lines)
    if text:
        path.write_text(text, encoding="utf-8", errors="surrogateescape")
    else:
        path.unlink(missing_ok=True)


def _seconds(clip: Clip, headers: Headers) -> float:
    info = headers.infos[clip.path]
    return info.num_frames / info.sample_rate


def _check_disjoint(splits: Mapping[str, Sequence[Clip]]) -> None:
    """No clip is in two splits of a folder, or in one with two sets of labels."""
    folders: dict[str, dict[str, str]] = {}
    for name, clips in splits.items():
        seen = folders.setdefault(os.path.dirname(name), {})
        for clip in clips:
            if clip.path in seen:
                raise ValueError(
                    f"{clip.path}: the data set's lists have it in {seen[clip.path]} and again in "
                    f"{name}; once is right"
                )
            seen[clip.path] = name


def _check_leftovers(out: Path, names: Iterable[str], labelled: bool) -> None:
    """Nothing from before stays that could be taken for a part of what is written."""
    suffixes = (".tsv", ".lbl") if labelled else (".tsv",)
    written = {out / f"{name}{suffix}" for name in names for suffix in suffixes}
    folders = {path.parent for path in written}
    if labelled:
        written |= {folder / LABELS_FILE for folder in folders}
    kinds = [*(f"{name}{suffix}" for name in SPLITS for suffix in (".tsv", ".lbl")), LABELS_FILE]
    for path in sorted(folder / kind for folder in folders for kind in kinds):
        if path not in written and path.exists():
            raise ValueError(
                f"{path}: is there from before and would stay, though it is no part of what is "
                "prepared now; remove it, or choose another --out"
            )


def _nothing(name: str, clips: Sequence[Clip], headers: Headers) -> str:
    """Why a split is empty."""
    if not clips:
        return f"{name}: the data set lists no clips for it that are there"
    first = clips[0].path
    reason = headers.left_out.get(first, "no such file")
    none = f"none of {plural(len(clips), 'clip')} of {name} can be used"
    return f"{none}; the first is {first}: {reason}"
