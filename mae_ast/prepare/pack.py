"""Pack a manifest's files into uncompressed tars, for file systems that are slow with many files.

For ``train.tsv``, the output folder contains

    train-00000.tar, ...   the shards, with the files under their own names, and the segments of a
                           file as NAME_START-END.flac, in samples at the file's own rate
    train.tsv              the manifest, with rows ``train-00000.tar:offset:length``
    train.lbl, labels.csv  labels, if there are any beside the original manifest
    train.left_out.txt     skipped files and the reasons; they have no row and no label
    train.pack.json        description of the packed data and the options
    SHA256SUMS             checksums of the shards of all splits, by which remote ones are verified

Rows keep their order. Packing can be interrupted at any time; it resumes and writes identical files
(:mod:`mae_ast.prepare.shard_writer`). Files are read, decoded, encoded and written in pieces, so
memory does not depend on their length.
"""

from __future__ import annotations

import filecmp
import os
import re
import shutil
from collections import deque
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mae_ast.core.io.archive import ArchiveError, Member, check_member
from mae_ast.core.io.atomic import atomic_write, file_lock
from mae_ast.core.io.audio import SAMPLE_RATE, AudioError
from mae_ast.core.io.labels import LABELS_FILE, LabelError
from mae_ast.core.io.manifest import WHOLE, Manifest, ManifestError, write_manifest
from mae_ast.core.io.plural import plural
from mae_ast.core.io.read_ahead import Progress, for_each_ahead
from mae_ast.core.io.retry import is_transient
from mae_ast.core.io.segment import Segment
from mae_ast.core.io.settings_note import file_digest
from mae_ast.prepare.pack_files import copied, decoded_digest, transcoded
from mae_ast.prepare.shard_sums import write_sums
from mae_ast.prepare.shard_writer import PackedFile, Shards

JOBS = 8  # files read at a time
_UNITS = {"": 0, "K": 1, "M": 2, "G": 3, "T": 4}


@dataclass(frozen=True)
class Packed:
    """Result of packing a manifest.

    Args:
        manifest: path of the manifest of the shards.
        num_clips: number of its rows.
        num_shards: number of its tars.
        skipped_list: path of the list of skipped files; ``None`` if none were skipped.
    """

    manifest: Path
    num_clips: int
    num_shards: int
    skipped_list: Path | None


def parse_bytes(text: str) -> int:
    """Parse a size such as ``500M``, ``1G`` or ``1.5GiB`` to bytes; units are powers of 1024.

    Raises:
        ValueError: the text is not a valid size.
    """
    match = re.fullmatch(r"(\d+(?:\.\d+)?)([KMGT]?)(?:i?B)?", text.strip(), re.IGNORECASE)
    size = 0 if match is None else int(float(match[1]) * 1024 ** _UNITS[match[2].upper()])
    if size < 1:
        raise ValueError(f"--shard-size {text}; expected a size such as 500M or 1G")
    return size


def pack(
    manifest: Manifest,
    out: Path,
    shard_bytes: int,
    transcode: bool = False,
    jobs: int = JOBS,
    progress: Progress | None = None,
) -> Packed:
    """Pack the files of a manifest into shards, or resume an interrupted run.

    Files are copied without checking that they can be decoded. Of a segment, only its own audio is
    packed, transcoded. Files that do not exist are skipped, and of those transcoded also the ones
    that cannot be decoded.

    Args:
        manifest: manifest with sample rates.
        out: output folder for the shards.
        shard_bytes: maximum size of a shard; a larger file gets its own shard.
        transcode: convert to FLAC at 16 kHz, mono, 16 bits, which decodes to the same samples.
        jobs: number of files read or transcoded at a time.
        progress: wraps the iteration over rows; called with the iterable and its length.

    Raises:
        ValueError: the folder contains different shards, another process is packing them, labels do
            not match the manifest, or all files were skipped.
        OSError: a file cannot be read or written; calling again resumes.
    """
    _check_labels(manifest, out)
    out.mkdir(parents=True, exist_ok=True)
    shards = Shards(out, manifest.path.stem, shard_bytes, _describe_source(manifest, transcode))
    skipped_list = out / f"{manifest.path.stem}.left_out.txt"

    def pack_row(row: int) -> PackedFile | str:
        return _pack_row(manifest, row, out, transcode)

    def add(row: int, file: PackedFile | str) -> None:
        try:
            shards.add(row, file)
        except (ArchiveError, OSError) as error:
            shards.add(row, _why_skipped(manifest, row, error))

    if not shards.is_complete():
        with file_lock(shards.manifest), shards:
            left = range(shards.num_rows, len(manifest))
            for_each_ahead(pack_row, left, add, jobs, jobs, progress)
            shards.end()
            _write_lists(manifest, shards, skipped_list)
            write_sums(out, manifest.path.stem, renew=True)
            shards.remove_journal()
    else:
        write_sums(out, manifest.path.stem, renew=False)  # packed by an earlier version
    with shards.manifest.open("rb") as lines:
        names = [line.split(b":")[0] for line in lines][1:]
    found = skipped_list if skipped_list.exists() else None
    return Packed(shards.manifest, len(names), len(set(names)), found)


def verify(
    manifest: Manifest,
    jobs: int = JOBS,
    progress: Progress | None = None,
    sources: list[Segment] | None = None,
) -> dict[int, str]:
    """Read all files of a packed manifest; return the problems of damaged ones, by row.

    Files without a checksum, in tars written by other programs, are decoded instead.

    Args:
        manifest: manifest of shards.
        jobs: number of files read at a time.
        progress: wraps the iteration over rows; called with the iterable and its length.
        sources: for each row, the file or segment that it was packed from, whose decoded samples
            are compared; ``None`` verifies checksums only.

    Raises:
        ManifestError: a row is a loose file.
    """

    def problem(row: int) -> str:
        path = manifest.audio_path(row)
        member = Member.parse(path)
        if member is None:
            raise ManifestError(f"{manifest.where(row)}: {path}: is not inside an archive")
        try:
            segment = manifest.segment(row)
            if not check_member(member):
                decoded_digest(segment)
            if sources is not None and decoded_digest(segment) != decoded_digest(sources[row]):
                return f"its samples differ from those of {sources[row]}"
            return ""
        except (ArchiveError, AudioError, OSError) as error:
            return str(error).removeprefix(f"{path}: ")

    found = {}

    def note(row: int, text: str) -> None:
        if text:
            found[row] = text

    for_each_ahead(problem, range(len(manifest)), note, jobs, 4 * jobs, progress)
    return found


def sources_of(manifest: Manifest, packed: Packed) -> list[Segment]:
    """Return the files and segments that were packed, one for each row of the packed manifest."""
    skipped: deque[str] = deque()
    if packed.skipped_list is not None:
        lines = os.fsdecode(packed.skipped_list.read_bytes()).split("\n")
        skipped.extend(line.rpartition("\t")[0] for line in lines[:-1])
    sources = []
    for segment in map(manifest.segment, range(len(manifest))):
        if skipped and skipped[0] == str(segment):
            skipped.popleft()
        else:
            sources.append(segment)
    return sources


def _pack_row(manifest: Manifest, row: int, out: Path, transcode: bool) -> PackedFile | str:
    """Return the packed file of a row, or the reason why it is skipped."""
    segment, row_path = manifest.segment(row), manifest.row_path(row)
    start, length = int(manifest.starts[row]), int(manifest.lengths[row])
    try:
        if start != WHOLE:
            return transcoded(segment, row_path, f"_{start}-{start + length}", out)
        if transcode:
            return transcoded(segment, row_path, "", out)
        rate = int(manifest.sample_rates[row]) or SAMPLE_RATE  # the default for unknown rates
        return copied(segment.path, row_path, length, rate)
    except (AudioError, ArchiveError, OSError) as error:
        return _why_skipped(manifest, row, error)


def _why_skipped(manifest: Manifest, row: int, error: Exception) -> str:
    """Return the reason why the file of a row is skipped.

    Raises:
        OSError: the file is not skipped, because reading it again may succeed.
    """
    path = manifest.audio_path(row)
    if isinstance(error, FileNotFoundError):
        return "no such file"
    if not isinstance(error, OSError) and not is_transient(error):
        return " ".join(str(error).removeprefix(f"{path}: ").split())
    if isinstance(error, OSError) and error.errno is None:  # raised here, with a full message
        raise error
    reason = getattr(error, "strerror", None) or str(error).removeprefix(f"{path}: ")
    raise OSError(
        f"{manifest.where(row)}: {path}: cannot be read ({reason}); once it is readable, "
        "the same command resumes"
    ) from error


def _write_lists(manifest: Manifest, shards: Shards, skipped_list: Path) -> None:
    """Write the labels, the list of skipped files, and finally the manifest."""
    num_left = sum(1 for row in shards.rows() if row.member)
    if not num_left:
        first = next(shards.rows())
        raise ValueError(
            f"{manifest.path}: none of {plural(len(manifest), 'file')} could be packed; the first, "
            f"{manifest.segment(0)}: {first.problem}"
        )
    if num_left < len(manifest):
        with atomic_write(skipped_list) as part, part.open("wb") as file:
            for number, row in enumerate(shards.rows()):
                if not row.member:
                    line = f"{manifest.segment(number)}\t{row.problem}\n"
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


def _describe_source(manifest: Manifest, transcode: bool) -> dict[str, Any]:
    labels = manifest.path.with_suffix(".lbl")
    return {
        "manifest": str(manifest.path.resolve()),
        "content": file_digest(manifest.path),
        "labels": file_digest(labels) if labels.is_file() else None,
        "clips": len(manifest),
        "transcode": transcode,
    }


def _check_labels(manifest: Manifest, out: Path) -> None:
    labels = manifest.path.with_suffix(".lbl")
    if labels.is_file():
        with labels.open("rb") as file:
            num_lines = sum(1 for _ in file)
        if num_lines != len(manifest):
            raise LabelError(
                f"{labels}: has {plural(num_lines, 'line')}, but {manifest.path.name} lists "
                f"{plural(len(manifest), 'clip')}; expected one line per clip, in the same order"
            )
    classes, there = manifest.path.with_name(LABELS_FILE), out / LABELS_FILE
    if classes.is_file() and there.is_file() and not filecmp.cmp(classes, there, shallow=False):
        raise LabelError(f"{there}: differs from {classes}; choose another output folder")
