"""Labelled clips of the user's own: split them, and write manifests, labels and a summary."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from mae_ast.core.io.labels import Labels
from mae_ast.core.io.plural import plural
from mae_ast.prepare.clips import MIN_SECONDS, SPLITS, Clip, Headers, read_headers
from mae_ast.prepare.division import TRAIN, VALID, Division, as_splits, divide
from mae_ast.prepare.leakage import find_leaks
from mae_ast.prepare.own_clip import OwnClip
from mae_ast.prepare.splits import Prepared, write_splits
from mae_ast.prepare.summary import Summary, summarise

ROUNDING_S = 0.05  # a segment may end this much after the file without a remark
MAX_NAMED = 5  # maximum number of classes that a message names


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
        ValueError: no clip is usable or has a group that it should have, there is one class only,
            or as :func:`write_splits`.
    """
    headers = read_headers(list(dict.fromkeys(clip.path for clip in clips)), jobs, min_seconds)
    usable, remarks = _usable(clips, headers, min_seconds)
    usable = dict(zip(division.grouped(list(usable)), usable.values(), strict=True))
    labels, mid_of = _labels(usable)
    parts, notes = divide(list(usable), division)
    _check_other_folds(out, parts)
    warnings = [*_lacking(parts, labels.names), *find_leaks(parts, out, jobs)]

    def labelled(some: Iterable[OwnClip]) -> list[Clip]:
        return [usable[c]._replace(mids=tuple(mid_of[name] for name in c.labels)) for c in some]

    splits = {name: labelled(some) for name, some in as_splits(parts).items()}
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

    Raises:
        ValueError: no clip is usable, or two have the same samples and different labels.
    """
    usable: dict[OwnClip, Clip] = {}
    first: dict[Clip, OwnClip] = {}
    cut = []
    for own in clips:
        info = headers.infos.get(own.path)
        if info is None:
            continue
        clip = own.in_samples(info)
        if own.start_s >= info.seconds:
            headers.skipped[own.describe()] = "starts after the end of the file"
        elif clip.length == 0 or clip.seconds(info) < min_seconds:
            headers.skipped[own.describe()] = f"shorter than {min_seconds:g} s"
        elif (other := first.setdefault(clip, own)) is not own:
            _check_alike(own, other)
            headers.skipped[own.describe()] = f"has the same samples as {other.describe()}"
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


def _check_alike(clip: OwnClip, other: OwnClip) -> None:
    """Check that a clip with the same samples as another one differs only in its limits.

    Raises:
        ValueError: it has other labels, or another split, fold or group.
    """
    if clip._replace(start_s=other.start_s, end_s=other.end_s) != other:
        raise ValueError(
            f"{clip.describe()} and {other.describe()}: have the same samples, since segments are "
            "cut at the end of the file, but differ in labels, split, fold or group; remove one, "
            "or give both the same times"
        )


def _labels(clips: Iterable[OwnClip]) -> tuple[Labels, dict[str, str]]:
    """Return the list of classes in alphabetical order, and the mid of each name.

    Raises:
        ValueError: there is one class only, a name is not UTF-8 text, or two have the same mid.
    """
    names = sorted({name for clip in clips for name in clip.labels})
    if len(names) < 2:
        raise ValueError(f"all clips are of one class, {names[0]!r}; expected two or more classes")
    mids: dict[str, str] = {}
    for name in names:
        if any("\ud800" <= each <= "\udfff" for each in name):  # bytes of another encoding
            raise ValueError(f"label {name!r}: is not UTF-8 text; rename it or its folder")
        mid = " ".join(name.replace('"', " ").replace(",", " ").split())
        if not mid:
            raise ValueError(f"label {name!r}: has commas, quotes or spaces only; rename it")
        if mids.setdefault(mid, name) != name:
            raise ValueError(
                f"labels {mids[mid]!r} and {name!r}: differ in commas, quotes or spaces only; "
                "rename one"
            )
    return Labels(tuple(mids), tuple(mids.values())), {name: mid for mid, name in mids.items()}


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
        if not clips:
            warnings.append(
                f"{part} is empty, since each class needs a file (or group) for each split"
                f"{'; fine-tuning needs valid.tsv' if part == VALID else ''}"
            )
            continue
        present = {name for clip in clips for name in clip.labels}
        if absent := [name for name in names if name not in present]:
            more = ", ..." if len(absent) > MAX_NAMED else ""
            warnings.append(
                f"{part} has no clip of {len(absent)} of {plural(len(names), 'class', 'classes')}: "
                f"{', '.join(absent[:MAX_NAMED])}{more}"
            )
    return warnings
