"""Find clips that leak from one split into another: groups, segments of a file, identical files."""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path

from mae_ast.core.io.audio import AudioError
from mae_ast.core.io.decoding.audio_file import open_audio
from mae_ast.core.io.plural import plural
from mae_ast.core.io.read_ahead import for_each_ahead
from mae_ast.prepare.clips import write_report
from mae_ast.prepare.own_clip import OwnClip

DUPLICATES_FILE = "duplicates.txt"
_BLOCK = 2**20  # bytes read at a time
_SAMPLE = 2**16  # bytes from the middle of a file that are compared before the whole
_MAX_AHEAD = 64

Parts = Mapping[str, Sequence[OwnClip]]


def find_leaks(parts: Parts, out: Path, jobs: int) -> list[str]:
    """Return warnings about clips in two splits or folds, and list all identical files.

    Args:
        parts: split or fold to its clips.
        out: folder of ``duplicates.txt``, in which a line has the names of identical files.
        jobs: number of files read at a time.
    """
    warnings = []
    groups = _in_several(parts, lambda clip: clip.group)
    if groups:
        (name, (first, second)), *_ = groups.items()
        warnings.append(
            f"{plural(len(groups), 'group')} in two splits, such as {name!r}: {first} and {second}"
        )
    files = _in_several(parts, lambda clip: clip.path)
    if files:
        (_, (first, second)), *_ = files.items()
        warnings.append(
            f"segments of {plural(len(files), 'file')} in two splits, such as {first} and {second}"
        )
    return [*warnings, *_duplicate_warnings(parts, out, jobs)]


def _duplicate_warnings(parts: Parts, out: Path, jobs: int) -> Iterator[str]:
    clips = {clip.path: clip for some in parts.values() for clip in some}
    identical = find_identical(list(clips), jobs)
    number = {path: n for n, paths in enumerate(identical) for path in paths}
    across = _in_several(parts, lambda clip: number.get(clip.path))
    out.mkdir(parents=True, exist_ok=True)
    write_report(
        out / DUPLICATES_FILE, ("\t".join(clips[path].name for path in each) for each in identical)
    )
    if across:
        first, second = next(iter(across.values()))
        yield (
            f"{plural(len(across), 'file')} with the same bytes in two splits, such as {first} and "
            f"{second}; {out / DUPLICATES_FILE} lists all identical files"
        )
    elif identical:
        copies = sum(map(len, identical)) - len(identical)
        yield (
            f"{plural(copies, 'copy', 'copies')} of files in the same split, listed in "
            f"{out / DUPLICATES_FILE}"
        )
    for paths in identical:
        whole = [clips[path] for path in paths if not clips[path].is_segment]
        differing = {clip.labels: clip for clip in whole}
        if len(differing) > 1:
            one, other, *_ = differing.values()
            yield (
                f"{one.name} and {other.name} have the same bytes, but different labels: "
                f"{', '.join(one.labels)} and {', '.join(other.labels)}"
            )
            break


def find_identical(paths: Sequence[str], jobs: int) -> list[list[str]]:
    """Return the sets of files with the same bytes.

    Whole files are only read where size, and some bytes in the middle, are equal.

    Args:
        paths: paths of files, also in tars; unreadable ones are skipped.
        jobs: number of files read at a time.
    """
    same = [list(paths)]
    for key in (_size, partial(_digest, of_all=False), partial(_digest, of_all=True)):
        same = _regrouped(same, key, jobs)
    return same


def _regrouped(
    sets: Iterable[Sequence[str]], key: Callable[[str], object], jobs: int
) -> list[list[str]]:
    """Divide sets of files further by a key; sets of a single file are dropped."""
    regrouped: dict[tuple[int, object], list[str]] = defaultdict(list)
    number = {path: n for n, paths in enumerate(sets) for path in paths}

    def add(path: str, found: object) -> None:
        if found is not None:
            regrouped[number[path], found].append(path)

    for_each_ahead(key, list(number), add, jobs, _MAX_AHEAD)
    return [paths for paths in regrouped.values() if len(paths) > 1]


def _size(path: str) -> int | None:
    with suppress(OSError, ValueError), open_audio(path) as file:
        return file.size
    return None


def _digest(path: str, of_all: bool) -> bytes | None:
    digest = hashlib.sha256()
    with suppress(OSError, AudioError), open_audio(path) as file:
        start, end = 0, file.size
        if not of_all:
            start = max(0, (file.size - _SAMPLE) // 2)
            end = min(file.size, start + _SAMPLE)
        for offset in range(start, end, _BLOCK):
            digest.update(file.read(offset, min(_BLOCK, end - offset)))
        return digest.digest()
    return None


def _in_several(parts: Parts, key: Callable[[OwnClip], object]) -> dict[object, tuple[str, str]]:
    """Return keys of clips in two parts, with a clip and its part each."""
    first: dict[object, tuple[str, OwnClip]] = {}
    found: dict[object, tuple[str, str]] = {}
    for part, clips in parts.items():
        for clip in clips:
            value = key(clip)
            if value in ("", None):
                continue
            there, other = first.setdefault(value, (part, clip))
            if there != part:
                found.setdefault(
                    value, (f"{other.describe()} in {there}", f"{clip.describe()} in {part}")
                )
    return found
