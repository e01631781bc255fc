"""Pack a manifest's files into uncompressed tars, for file systems that suffer from many files.

The folder then holds, for ``train.tsv``,

    train-00000.tar, ...   the shards; in them the files have their own names
    train.tsv              the manifest; its rows are ``train-00000.tar:offset:length``
    train.lbl, labels.csv  labels, where there were some beside the manifest
    train.left_out.txt     files that could not be packed, and why; they have no row, and no label
    train.pack.json        what was packed, and how

Rows keep their order. Packing can be stopped at any moment; it resumes and writes the same files
(:mod:`mae_ast.prepare.shard_writer`). Files are read, decoded, encoded and written in pieces, so
memory does not depend on their length.
"""

from __future__ import annotations

import filecmp
import hashlib
import os
import re
import shutil
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from mae_ast.core.io.archive import ArchiveError, Member, check_member
from mae_ast.core.io.atomic import atomic_write, file_lock
from mae_ast.core.io.audio import SAMPLE_RATE, AudioError
from mae_ast.core.io.labels import LABELS_FILE, LabelError
from mae_ast.core.io.manifest import Manifest, ManifestError, Progress, write_manifest
from mae_ast.core.io.plural import plural
from mae_ast.core.io.retry import is_transient
from mae_ast.prepare.pack_files import as_it_is, decoded_digest, transcoded
from mae_ast.prepare.shard_writer import PackedFile, Shards

JOBS = 8  # files read at a time
_UNITS = {"": 0, "K": 1, "M": 2, "G": 3, "T": 4}

T = TypeVar("T")
R = TypeVar("R")


@dataclass(frozen=True)
class Packed:
    """What there is in the end.

    Args:
        manifest: of the shards.
        num_clips: its rows.
        num_shards: its tars.
        left_out: the list of files that could not be packed; ``None``: all were.
    """

    manifest: Path
    num_clips: int
    num_shards: int
    left_out: Path | None


def parse_bytes(text: str) -> int:
    """``500M``, ``1G``, ``1.5GiB`` to bytes; the units are powers of 1024.

    Raises:
        ValueError: it is no such size.
    """
    match = re.fullmatch(r"(\d+(?:\.\d+)?)([KMGT]?)(?:i?B)?", text.strip(), re.IGNORECASE)
    size = 0 if match is None else int(float(match[1]) * 1024 ** _UNITS[match[2].upper()])
    if size < 1:
        raise ValueError(f"--shard-size {text}; a size such as 500M or 1G")
    return size


def pack(
    manifest: Manifest,
    out: Path,
    shard_bytes: int,
    transcode: bool = False,
    jobs: int = JOBS,
    progress: Progress | None = None,
) -> Packed:
    """Write a manifest's files to shards; goes on with what is there.

    Files are packed as they are, be they good or bad. Those that do not exist, and with
    ``transcode`` those that cannot be decoded, are left out.

    Args:
        manifest: with sample rates.
        out: folder for the shards.
        shard_bytes: size of a shard; a larger file has one of its own.
        transcode: to FLAC of 16 kHz, mono, 16 bits; reading gives the same samples.
        jobs: files read, or transcoded, at a time.
        progress: wraps the iteration over rows; gets it and their number.

    Raises:
        ValueError: the folder holds something else, another process packs the same, labels do not
            fit, or no file is left.
        OSError: something cannot be read or written; the same again goes on.
    """
    _check_labels(manifest, out)
    out.mkdir(parents=True, exist_ok=True)
    shards = Shards(out, manifest.path.stem, shard_bytes, _description(manifest, transcode))
    left_out = out / f"{manifest.path.stem}.left_out.txt"
    if not shards.are_complete():
        with file_lock(shards.manifest), shards, ThreadPoolExecutor(jobs) as pool:
            left = range(shards.num_rows, len(manifest))
            files = _ahead(pool, lambda row: _file(manifest, row, out, transcode), left, jobs)

            def added() -> Iterator[int]:
                for row, file in zip(left, files, strict=True):
                    try:
                        shards.add(row, file)
                    except (ArchiveError, OSError) as error:
                        shards.add(row, _why_skipped(manifest, row, error))
                    yield row

            steps: Iterable[int] = added() if progress is None else progress(added(), len(left))
            deque(steps, maxlen=0)
            shards.end()
            _write_lists(manifest, shards, left_out)
            shards.forget()
    with shards.manifest.open("rb") as lines:
        names = [line.split(b":")[0] for line in lines][1:]
    found = left_out if left_out.exists() else None
    return Packed(shards.manifest, len(names), len(set(names)), found)


def verify(
    manifest: Manifest,
    jobs: int = JOBS,
    progress: Progress | None = None,
    sources: list[str] | None = None,
) -> dict[int, str]:
    """Read all files of a packed manifest; return the problems of damaged ones, by row.

    Files without a checksum, in tars that others made, are decoded instead.

    Args:
        manifest: of shards.
        jobs: files read at a time.
        progress: wraps the iteration over rows; gets it and their number.
        sources: per row the path of the file that it was transcoded from, to compare with what
            that decodes to; ``None``: checksums only.

    Raises:
        ManifestError: a row is a loose file.
    """

    def problem(row: int) -> str:
        path = manifest.audio_path(row)
        member = Member.parse(path)
        if member is None:
            raise ManifestError(f"{manifest.where(row)}: {path}: lies in no archive")
        try:
            if not check_member(member):
                decoded_digest(path)
            if sources is not None and decoded_digest(path) != decoded_digest(sources[row]):
                return f"its samples are not those of {sources[row]}"
            return ""
        except (ArchiveError, AudioError, OSError) as error:
            return str(error).removeprefix(f"{path}: ")

    found = {}
    with ThreadPoolExecutor(jobs) as pool:

        def checked() -> Iterator[int]:
            rows = range(len(manifest))
            for row, text in enumerate(_ahead(pool, problem, rows, 4 * jobs)):
                if text:
                    found[row] = text
                yield row

        steps: Iterable[int] = checked()
        deque(steps if progress is None else progress(steps, len(manifest)), maxlen=0)
    return found


def sources_of(manifest: Manifest, packed: Packed) -> list[str]:
    """List the paths of the files that were packed, one for each row of the packed manifest."""
    skipped: deque[str] = deque()
    if packed.left_out is not None:
        lines = os.fsdecode(packed.left_out.read_bytes()).split("\n")
        skipped.extend(line.rpartition("\t")[0] for line in lines[:-1])
    paths = []
    for path in map(manifest.audio_path, range(len(manifest))):
        if skipped and skipped[0] == path:
            skipped.popleft()
        else:
            paths.append(path)
    return paths


def _file(manifest: Manifest, row: int, out: Path, transcode: bool) -> PackedFile | str:
    """A row's file, or why there is none."""
    path, row_path = manifest.audio_path(row), manifest.row_path(row)
    try:
        if transcode:
            return transcoded(path, row_path, out)
        rate = int(manifest.sample_rates[row]) or SAMPLE_RATE  # as reading takes an unknown one
        return as_it_is(path, row_path, int(manifest.lengths[row]), rate)
    except (AudioError, ArchiveError, OSError) as error:
        return _why_skipped(manifest, row, error)


def _why_skipped(manifest: Manifest, row: int, error: Exception) -> str:
    """Return why a row's file is skipped.

    Raises:
        OSError: it is not skipped, because another attempt may succeed.
    """
    path = manifest.audio_path(row)
    if isinstance(error, FileNotFoundError):
        return "no such file"
    if not isinstance(error, OSError) and not is_transient(error):
        return " ".join(str(error).removeprefix(f"{path}: ").split())
    if isinstance(error, OSError) and error.errno is None:  # says itself what cannot be done
        raise error
    reason = getattr(error, "strerror", None) or str(error).removeprefix(f"{path}: ")
    raise OSError(
        f"{manifest.where(row)}: {path}: cannot be read ({reason}); once it can, "
        "the same command continues"
    ) from error


def _write_lists(manifest: Manifest, shards: Shards, left_out: Path) -> None:
    """Labels, what is left out, and last the manifest."""
    num_left = sum(1 for row in shards.rows() if row.member)
    if not num_left:
        first = next(shards.rows())
        raise ValueError(
            f"{manifest.path}: none of {plural(len(manifest), 'file')} could be packed; the first, "
            f"{manifest.audio_path(0)}: {first.problem}"
        )
    if num_left < len(manifest):
        with atomic_write(left_out) as part, part.open("wb") as file:
            for number, row in enumerate(shards.rows()):
                if not row.member:
                    line = f"{manifest.audio_path(number)}\t{row.problem}\n"
                    file.write(os.fsencode(line))
    labels, classes = manifest.path.with_suffix(".lbl"), manifest.path.with_name(LABELS_FILE)
    if labels.is_file():
        kept = shards.manifest.with_suffix(".lbl")
        with atomic_write(kept) as part, part.open("wb") as file, labels.open("rb") as lines:
            file.writelines(
                line for line, row in zip(lines, shards.rows(), strict=True) if row.member
            )
    if classes.is_file():
        with atomic_write(shards.manifest.with_name(LABELS_FILE)) as part:
            shutil.copyfile(classes, part)
    packed = ((row.member, row.length, row.sample_rate) for row in shards.rows() if row.member)
    write_manifest(shards.manifest, ".", packed)


def _description(manifest: Manifest, transcode: bool) -> dict[str, Any]:
    labels = manifest.path.with_suffix(".lbl")
    return {
        "manifest": str(manifest.path.resolve()),
        "content": _digest(manifest.path),
        "labels": _digest(labels) if labels.is_file() else None,
        "clips": len(manifest),
        "transcode": transcode,
    }


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()[:16]


def _check_labels(manifest: Manifest, out: Path) -> None:
    labels = manifest.path.with_suffix(".lbl")
    if labels.is_file():
        with labels.open("rb") as file:
            num_lines = sum(1 for _ in file)
        if num_lines != len(manifest):
            raise LabelError(
                f"{labels}: has {plural(num_lines, 'line')}, {manifest.path.name} lists "
                f"{plural(len(manifest), 'clip')}; one line for each clip, in the same order"
            )
    classes, there = manifest.path.with_name(LABELS_FILE), out / LABELS_FILE
    if classes.is_file() and there.is_file() and not filecmp.cmp(classes, there, shallow=False):
        raise LabelError(f"{there}: has other classes than {classes}; choose another folder")


def _ahead(
    pool: ThreadPoolExecutor, function: Callable[[T], R], items: Iterable[T], most: int
) -> Iterator[R]:
    """``pool.map`` that is at most so many items ahead."""
    waiting: deque[Future[R]] = deque()
    for item in items:
        waiting.append(pool.submit(function, item))
        if len(waiting) > most:
            yield waiting.popleft().result()
    while waiting:
        yield waiting.popleft().result()
