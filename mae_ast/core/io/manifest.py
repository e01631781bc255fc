"""Manifests: text files that list the audio files of a split.

The first line is the root folder, absolute or relative to the manifest; each further line is a
clip:

    path<TAB>length                                 a file and its length in samples
    path<TAB>length<TAB>sample rate                 with its sample rate in Hz
    path<TAB>length<TAB>sample rate<TAB>start       a segment of a file

Paths may name files inside archives, ``archive:offset:length`` (:mod:`mae_ast.core.io.archive`).
The root, or an archive, may be a URL (:mod:`mae_ast.core.io.remote`); such rows need their sample
rate, and nothing is asked of the server until a clip is read.
Without the third column, sample rates are read from the files' headers once and cached beside the
manifest. A segment begins at sample ``start``, counted from 0, and is ``length`` samples long, both
at the given sample rate. Several rows may name segments of one file. A row without a start is read
to the end of its file.

Rows are stored packed (one block of bytes and arrays of numbers), so forked worker processes share
the memory and their start-up time does not depend on the number of rows.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable, Iterator
from functools import cached_property
from pathlib import Path

import numpy as np

from mae_ast.core.io.archive import why_missing
from mae_ast.core.io.atomic import atomic_write
from mae_ast.core.io.audio import SAMPLE_RATE, AudioError, num_samples_16k, probe_rate
from mae_ast.core.io.checksum import sha256
from mae_ast.core.io.manifest_parser import WHOLE, ManifestError, parse_rows
from mae_ast.core.io.rate_cache import read_cache, write_cache
from mae_ast.core.io.read_ahead import Progress, for_each_ahead
from mae_ast.core.io.remote.urls import SCHEMES, is_url, join, unsupported_scheme
from mae_ast.core.io.retry import retried
from mae_ast.core.io.segment import Segment, segment_problem

__all__ = ["WHOLE", "Manifest", "ManifestError", "evenly_spaced", "write_manifest"]

Row = tuple[str, int, int] | tuple[str, int, int, int | None]

PROBE_THREADS = 16
MAX_HEADERS_AHEAD = 4_096  # headers read while an earlier file, which may be slow, is waited for


class Manifest:
    """The rows of a manifest.

    Args:
        path: path of the manifest, for messages.
        root: folder that relative paths start from; may be a URL.
        packed_paths: the paths of all rows, UTF-8, concatenated.
        path_ends: (rows,) int64, end of each path in ``packed_paths``.
        lines: (rows,) int64, line numbers in the file.
        lengths: (rows,) int64, number of samples at each file's own rate.
        sample_rates: (rows,) int32, in Hz; 0 if the manifest does not give it.
        starts: (rows,) int64, first sample of a segment, at the file's own rate; ``WHOLE`` (-1) for
            a whole file.
    """

    def __init__(
        self,
        path: Path,
        root: str,
        packed_paths: bytes | bytearray,
        path_ends: np.ndarray,
        lines: np.ndarray,
        lengths: np.ndarray,
        sample_rates: np.ndarray,
        starts: np.ndarray,
    ) -> None:
        self.path = path
        self.root = root
        self.lines = lines
        self.lengths = lengths
        self.sample_rates = sample_rates
        self.starts = starts
        self._packed_paths = packed_paths
        self._path_ends = path_ends

    @classmethod
    def read(cls, path: str | os.PathLike[str]) -> Manifest:
        """Parse a manifest; missing sample rates are 0.

        Raises:
            FileNotFoundError: the file does not exist.
            ManifestError: a row is invalid, or there are no rows.
        """
        path = Path(path)
        if path.is_dir():
            raise FileNotFoundError(
                f"{path}: is a folder; expected a manifest, such as {path / 'train.tsv'}"
            )
        if path.parent.is_file():
            raise FileNotFoundError(
                f"{path.parent}: is a file; expected the folder of the manifests"
            )
        if not path.is_file():
            raise FileNotFoundError(
                f"{path}: no such manifest; 'mae-ast manifest' writes manifests of folders, and "
                "'mae-ast prepare' those of labelled data"
            )
        with path.open("rb") as file:
            root = _parse_root(file.readline(), path)
            rows = parse_rows(file, path)
        if not len(rows.lines):
            raise ManifestError(f"{path}: lists no files; expected one row per file after line 1")
        path_ends = np.cumsum(rows.path_sizes)
        numbers = rows.lines, rows.lengths, rows.sample_rates, rows.starts
        return cls(path, root, rows.packed_paths, path_ends, *numbers)

    @classmethod
    def load(cls, path: str | os.PathLike[str], progress: Progress | None = None) -> Manifest:
        """Parse a manifest, check that its files exist and read missing sample rates.

        Args:
            path: path of the manifest.
            progress: wraps the iteration over the files whose headers are read; called with the
                iterable and its length.

        Raises:
            FileNotFoundError, ManifestError: see :meth:`read`, :meth:`check_paths` and
                :meth:`check_segments`.
        """
        manifest = cls.read(path)
        manifest.check_paths()
        manifest.check_segments()
        manifest.probe_rates(progress)
        return manifest

    def __len__(self) -> int:
        return len(self.lengths)

    def row_path(self, row: int) -> str:
        """Return the path of a row as written in the manifest."""
        begin = self._path_ends[row - 1] if row else 0
        return os.fsdecode(bytes(self._packed_paths[begin : self._path_ends[row]]))

    def audio_path(self, row: int) -> str:
        """Return the path of a row, joined to the root."""
        return join(self.root_of(row), self.row_path(row))

    def root_of(self, row: int) -> str:
        """Return the folder or URL that the path of a row is relative to."""
        return self.root

    def where(self, row: int) -> str:
        """Return ``file:line`` of a row, for messages."""
        return f"{self.path}:{self.lines[row]}"

    def segment(self, row: int) -> Segment:
        """Return the part of a file that a row names, at 16 kHz."""
        path, start = self.audio_path(row), int(self.starts[row])
        if start == WHOLE:
            return Segment(path)
        length, rate = int(self.lengths[row]), int(self.sample_rates[row])
        return Segment.of(path, start, length, rate)

    @property
    def has_segments(self) -> bool:
        """True if a row has a start."""
        return bool((self.starts != WHOLE).any())

    @cached_property
    def may_be_remote(self) -> bool:
        """True if the root or a row is a URL; of the rows, only ``://`` is searched for."""
        return is_url(self.root) or b"://" in self._packed_paths

    def is_remote(self, row: int) -> bool:
        """Return whether the file of a row is on a server."""
        return self.may_be_remote and is_url(self.audio_path(row))

    @property
    def num_samples(self) -> np.ndarray:
        """Lengths at 16 kHz, (rows,) int64."""
        rates = np.where(self.sample_rates > 0, self.sample_rates, SAMPLE_RATE).astype(np.int64)
        starts = np.maximum(self.starts, 0)
        ends = num_samples_16k(starts + self.lengths, rates)
        lengths: np.ndarray = ends - num_samples_16k(starts, rates)
        return lengths

    def digest(self) -> bytes:
        """Return the SHA-256 of the rows' paths, lengths, sample rates and, if any, starts."""
        digest = hashlib.sha256(self._packed_paths)
        starts = [self.starts] if self.has_segments else []
        for values in (self._path_ends, self.lengths, self.sample_rates, *starts):
            digest.update(np.ascontiguousarray(values).tobytes())
        return digest.digest()

    def take(self, rows: Iterable[int] | np.ndarray) -> Manifest:
        """Select rows, in this order; messages still give their line numbers in the file."""
        chosen = np.asarray(list(rows), dtype=np.int64)
        paths = [os.fsencode(self.row_path(row)) for row in chosen.tolist()]
        return Manifest(
            self.path,
            self.root,
            b"".join(paths),
            np.cumsum([len(path) for path in paths], dtype=np.int64),
            self.lines[chosen],
            self.lengths[chosen],
            self.sample_rates[chosen],
            self.starts[chosen],
        )

    def check_paths(self, at_most: int = 10_000) -> None:
        """Check that the files exist: all of them, or ``at_most`` spread evenly over the rows.

        Raises:
            ManifestError: a file does not exist or cannot be read.
        """
        for row in evenly_spaced(len(self), at_most).tolist():
            if problem := _problem_of(self.audio_path(row)):
                raise ManifestError(
                    f"{self.where(row)}: {self.audio_path(row)}: {problem}; paths are relative to "
                    f"the root on line 1 ({self.root_of(row)})"
                )

    def check_segments(self, at_most: int = 10_000) -> None:
        """Check that segments lie within their files, by the length and rate in the header.

        Of each file, the last one of at most ``at_most`` segments is checked, which are spread
        evenly over the rows. Segments of remote files, and of files whose header gives no length,
        are checked when they are read.

        Raises:
            ManifestError: a segment reaches beyond the end of its file, or its sample rate is not
                that of the file.
        """
        rows = np.flatnonzero(self.starts != WHOLE)
        if self.may_be_remote:  # would fetch whole shards
            rows = np.array([row for row in rows.tolist() if not self.is_remote(row)], np.int64)
        last: dict[tuple[str, int], tuple[int, Segment]] = {}
        for row in rows[evenly_spaced(len(rows), at_most)].tolist():
            segment = self.segment(row)
            key = segment.path, int(self.sample_rates[row])
            if key not in last or last[key][1].end < segment.end:
                last[key] = row, segment

        def problem(row: int) -> str:
            return segment_problem(self.segment(row), int(self.sample_rates[row]))

        def check(row: int, problem: str) -> None:
            if problem:
                raise ManifestError(f"{self.where(row)}: {self.audio_path(row)}: {problem}")

        ends = [row for row, _ in last.values()]
        for_each_ahead(problem, ends, check, PROBE_THREADS, MAX_HEADERS_AHEAD)

    def probe_rates(self, progress: Progress | None = None) -> None:
        """Read missing sample rates from the cache or the files' headers.

        The rate stays 0 if a header cannot be read; decoding that file then reports the error.

        Raises:
            ManifestError: the sample rate of a remote file is missing.
        """
        unknown = np.flatnonzero(self.sample_rates == 0)
        if not len(unknown):
            return
        if self.may_be_remote:
            for row in filter(self.is_remote, unknown.tolist()):
                raise ManifestError(
                    f"{self.where(row)}: {self.audio_path(row)}: has no sample rate, which rows of "
                    "remote shards need in the third column; 'mae-ast pack' writes it"
                )
        cache = self.path.with_name(self.path.name + ".rates.npz")
        digest = sha256(self.path)
        cached = read_cache(cache, digest, len(self))
        if cached is not None:
            self.sample_rates = cached
            unknown = np.flatnonzero(cached == 0)  # unreadable last time; they may be readable now
            if not len(unknown):
                return

        def keep(row: int, rate: int) -> None:
            self.sample_rates[row] = rate

        for_each_ahead(
            self._probe_rate, unknown.tolist(), keep, PROBE_THREADS, MAX_HEADERS_AHEAD, progress
        )
        write_cache(cache, digest, self.sample_rates)

    def _probe_rate(self, row: int) -> int:
        try:
            return probe_rate(self.audio_path(row))
        except (AudioError, OSError):
            return 0


def evenly_spaced(count: int, maximum: int) -> np.ndarray:
    """Return at most ``maximum`` evenly spaced row indices below ``count``."""
    return np.unique(np.linspace(0, count - 1, min(count, maximum)).astype(np.int64))


def write_manifest(path: str | os.PathLike[str], root: str, rows: Iterable[Row]) -> None:
    """Write rows (path, length, sample rate) or (path, length, sample rate, start), atomically.

    Args:
        path: path of the manifest.
        root: folder that relative paths start from, absolute or relative to the manifest.
        rows: length and start in samples at the sample rate, in Hz. A row with a start, which may
            be 0, is a segment; one without, or with ``None``, is a whole file.

    Raises:
        ManifestError: the root or a path contains a tab or line break, the root is empty, or a
            start is negative.
    """
    path = Path(path)

    def lines() -> Iterator[str]:
        yield f"{root}\n"
        for name, length, rate, *rest in rows:
            if any(c in name for c in "\t\r\n"):
                raise ManifestError(f"{name!r}: a path must not contain a tab or line break")
            start = rest[0] if rest else None
            if start is not None and start < 0:
                raise ManifestError(f"{name}: start {start}; expected 0 or more samples")
            yield (
                f"{name}\t{length}\t{rate}\n"
                if start is None
                else (f"{name}\t{length}\t{rate}\t{start}\n")
            )

    if not root or any(c in root for c in "\t\r\n"):
        raise ManifestError(f"{root!r}: the root must not be empty or contain a tab or line break")
    with (
        atomic_write(path) as part,
        part.open("w", encoding="utf-8", errors="surrogateescape", newline="") as file,
    ):
        file.writelines(lines())


def _problem_of(path: str) -> str:
    try:
        return retried(why_missing)(path)
    except OSError as error:
        return f"cannot be read ({error.strerror or error})"


def _parse_root(line: bytes, path: Path) -> str:
    root = os.fsdecode(line.removeprefix(b"\xef\xbb\xbf").rstrip(b"\r\n"))
    if not line:
        raise ManifestError(
            f"{path}: is empty; expected the root folder on line 1, then one row per file"
        )
    if "\t" in root or not root:
        raise ManifestError(
            f"{path}:1: {root!r} is not a root folder; line 1 must be the folder that paths are "
            "relative to ('/' for absolute paths)"
        )
    if scheme := unsupported_scheme(root):
        raise ManifestError(
            f"{path}:1: {root}: {scheme}:// is not supported; expected a folder, or a URL of "
            f"{', '.join(SCHEMES)}"
        )
    if is_url(root):
        return root.rstrip("/")
    return os.path.normpath(path.parent.resolve() / root)
