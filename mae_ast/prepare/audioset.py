"""AudioSet: 10-second segments of YouTube videos, 527 classes, multi-label.

    balanced_train_segments.csv, unbalanced_train_segments.csv, eval_segments.csv
    class_labels_indices.csv    index,mid,display_name (or the ontology's ontology.json)
    ID.wav, YID.wav, ID_START.flac, YID_START_END.mkv, ...

These files may be in any subfolders; START and END are in seconds or milliseconds. ``train`` is one
of the training sets or both, ``valid`` is the evaluation set; AudioSet has no third set.

AudioSet is published as lists of videos, many of which are no longer available. Missing clips are
counted and listed. Class indices are those of ``class_labels_indices.csv``, which are the classes
with segments in the order of the ontology.
"""

from __future__ import annotations

import csv
import json
import os
import re
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from mae_ast.core.io.labels import LabelError, Labels
from mae_ast.core.io.manifest import PROBE_THREADS
from mae_ast.core.io.plural import plural
from mae_ast.core.io.suffixes import AUDIO_SUFFIXES, SOUNDFILE_SUFFIXES
from mae_ast.prepare.clips import Clip, Headers
from mae_ast.prepare.layout import text_errors, walk_files
from mae_ast.prepare.splits import Prepared, write_splits

BALANCED, UNBALANCED = "balanced_train_segments.csv", "unbalanced_train_segments.csv"
TRAIN = {"balanced": (BALANCED,), "unbalanced": (UNBALANCED,), "full": (BALANCED, UNBALANCED)}
EVAL = "eval_segments.csv"
CLASSES, ONTOLOGY = "class_labels_indices.csv", "ontology.json"
NUM_CLASSES = 527
SOURCE = "https://research.google.com/audioset/download.html"
EXPECTED = f"AudioSet: clips named by YouTube id, and the lists of {SOURCE}"
ONTOLOGY_SOURCE = "https://github.com/audioset/ontology"
# A video id has 11 characters; a file name may have a Y before it, and START and END after it.
CLIP_NAME = re.compile(r"Y?([\w-]{11})(?:_(\d+(?:\.\d+)?)(?:_\d+(?:\.\d+)?)?)?", re.ASCII)
TOLERANCE = 0.5  # seconds by which a clip may exceed its segment, because codecs pad


class Segment(NamedTuple):
    """A row of a segments CSV file.

    Args:
        where: file and line, for messages.
        video: YouTube id.
        start, end: times in seconds.
        mids: labels of the segment.
    """

    where: str
    video: str
    start: float
    end: float
    mids: tuple[str, ...]


@dataclass(frozen=True)
class _Folder:
    """Lists and audio files found in a folder and its subfolders.

    Args:
        lists: file name to path, for CSV and JSON files.
        clips: video id to (START as written, or '', and path) of all candidate files.
    """

    lists: dict[str, Path]
    clips: dict[str, list[tuple[str, str]]]


def prepare(
    folder: Path, out: Path, train: str = "balanced", jobs: int = PROBE_THREADS
) -> Prepared:
    """Write train and valid (the evaluation set).

    Args:
        folder: folder that contains all files, in any subfolders.
        out: output folder for the manifests.
        train: ``balanced`` (22,160 segments), ``unbalanced`` (2,041,789) or ``full`` (both).
        jobs: number of headers read at a time.

    Raises:
        FileNotFoundError, NotADirectoryError: the folder or a list is missing, or no clip of a list
            exists.
        ValueError: a list is invalid.
    """
    if not folder.is_dir():
        raise NotADirectoryError(f"{folder}: no such folder; expected {EXPECTED}")
    found = _scan_folder(folder.resolve())
    wanted = {"train": TRAIN[train], "valid": (EVAL,)}
    for name in (*wanted["train"], EVAL):
        if name not in found.lists:
            raise FileNotFoundError(f"{folder}: no {name} in it or below; expected {EXPECTED}")
    segments = {
        split: [row for name in names for row in _segments(found.lists[name])]
        for split, names in wanted.items()
    }
    labels, notes = _labels(folder, found, segments)
    splits, missing, seconds = _match_segments(segments, found, labels)
    for split, names in wanted.items():
        if not splits[split]:
            raise FileNotFoundError(
                f"{folder}: none of the {len(segments[split])} clips of {' and '.join(names)} is "
                "in it or below; expected files named by YouTube id, such as --PJHxphWEs.flac, "
                "Y--PJHxphWEs.wav or --PJHxphWEs_30.flac"
            )

    def remarks(headers: Headers) -> list[str]:
        return [*notes, *_describe_longer_clips(headers, seconds)]

    return write_splits(out, folder.resolve(), splits, labels, missing, remarks, jobs)


def _match_segments(
    segments: dict[str, list[Segment]], found: _Folder, labels: Labels
) -> tuple[dict[str, list[Clip]], dict[str, list[str]], dict[str, float]]:
    """Return the existing clips and missing segments by split, and the listed length of each path.

    Lengths are in seconds.
    """
    splits: dict[str, list[Clip]] = {split: [] for split in segments}
    missing: dict[str, list[str]] = {split: [] for split in segments}
    seconds: dict[str, float] = {}
    for split, rows in segments.items():
        for row in rows:
            for mid in row.mids:
                if mid not in labels:
                    raise LabelError(f"{row.where}: {labels.unknown_message(mid)}")
            path = _find_clip(row, found.clips.get(row.video, ()))
            if path is None:
                missing[split].append(f"{split}\t{row.video}\t{row.start:.3f}\t{row.end:.3f}")
            else:
                splits[split].append(Clip(path, row.mids))
                seconds[path] = row.end - row.start
    return splits, missing, seconds


def _describe_longer_clips(headers: Headers, seconds: dict[str, float]) -> Iterator[str]:
    """Report clips that are longer than their segment."""
    longer = [
        (path, info.seconds)
        for path, info in headers.infos.items()
        if info.seconds > seconds[path] + TOLERANCE
    ]
    if longer:
        path, length = longer[0]
        yield (
            f"{plural(len(longer), 'clip')} longer than the segment, not trimmed (such as {path}, "
            f"{length:.1f} s instead of {seconds[path]:.1f} s); labels apply to the segment only"
        )


def _scan_folder(folder: Path) -> _Folder:
    """Find lists and clips in a single walk; there may be two million files."""
    found = _Folder({}, {})
    known = {BALANCED, UNBALANCED, EVAL, CLASSES, ONTOLOGY}
    for parent, name in walk_files(folder):
        stem, suffix = os.path.splitext(name)
        if name in known:
            found.lists.setdefault(name, Path(parent, name))
        elif suffix.lower() in AUDIO_SUFFIXES and (match := CLIP_NAME.fullmatch(stem)):
            video, start = match.groups(default="")
            found.clips.setdefault(video, []).append((start, os.path.join(parent, name)))
    return found


def _find_clip(segment: Segment, files: Sequence[tuple[str, str]]) -> str | None:
    """Return the file of a segment, preferring names with its START to names without a time."""

    def fits(start: str) -> bool:
        return not start or (
            abs(float(start) - segment.start) < 1 or abs(float(start) - 1000 * segment.start) < 1
        )

    def order(file: tuple[str, str]) -> tuple[bool, bool, str]:
        start, path = file
        # Formats of soundfile first: reading part of a file is faster.
        return not start, os.path.splitext(path)[1].lower() not in SOUNDFILE_SUFFIXES, path

    fitting = [file for file in files if fits(file[0])]
    return min(fitting, key=order)[1] if fitting else None


def _segments(path: Path) -> Iterator[Segment]:
    """Parse a segments CSV file: ``--PJHxphWEs, 30.000, 40.000, "/m/09x0r,/t/dd00088"``."""
    with text_errors(path), path.open(encoding="utf-8-sig", newline="") as file:
        reader = csv.reader(file, skipinitialspace=True)
        for row in reader:
            if not row or row[0].startswith("#"):
                continue
            where = f"{path}:{reader.line_num}"
            try:
                video, start, end, mids = row
                times = float(start), float(end)
                if len(video) != 11 or not mids or not 0 <= times[0] < times[1]:
                    raise ValueError
            except ValueError:
                raise ValueError(
                    f"{where}: {', '.join(row)!r} is not a valid segment; expected a row like "
                    "'--PJHxphWEs, 30.000, 40.000, \"/m/09x0r,/t/dd00088\"'"
                ) from None
            unique = tuple(dict.fromkeys(sys.intern(mid.strip()) for mid in mids.split(",")))
            yield Segment(where, video, *times, unique)


def _labels(
    folder: Path, found: _Folder, segments: dict[str, list[Segment]]
) -> tuple[Labels, list[str]]:
    """Return the classes, and notes about them for the report."""
    if CLASSES in found.lists:
        return Labels.read(found.lists[CLASSES]), []
    if ONTOLOGY not in found.lists:
        raise FileNotFoundError(
            f"{folder}: neither {CLASSES} ({SOURCE}) nor {ONTOLOGY} ({ONTOLOGY_SOURCE}) is in it "
            "or below"
        )
    path = found.lists[ONTOLOGY]
    try:
        nodes = {node["id"]: node["name"] for node in json.loads(path.read_text("utf-8"))}
    except (ValueError, TypeError, KeyError) as error:
        raise ValueError(
            f"{path}: is not the ontology of {ONTOLOGY_SOURCE}; expected a list of objects with "
            f"id and name ({error})"
        ) from error
    used = {mid: row.where for rows in segments.values() for row in rows for mid in row.mids}
    for mid, where in used.items():
        if mid not in nodes:
            problem = Labels(tuple(nodes), tuple(nodes.values())).unknown_message(mid)
            raise LabelError(f"{where}: {problem}")
    mids = tuple(mid for mid in nodes if mid in used)
    notes = []
    if len(mids) != NUM_CLASSES:
        notes.append(
            f"{len(mids)} classes have segments, not AudioSet's {NUM_CLASSES}, so class indices "
            f"differ from the standard ones; for those, put {CLASSES} of {SOURCE} into {folder}"
        )
    return Labels(mids, tuple(nodes[mid] for mid in mids)), notes
