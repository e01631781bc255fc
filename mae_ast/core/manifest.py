"""Manifests: a text file that lists a split's audio files.

The first line is a root folder (a relative one lies beside the manifest); each further line is
``path<TAB>length``, the length in samples of that file, or ``path<TAB>length<TAB>sample rate``.
Without the third column the rates are read from the files' headers once and cached beside the
manifest.

Rows are held packed (one block of bytes, arrays of numbers), so that worker processes share them.
"""

from __future__ import annotations

import hashlib
import os
import zipfile
from array import array
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

import numpy as np

from mae_ast.core.audio import SAMPLE_RATE, SOURCE_RATES, AudioError, num_samples_16k, probe_audio

PROBE_THREADS = 16
FIRST_ROW_LINE = 2
MAX_RATE = SOURCE_RATES[1]
MAX_LENGTH = 2**48 - 1  # samples; 16,000 times as much still fits 64 bits

Progress = Callable[[Iterable[int], int], Iterable[int]]


class ManifestError(ValueError):
    """A manifest that cannot be used; the message gives file, line, value and the remedy."""


class Manifest:
    """The rows of one manifest.

    Args:
        path: the manifest file, for messages.
        root: folder that relative paths start from.
        packed_paths: all rows' paths, UTF-8, one after the other.
        path_ends: (rows,) int64, where each path ends in ``packed_paths``.
        lines: (rows,) int64, line numbers in the file.
        lengths: (rows,) int64, samples at each file's own rate.
        sample_rates: (rows,) int32, in Hz; 0 where the manifest does not say.
    """

    def __init__(
        self,
        path: Path,
        root: str,
        packed_paths: bytes,
        path_ends: np.ndarray,
        lines: np.ndarray,
        lengths: np.ndarray,
        sample_rates: np.ndarray,
    ) -> None:
        self.path = path
        self.root = root
        self.lines = lines
        self.lengths = lengths
        self.sample_rates = sample_rates
        self._packed_paths = packed_paths
        self._path_ends = path_ends

    @classmethod
    def read(cls, path: str | os.PathLike[str]) -> Manifest:
        """Parse a manifest; sample rates that it leaves out are 0.

        Raises:
            FileNotFoundError: there is no such file.
            ManifestError: a row is not as it must be, or there is none.
        """
        path = Path(path)
        if not path.is_file():
            raise FileNotFoundError(
                f"{path}: no such manifest; 'mae-ast manifest DIR...' writes one from folders"
            )
        packed = bytearray()
        ends, numbers = array("q"), array("q")
        lengths, rates = array("q"), array("i")
        with path.open("rb") as file:
            root = _root(file.readline(), path)
            for number, line in enumerate(file, start=FIRST_ROW_LINE):
                row = line.rstrip(b"\r\n")
                if not row:
                    continue
                columns = row.split(b"\t")
                if len(columns) not in (2, 3) or not columns[0]:
                    raise ManifestError(
                        f"{path}:{number}: {os.fsdecode(row)!r} has {len(columns)} column(s); a "
                        "row is: path, tab, length in samples (then optionally tab, sample rate)"
                    )
                packed += columns[0]
                ends.append(len(packed))
                numbers.append(number)
                lengths.append(_number(columns[1], "length in samples", MAX_LENGTH, path, number))
                rate = columns[2] if len(columns) == 3 else b""
                rates.append(
                    _number(rate, "sample rate in Hz", MAX_RATE, path, number) if rate else 0
                )
        if not ends:
            raise ManifestError(f"{path}: lists no files; after the root, one row for each file")
        return cls(
            path,
            root,
            bytes(packed),
            np.asarray(ends, dtype=np.int64),
            np.asarray(numbers, dtype=np.int64),
            np.asarray(lengths, dtype=np.int64),
            np.asarray(rates, dtype=np.int32),
        )

    @classmethod
    def load(cls, path: str | os.PathLike[str], progress: Progress | None = None) -> Manifest:
        """:meth:`read`, then check that the files exist and find out the missing sample rates.

        Args:
            path: the manifest.
            progress: wraps the iteration over files whose headers are read; gets it and its length.
        """
        manifest = cls.read(path)
        manifest.check_paths()
        manifest.probe_rates(progress)
        return manifest

    def __len__(self) -> int:
        return len(self.lengths)

    def row_path(self, row: int) -> str:
        """As written in the manifest."""
        begin = self._path_ends[row - 1] if row else 0
        return os.fsdecode(self._packed_paths[begin : self._path_ends[row]])

    def audio_path(self, row: int) -> str:
        """Under the root."""
        return os.path.join(self.root, self.row_path(row))

    def where(self, row: int) -> str:
        """``file:line``, for messages."""
        return f"{self.path}:{self.lines[row]}"

    @property
    def num_samples(self) -> np.ndarray:
        """(rows,) int64, lengths at 16 kHz."""
        rates = np.where(self.sample_rates > 0, self.sample_rates, SAMPLE_RATE).astype(np.int64)
        return num_samples_16k(self.lengths, rates)

    def take(self, rows: Iterable[int] | np.ndarray) -> Manifest:
        """Some of the rows, in this order; messages still name their lines in the file."""
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
        )

    def check_paths(self, at_most: int = 10_000) -> None:
        """Look whether the files exist: all of them, or ``at_most`` spread evenly over the rows.

        Raises:
            ManifestError: one does not.
        """
        rows = np.unique(np.linspace(0, len(self) - 1, min(len(self), at_most)).astype(np.int64))
        for row in rows.tolist():
            if not os.path.isfile(self.audio_path(row)):
                raise ManifestError(
                    f"{self.where(row)}: {self.audio_path(row)}: no such file; the path is taken "
                    f"relative to the root on line 1 ({self.root})"
                )

    def probe_rates(self, progress: Progress | None = None) -> None:
        """Fill in the sample rates that the manifest does not give, from cache or headers.

        Files whose headers cannot be read keep 0; decoding them will tell what is wrong.
        """
        unknown = np.flatnonzero(self.sample_rates == 0)
        if not len(unknown):
            return
        cache = self.path.with_name(self.path.name + ".rates.npz")
        digest = hashlib.sha256(self.path.read_bytes()).hexdigest()
        cached = _read_cache(cache, digest, len(self))
        if cached is not None:
            self.sample_rates = cached
            unknown = np.flatnonzero(cached == 0)  # could not be read then; perhaps they can now
            if not len(unknown):
                return
        with ThreadPoolExecutor(PROBE_THREADS) as pool:
            found: Iterable[int] = pool.map(self._probe_rate, unknown.tolist())
            if progress is not None:
                found = progress(found, len(unknown))
            self.sample_rates[unknown] = list(found)
        _write_cache(cache, digest, self.sample_rates)

    def _probe_rate(self, row: int) -> int:
        try:
            return probe_audio(self.audio_path(row)).sample_rate
        except (AudioError, FileNotFoundError):
            return 0


def write_manifest(
    path: str | os.PathLike[str], root: str, rows: Iterable[tuple[str, int, int]]
) -> None:
    """Write (path, length in samples, sample rate) rows, atomically."""
    path = Path(path)

    def lines() -> Iterator[str]:
        yield f"{root}\n"
        for name, length, rate in rows:
            if any(c in name for c in "\t\r\n"):
                raise ManifestError(f"{name!r}: a path with a tab or line break fits no manifest")
            yield f"{name}\t{length}\t{rate}\n"

    if not root or any(c in root for c in "\t\r\n"):
        raise ManifestError(f"{root!r}: is no root folder, or has a tab or line break in its name")
    part = path.with_name(f"{path.name}.{os.getpid()}.part")
    try:
        with part.open("w", encoding="utf-8", errors="surrogateescape", newline="") as file:
            file.writelines(lines())
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)


def _root(line: bytes, path: Path) -> str:
    root = os.fsdecode(line.removeprefix(b"\xef\xbb\xbf").rstrip(b"\r\n"))
    if not line:
        raise ManifestError(f"{path}: is empty; line 1 is the root folder, then one row a file")
    if "\t" in root or not root:
        raise ManifestError(
            f"{path}:1: {root!r} is no root folder; line 1 is the folder that paths start from "
            "('/' where they are absolute)"
        )
    return os.path.normpath(path.parent.resolve() / root)


def _number(text: bytes, what: str, most: int, path: Path, number: int) -> int:
    try:
        value = int(text)
    except ValueError:
        value = 0
    if not 0 < value <= most:
        raise ManifestError(
            f"{path}:{number}: {os.fsdecode(text)!r} is no {what}; a positive whole number "
            f"up to {most} is"
        )
    return value


def _read_cache(cache: Path, digest: str, rows: int) -> np.ndarray | None:
    try:
        with np.load(cache, allow_pickle=False) as stored:
            if str(stored["digest"]) != digest or len(stored["sample_rates"]) != rows:
                return None
            rates: np.ndarray = stored["sample_rates"].astype(np.int32)
            return rates
    except (OSError, EOFError, TypeError, ValueError, KeyError, zipfile.BadZipFile):
        return None


def _write_cache(cache: Path, digest: str, rates: np.ndarray) -> None:
    part = cache.with_name(f"{cache.name}.{os.getpid()}.part")
    try:
        with part.open("wb") as file:
            np.savez(file, digest=np.array(digest), sample_rates=rates)
        part.replace(cache)
    except OSError:  # a read-only folder: probed again next time
        with suppress(OSError):
            part.unlink(missing_ok=True)
