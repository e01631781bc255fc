"""Labelled clips of the user's own: split them, and write manifests, labels and a summary."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path
from typing import NamedTuple

from mae_ast.core.io.audio import AudioInfo
from mae_ast.core.io.labels import Labels
from mae_ast.core.io.plural import plural
from mae_ast.prepare.clips import MIN_SECONDS, SPLITS, Clip, Headers, read_headers
from mae_ast.prepare.leakage import find_leaks
from mae_ast.prepare.splits import Prepared, write_splits
from mae_ast.prepare.splitting import draw_splits
from mae_ast.prepare.summary import Summary, summarise

TRAIN, VALID, TEST = SPLITS
ROUNDING_S = 0.05  # a segment may end this much after the file without a remark
MAX_NAMED = 5  # maximum number of classes that a message names


class OwnClip(NamedTuple):
    """A labelled clip, as a folder or a table describes it.

    Args:
        path: absolute path; the file may be missing.
        name: path relative to the folder of the data; its hash decides the split.
        labels: names of its classes.
        split: ``train``, ``valid`` or ``test``; "": to be drawn.
        fold: ``fold1``, ``fold2``, ...; "": to be drawn.
        group: speaker, site or session, all of whose clips are in one split; "": its file.
        start_s, end_s: segment of the file in seconds; no end: to the end of the file.
    """

    path: str
    name: str
    labels: tuple[str, ...]
    split: str = ""
    fold: str = ""
    group: str = ""
    start_s: float = 0.0
    end_s: float | None = None

    @property
    def is_segment(self) -> bool:
        """``True`` if the clip is a part of its file."""
        return self.start_s > 0 or self.end_s is not None

    def describe(self) -> str:
        """Return the name, and the segment if it is one."""
        if not self.is_segment:
            return self.name
        end = "end" if self.end_s is None else f"{self.end_s:g} s"
        return f"{self.name} from {self.start_s:g} s to {end}"

    def in_samples(self, info: AudioInfo) -> Clip:
        """Return the clip with its segment in samples; one that ends after its file is cut."""
        if not self.is_segment:
            return Clip(self.path)
        end = info.num_frames
        if self.end_s is not None:
            end = min(end, round(self.end_s * info.sample_rate))
        start = round(self.start_s * info.sample_rate)
        return Clip(self.path, (), start, end - start)


@dataclass(frozen=True)
class Division:
    """Division of clips that do not say their split.

    Args:
        valid, test: ratios of the groups for validation and test; 0: no such split.
        folds: number of folds for cross-validation; 0: splits.
        seed: seed of the draw.

    Raises:
        ValueError: the ratios leave nothing for training, or a value is out of range.
    """

    valid: float = 0.1
    test: float = 0.1
    folds: int = 0
    seed: int = 0

    def __post_init__(self) -> None:
        if self.valid < 0 or self.test < 0 or self.valid + self.test >= 1:
            raise ValueError(
                f"--valid {self.valid:g} and --test {self.test:g} leave nothing for training"
            )
        if self.folds < 0 or self.folds == 1:
            raise ValueError(f"--folds {self.folds}; must be at least 2")


@dataclass
class Written:
    """Result of :func:`write_own_data`.

    Args:
        prepared: statistics of the written splits; its notes are for the user.
        summary: statistics of the classes.
        warnings: leaks between splits, and classes that a split lacks, one line each.
    """

    prepared: Prepared
    summary: Summary
    warnings: list[str] = field(default_factory=list)


def write_own_data(
    clips: Sequence[OwnClip],
    root: Path,
    out: Path,
    division: Division,
    min_seconds: float = MIN_SECONDS,
    jobs: int = 16,
) -> Written:
    """Read the clips' headers, divide the usable clips and write manifests, labels and a summary.

    Args:
        clips: the clips; several with the same segment have been merged.
        root: folder that the paths of the manifests are relative to.
        out: output folder.
        division: splits of clips that do not say theirs.
        min_seconds: minimum length of a clip.
        jobs: number of files read at a time.

    Raises:
        ValueError: no clip is usable, there is one class only, or as :func:`write_splits`.
    """
    headers = read_headers(list(dict.fromkeys(clip.path for clip in clips)), jobs, min_seconds)
    usable, remarks = _usable(clips, headers, min_seconds)
    labels, mid_of = _labels(usable)
    parts, notes = _divide(list(usable), division)
    _check_other_folds(out, parts)
    warnings = [*_lacking(parts, labels.names), *find_leaks(parts, out, jobs)]

    def labelled(some: Iterable[OwnClip]) -> list[Clip]:
        return [usable[c]._replace(mids=tuple(mid_of[name] for name in c.labels)) for c in some]

    splits = {name: labelled(some) for name, some in _as_splits(parts).items()}
    written = write_splits(
        out, root, splits, labels, remarks=lambda _: (*remarks, *notes), headers=headers
    )
    summary = summarise(parts, usable, headers.infos, labels)
    summary.write(out)
    return Written(written, summary, warnings)


def _usable(
    clips: Sequence[OwnClip], headers: Headers, min_seconds: float
) -> tuple[dict[OwnClip, Clip], list[str]]:
    """Return the clips that can be used with their segment in samples, and remarks.

    The reasons of segments that cannot be used are added to the headers.
    """
    usable: dict[OwnClip, Clip] = {}
    cut = []
    for own in clips:
        info = headers.infos.get(own.path)
        if info is None:
            continue
        clip = own.in_samples(info)
        if own.start_s >= info.seconds:
            headers.skipped[own.describe()] = "starts after the end of the file"
        elif clip.seconds(info) < min_seconds:
            headers.skipped[own.describe()] = f"shorter than {min_seconds:g} s"
        else:
            usable[own] = clip
            if own.end_s is not None and own.end_s > info.seconds + ROUNDING_S:
                cut.append(f"{own.describe()}, of {info.seconds:.2f} s")
    if not usable:
        skipped = headers.skipped | dict.fromkeys(headers.missing, "no such file")
        path, reason = next(iter(skipped.items()))
        raise ValueError(
            f"none of {plural(len(clips), 'clip')} can be used; the first is {path}: {reason}"
        )
    found = []
    if cut:
        found.append(f"{plural(len(cut), 'segment')} cut at the end of the file (such as {cut[0]})")
    return usable, found


def _labels(clips: Iterable[OwnClip]) -> tuple[Labels, dict[str, str]]:
    """Return the list of classes in alphabetical order, and the mid of each name.

    Raises:
        ValueError: there is one class only, or two names have the same mid.
    """
    names = sorted({name for clip in clips for name in clip.labels})
    if len(names) < 2:
        raise ValueError(f"all clips are of one class, {names[0]!r}; expected two or more classes")
    mids: dict[str, str] = {}
    for name in names:
        mid = " ".join(name.replace('"', " ").replace(",", " ").split())
        if not mid:
            raise ValueError(f"label {name!r}: has commas, quotes or spaces only; rename it")
        if mids.setdefault(mid, name) != name:
            raise ValueError(
                f"labels {mids[mid]!r} and {name!r}: differ in commas, quotes or spaces only; "
                "rename one"
            )
    return Labels(tuple(mids), tuple(mids.values())), {name: mid for mid, name in mids.items()}


def _divide(
    clips: Sequence[OwnClip], division: Division
) -> tuple[dict[str, list[OwnClip]], list[str]]:
    """Return split or fold to its clips, in their order, and notes.

    Raises:
        ValueError: ``--folds`` is given, though the clips have a split or fold of their own; or no
            clip is in train.
    """
    own = "fold" if clips[0].fold else "split" if clips[0].split else ""
    if own and division.folds:
        raise ValueError(f"--folds {division.folds}: the clips have a {own} of their own")
    notes: list[str] = []
    given = {clip: getattr(clip, own) for clip in clips} if own else dict.fromkeys(clips, TRAIN)
    if own == "fold":
        names = sorted(set(given.values()), key=lambda name: int(name.removeprefix("fold")))
    elif division.folds:
        names = [f"fold{number}" for number in range(1, division.folds + 1)]
        given |= _drawn(clips, dict.fromkeys(names, 1 / division.folds), division.seed, "", notes)
    else:
        for_training = [clip for clip in clips if given[clip] == TRAIN]
        if not for_training:
            raise ValueError("no clip is in train; expected clips of all classes there")
        ratios = {VALID: division.valid, TEST: 0.0 if own else division.test}
        if VALID in given.values():
            ratios = {}
        ratios = {name: ratio for name, ratio in ratios.items() if ratio > 0}
        if ratios:
            ratios[TRAIN] = 1 - sum(ratios.values())
            given |= _drawn(for_training, ratios, division.seed, TRAIN, notes)
        names = [name for name in SPLITS if name in ratios or name in given.values()]
    parts: dict[str, list[OwnClip]] = {name: [] for name in names}
    for clip in clips:
        parts[given[clip]].append(clip)
    if sum(map(bool, parts.values())) < 2 and TRAIN not in parts:
        raise ValueError("all clips are in one fold; expected two or more folds")
    return parts, notes


def _drawn(
    clips: Sequence[OwnClip],
    ratios: Mapping[str, float],
    seed: int,
    first: str,
    notes: list[str],
) -> dict[OwnClip, str]:
    """Draw the split of each clip; add a note on those that are not where their hash puts them."""
    classes: dict[str, set[str]] = {}
    for clip in clips:
        classes.setdefault(_group(clip), set()).update(clip.labels)
    groups = {group: frozenset(some) for group, some in classes.items()}
    drawn = draw_splits(groups, ratios, seed, first)
    if drawn.moved:
        group = drawn.moved[0]
        kind = "group" if clips[0].group else "file"
        kind_of_part = "fold" if not first else "split"
        notes.append(
            f"{plural(len(drawn.moved), kind)} moved, so that each {kind_of_part} has each class "
            f"(such as {group} to {drawn.split_of[group]})"
        )
    return {clip: drawn.split_of[_group(clip)] for clip in clips}


def _group(clip: OwnClip) -> str:
    return clip.group or clip.name


def _as_splits(parts: Mapping[str, Sequence[OwnClip]]) -> dict[str, list[OwnClip]]:
    """Return the manifests to write: splits as they are; for a fold, the others are its train."""
    parts = {name: some for name, some in parts.items() if some}
    if TRAIN in parts:
        return {name: list(some) for name, some in parts.items()}
    splits: dict[str, list[OwnClip]] = {}
    for fold, held_out in parts.items():
        others = [some for name, some in parts.items() if name != fold]
        splits[f"{fold}/{TRAIN}"] = list(chain(*others))
        splits[f"{fold}/{VALID}"] = list(held_out)
    return splits


def _check_other_folds(out: Path, parts: Mapping[str, object]) -> None:
    """Refuse to write next to folds, or splits, of an earlier run, which would not match.

    Raises:
        ValueError: there are some; the message names one.
    """
    folds = [path for path in sorted(out.glob("fold*")) if path.name not in parts]
    splits = [out / f"{name}.tsv" for name in SPLITS] if TRAIN not in parts else []
    for path in [*folds, *filter(Path.exists, splits)]:
        raise ValueError(
            f"{path}: exists from an earlier run and would remain among the new files; remove it, "
            "or choose another --out"
        )


def _lacking(parts: Mapping[str, Sequence[OwnClip]], names: Sequence[str]) -> list[str]:
    """Return warnings about classes that a split or fold lacks, and classes of similar names."""
    warnings = []
    spellings: dict[str, str] = {}
    for name in names:
        if (other := spellings.setdefault(name.casefold(), name)) != name:
            warnings.append(f"classes {other!r} and {name!r} differ in upper and lower case only")
    for part, clips in parts.items():
        present = {name for clip in clips for name in clip.labels}
        if absent := [name for name in names if name not in present]:
            more = ", ..." if len(absent) > MAX_NAMED else ""
            warnings.append(
                f"{part} has no clip of {len(absent)} of {plural(len(names), 'class', 'classes')}: "
                f"{', '.join(absent[:MAX_NAMED])}{more}"
            )
    return warnings


def common_root(clips: Iterable[OwnClip]) -> Path:
    """Return the folder that contains all files of the clips."""
    return Path(os.path.commonpath({os.path.dirname(clip.path) for clip in clips}))
