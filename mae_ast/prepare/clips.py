"""Clips of a data set, and the lengths from their headers."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import NamedTuple

from mae_ast.console import bar
from mae_ast.core.io.audio import AudioError, AudioInfo, num_samples_16k, probe_audio
from mae_ast.core.io.manifest import PROBE_THREADS
from mae_ast.core.io.plural import plural

MIN_SECONDS = 0.045  # same as 'mae-ast manifest'; shorter clips give no patch
_CHUNK = 10_000  # files submitted to the threads at a time; two million at once take gigabytes


class Clip(NamedTuple):
    """A clip listed by a data set.

    Args:
        path: absolute path; the file may be missing.
        mids: labels of the clip.
    """

    path: str
    mids: tuple[str, ...] = ()


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

    def remarks(self) -> Iterator[str]:
        """Report files whose header gives no length, or a wrong one."""
        noted = [(path, info.note) for path, info in self.infos.items() if info.note]
        if noted:
            path, note = noted[0]
            yield (
                f"{plural(len(noted), 'clip')} with a missing or wrong length in the header, "
                f"listed with the decoded length (such as {path}: {note})"
            )


def read_headers(paths: Sequence[str], jobs: int = PROBE_THREADS) -> Headers:
    """Read the lengths and sample rates of files, ``jobs`` at a time."""
    headers = Headers()
    found = bar("reading headers", "file")(_probe_all(paths, jobs), len(paths))
    for path, result in zip(paths, found, strict=True):
        if isinstance(result, AudioInfo):
            headers.infos[path] = result
        elif result:
            headers.skipped[path] = result
        else:
            headers.missing[path] = None
    return headers


def _probe_all(paths: Sequence[str], jobs: int) -> Iterator[AudioInfo | str]:
    with ThreadPoolExecutor(jobs) as pool:
        for begin in range(0, len(paths), _CHUNK):
            yield from pool.map(_probe, paths[begin : begin + _CHUNK])


def _probe(path: str) -> AudioInfo | str:
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
    if info.num_frames < MIN_SECONDS * info.sample_rate:
        return f"shorter than {MIN_SECONDS:g} s"
    return info
