"""Clips of a data set, the lengths from their headers, and manifests of them."""

from __future__ import annotations

import math
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import NamedTuple

from mae_ast.console import bar
from mae_ast.core.io.audio import AudioError, AudioInfo, num_samples_16k, probe_audio
from mae_ast.core.io.manifest import MAX_HEADERS_AHEAD, PROBE_THREADS, Row, write_manifest
from mae_ast.core.io.plural import plural
from mae_ast.core.io.read_ahead import for_each_ahead

MIN_SECONDS = 0.045  # default of 'mae-ast manifest', too; shorter clips give no patch
SPLITS = ("train", "valid", "test")
SKIPPED_FILE = "left_out.txt"


class Clip(NamedTuple):
    """A clip listed by a data set: a file or a segment of it.

    Args:
        path: absolute path; the file may be missing.
        mids: labels of the clip.
        start, length: segment in samples at the file's own rate; no length: the whole file.
    """

    path: str
    mids: tuple[str, ...] = ()
    start: int = 0
    length: int | None = None

    def seconds(self, info: AudioInfo) -> float:
        """Return the duration, given the length and sample rate of the file."""
        return info.seconds if self.length is None else self.length / info.sample_rate

    def row(self, root: Path, info: AudioInfo) -> Row:
        """Return the clip's row of a manifest with this root."""
        path = os.path.relpath(self.path, root)
        if self.length is None:
            return path, info.num_frames, info.sample_rate
        return path, self.length, info.sample_rate, self.start


@dataclass(frozen=True)
class Headers:
    """Result of reading the header of each path.

    Args:
        infos: path to length and sample rate, for usable files.
        missing: paths that do not exist.
        skipped: path to the reason why the file cannot be used.
    """

    infos: dict[str, AudioInfo] = field(default_factory=dict)
    missing: dict[str, None] = field(default_factory=dict)  # an ordered set
    skipped: dict[str, str] = field(default_factory=dict)

    def notes(self) -> dict[str, str]:
        """Return path to note of the files whose header gives no length, or a wrong one."""
        return {path: info.note for path, info in self.infos.items() if info.note}

    def remarks(self) -> Iterator[str]:
        """Report :meth:`notes` in a line."""
        if notes := self.notes():
            path, note = next(iter(notes.items()))
            yield (
                f"{plural(len(notes), 'clip')} with a missing or wrong length in the header, "
                f"listed with the decoded length (such as {path}: {note})"
            )


def read_headers(
    paths: Sequence[str],
    jobs: int = PROBE_THREADS,
    min_seconds: float = MIN_SECONDS,
    max_seconds: float = math.inf,
) -> Headers:
    """Read the lengths and sample rates of files.

    Args:
        paths: files, loose or in tars.
        jobs: number of headers read at a time.
        min_seconds, max_seconds: limits of the length of a usable file.
    """
    headers = Headers()

    def add(path: str, result: AudioInfo | str) -> None:
        if isinstance(result, AudioInfo):
            headers.infos[path] = result
        elif result:
            headers.skipped[path] = result
        else:
            headers.missing[path] = None

    probe = partial(_probe, min_seconds=min_seconds, max_seconds=max_seconds)
    progress = bar("reading headers", "file")
    for_each_ahead(probe, paths, add, jobs, MAX_HEADERS_AHEAD, progress)
    return headers


def write_clips(
    path: Path, root: Path, clips: Iterable[Clip], infos: Mapping[str, AudioInfo]
) -> None:
    """Write the manifest of clips below ``root``."""
    write_manifest(path, str(root), (clip.row(root, infos[clip.path]) for clip in clips))


def write_report(path: Path, lines: Iterable[str]) -> None:
    """Write lines to a file; without lines, remove the file of an earlier run."""
    text = "".join(f"{line}\n" for line in lines)
    if text:
        path.write_text(text, encoding="utf-8", errors="surrogateescape")
    else:
        path.unlink(missing_ok=True)


def _probe(path: str, min_seconds: float, max_seconds: float) -> AudioInfo | str:
    """Return length and rate, or the reason why a file cannot be used; '' if it does not exist."""
    try:
        info = probe_audio(path)
    except FileNotFoundError:
        return ""
    except (AudioError, OSError) as error:
        return str(error).removeprefix(f"{path}: ")
    if any(c in path for c in "\t\r\n"):
        return "its path contains a tab or line break"
    if num_samples_16k(info.num_frames, info.sample_rate) == 0:
        return "no audio can be decoded"
    if info.seconds < min_seconds:
        return f"shorter than {min_seconds:g} s"
    if info.seconds > max_seconds:
        return f"longer than {max_seconds:g} s"
    return info
