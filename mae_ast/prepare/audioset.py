"""AudioSet: 10-second segments of YouTube videos, 527 classes, several for each clip.

    balanced_train_segments.csv, unbalanced_train_segments.csv, eval_segments.csv
    class_labels_indices.csv    index,mid,display_name (or the ontology's ontology.json)
    ID.wav, YID.wav, ID_START.flac, YID_START_END.mkv, ...

in any folders below the one that is given; START and END are seconds or milliseconds. ``train`` is
a training set or both, ``valid`` is the evaluation set: AudioSet has no third one.

AudioSet itself is lists of videos, and many of these are gone. What is missing is counted and
listed. The classes' indices are those of ``class_labels_indices.csv``, which are the ontology's
order of the classes that have segments.
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
from mae_ast.prepare.splits import Prepared, write_splits

BALANCED, UNBALANCED = "balanced_train_segments.csv", "unbalanced_train_segments.csv"
TRAIN = {"balanced": (BALANCED,), "unbalanced": (UNBALANCED,), "full": (BALANCED, UNBALANCED)}
EVAL = "eval_segments.csv"
CLASSES, ONTOLOGY = "class_labels_indices.csv", "ontology.json"
NUM_CLASSES = 527
SOURCE = "https://research.google.com/audioset/download.html"
WHAT = f"AudioSet, clips called by their YouTube id with the lists of {SOURCE}"
ONTOLOGY_SOURCE = "https://github.com/audioset/ontology"
# A video's id has 11 characters; the file may have a Y before it, START and END behind it.
CLIP_NAME = re.compile(r"Y?([\w-]{11})(?:_(\d+(?:\.\d+)?)(?:_\d+(?:\.\d+)?)?)?", re.ASCII)
TOLERANCE = 0.5  # seconds by which a clip may be longer than its segment: codecs pad


class Segment(NamedTuple):
    """A line of a segments csv.

    Args:
        where: file and line.
        video: YouTube's id.
        start, end: in seconds.
        mids: its labels.
    """

    where: str
    video: str
    start: float
    end: float
    mids: tuple[str, ...]


@dataclass(frozen=True)
class _Folder:
    """What lies below a folder.

    Args:
        lists: name to path, of the csv and json files.
        clips: video id to START as written (or '') and path, of all files that may be it.
    """

    lists: dict[str, Path]
    clips: dict[str, list[tuple[str, str]]]


def prepare(
    folder: Path, out: Path, train: str = "balanced", jobs: int = PROBE_THREADS
) -> Prepared:
    """Write train and valid (the evaluation set).

    Args:
        folder: that has everything somewhere below it.
        out: where the manifests go.
        train: ``balanced`` (22,160 segments), ``unbalanced`` (2,041,789) or ``full`` (both).
        jobs: headers read at a time.

    Raises:
        FileNotFoundError, NotADirectoryError: a list is missing, or the folder.
        ValueError: a list is not as it must be, or nothing of it is there.
    """
    if not folder.is_dir():
        raise NotADirectoryError(f"{folder}: no such folder; expected {WHAT}")
    found = _look_through(folder.resolve())
    wanted = {"train": TRAIN[train], "valid": (EVAL,)}
    for name in (*wanted["train"], EVAL):
        if name not in found.lists:
            raise FileNotFoundError(f"{folder}: no {name} in it or below; expected {WHAT}")
    segments = {
        split: [row for name in names for row in _segments(found.lists[name])]
        for split, names in wanted.items()
    }
    labels, notes = _labels(folder, found, segments)
    splits, missing, seconds = _match(segments, found, labels)
    for split, names in wanted.items():
        if not splits[split]:
            raise FileNotFoundError(
                f"{folder}: none of the {len(segments[split])} clips of {' and '.join(names)} is "
                "in it or below; they are called by their YouTube id, as in --PJHxphWEs.flac, "
                "Y--PJHxphWEs.wav or --PJHxphWEs_30.flac"
            )

    def remarks(headers: Headers) -> list[str]:
        return [*notes, *_longer(headers, seconds)]

    return write_splits(out, folder.resolve(), splits, labels, missing, remarks, jobs)


def _match(
    segments: dict[str, list[Segment]], found: _Folder, labels: Labels
) -> tuple[dict[str, list[Clip]], dict[str, list[str]], dict[str, float]]:
    """The clips that are there, the segments that are not, and each path's seconds by the list."""
    splits: dict[str, list[Clip]] = {split: [] for split in segments}
    missing: dict[str, list[str]] = {split: [] for split in segments}
    seconds: dict[str, float] = {}
    for split, rows in segments.items():
        for row in rows:
            for mid in row.mids:
                if mid not in labels:
                    raise LabelError(f"{row.where}: {labels.unknown_message(mid)}")
            path = _clip_of(row, found.clips.get(row.video, ()))
            if path is None:
                missing[split].append(f"{split}\t{row.video}\t{row.start:.3f}\t{row.end:.3f}")
            else:
                splits[split].append(Clip(path, row.mids))
                seconds[path] = row.end - row.start
    return splits, missing, seconds


def _longer(headers: Headers, seconds: dict[str, float]) -> Iterator[str]:
    """What to say about clips that are longer than their segment."""
    longer = [
        (path, info.num_frames / info.sample_rate)
        for path, info in headers.infos.items()
        if info.num_frames / info.sample_rate > seconds[path] + TOLERANCE
    ]
    if longer:
        path, length = longer[0]
        yield (
            f"{plural(len(longer), 'clip')} longer than the segment, left as they are (as "
            f"{path}, {length:.1f} s of {seconds[path]:.1f} s); labels hold for the segment"
        )


def _look_through(folder: Path) -> _Folder:
    """One walk for lists and clips: there may be two million."""
    found = _Folder({}, {})
    known = {BALANCED, UNBALANCED, EVAL, CLASSES, ONTOLOGY}
    seen: set[str] = set()
    for parent, folders, names in os.walk(folder, followlinks=True):
        real = os.path.realpath(parent)
        if real in seen:  # a link to a folder above, or to one that was listed already
            folders.clear()
            continue
        seen.add(real)
        folders.sort()
        for name in sorted(names):
            stem, suffix = os.path.splitext(name)
            if name in known:
                found.lists.setdefault(name, Path(parent, name))
            elif suffix.lower() in AUDIO_SUFFIXES and (match := CLIP_NAME.fullmatch(stem)):
                video, start = match.groups(default="")
                found.clips.setdefault(video, []).append((start, os.path.join(parent, name)))
    return found


def _clip_of(segment: Segment, files: Sequence[tuple[str, str]]) -> str | None:
    """The file of a segment: with its START in its name if there is one, else without any."""

    def fits(start: str) -> bool:
        return not start or (
            abs(float(start) - segment.start) < 1 or abs(float(start) - 1000 * segment.start) < 1
        )

    def order(file: tuple[str, str]) -> tuple[bool, bool, str]:
        start, path = file
        # soundfile's kinds first: they are the quicker ones to read a part of
        return not start, os.path.splitext(path)[1].lower() not in SOUNDFILE_SUFFIXES, path

    fitting = [file for file in files if fits(file[0])]
    return min(fitting, key=order)[1] if fitting else None


def _segments(path: Path) -> Iterator[Segment]:
    """The rows of a segments csv: ``--PJHxphWEs, 30.000, 40.000, "/m/09x0r,/t/dd00088"``."""
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
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
                        f"{where}: {', '.join(row)!r} is no segment, as in "
                        "'--PJHxphWEs, 30.000, 40.000, \"/m/09x0r,/t/dd00088\"'"
                    ) from None
                named = tuple(dict.fromkeys(sys.intern(mid.strip()) for mid in mids.split(",")))
                yield Segment(where, video, *times, named)
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}: is no UTF-8 text ({error})") from error
    except csv.Error as error:
        raise ValueError(f"{path}: is no csv ({error})") from error


def _labels(
    folder: Path, found: _Folder, segments: dict[str, list[Segment]]
) -> tuple[Labels, list[str]]:
    """The classes, and what is to be said about them."""
    if CLASSES in found.lists:
        return Labels.read(found.lists[CLASSES]), []
    if ONTOLOGY not in found.lists:
        raise FileNotFoundError(
            f"{folder}: neither {CLASSES} ({SOURCE}) nor {ONTOLOGY} ({ONTOLOGY_SOURCE}) in it or "
            "below"
        )
    path = found.lists[ONTOLOGY]
    try:
        nodes = {node["id"]: node["name"] for node in json.loads(path.read_text("utf-8"))}
    except (ValueError, TypeError, KeyError) as error:
        raise ValueError(
            f"{path}: is not the ontology of {ONTOLOGY_SOURCE}, a list of id, name, ... ({error})"
        ) from error
    used = {mid: row.where for rows in segments.values() for row in rows for mid in row.mids}
    for mid, where in used.items():
        if mid not in nodes:
            nearest = Labels(tuple(nodes), tuple(nodes.values())).unknown_message(mid)
            raise LabelError(f"{where}: {nearest}")
    mids = tuple(mid for mid in nodes if mid in used)
    notes = []
    if len(mids) != NUM_CLASSES:
        notes.append(
            f"{len(mids)} classes have segments, not AudioSet's {NUM_CLASSES}: their indices are "
            f"not the usual ones; put {CLASSES} of {SOURCE} into {folder} for these"
        )
    return Labels(mids, tuple(nodes[mid] for mid in mids)), notes
