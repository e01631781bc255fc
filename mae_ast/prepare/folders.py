"""Find audio below folders and in tars, and split it into train, valid and test."""

from __future__ import annotations

import math
import os
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from mae_ast.console import bar
from mae_ast.core.io.archive import TAR_SUFFIX, ArchiveError, list_members
from mae_ast.core.io.audio import AudioInfo
from mae_ast.core.io.plural import plural
from mae_ast.core.io.read_ahead import for_each_ahead
from mae_ast.core.io.retry import retried
from mae_ast.core.io.suffixes import AUDIO_SUFFIXES
from mae_ast.prepare.clips import (
    MIN_SECONDS,
    SKIPPED_FILE,
    SPLITS,
    Clip,
    Headers,
    read_headers,
    write_clips,
    write_report,
)
from mae_ast.prepare.layout import hash_uniform, walk_files

NOTES_FILE = "headers.txt"  # files whose header gives no length, or a wrong one
MAX_SUFFIXES = 50  # maximum number of suffixes of skipped files to name


@dataclass
class Found:
    """Files found below folders or in tars.

    Args:
        audio: paths of files with an audio suffix, in folders or in tars.
        num_in_tars: number of them in tars.
        tars: paths of tars.
        others: number of files with each other suffix.
        damaged: path to problem of tars that cannot be read to their end.
    """

    audio: list[str] = field(default_factory=list)
    num_in_tars: int = 0
    tars: list[str] = field(default_factory=list)
    others: Counter[str] = field(default_factory=Counter)
    damaged: dict[str, str] = field(default_factory=dict)

    def add(self, name: str, path: str) -> None:
        """Classify a file by its name and add it."""
        base = os.path.basename(name)
        suffix = os.path.splitext(base)[1].lower()
        if base.startswith("."):
            self.others["hidden"] += 1
        elif suffix in AUDIO_SUFFIXES:
            self.audio.append(path)
        elif suffix == TAR_SUFFIX:
            self.tars.append(path)
        else:
            is_suffix = re.fullmatch(r"\.\w{1,12}", suffix)  # "Dr. Who" has none
            self.others[suffix if is_suffix else "without a suffix"] += 1

    def describe_others(self) -> str:
        """Return the counts of other files, such as ``12 .txt, 3 .json``."""
        counted = sorted(self.others.items(), key=lambda item: (-item[1], item[0]))
        shown = [f"{count} {suffix}" for suffix, count in counted[:MAX_SUFFIXES]]
        more = len(self.others) - len(shown)
        return ", ".join(shown) + (
            f" and {plural(more, 'more suffix', 'more suffixes')}" if more > 0 else ""
        )


def write_manifests(
    folders: Sequence[Path],
    out: Path,
    valid: float,
    test: float,
    min_seconds: float,
    max_seconds: float,
    seed: int,
    jobs: int,
    segment_s: float | None = None,
) -> tuple[Found, Headers, dict[str, list[Clip]]]:
    """Write manifests of the audio below folders, and lists of skipped files and wrong headers.

    Args:
        folders: folders of audio files or tars.
        out: output folder, created if it does not exist.
        valid, test: fractions of the files for validation and test.
        min_seconds, max_seconds: limits of a file's length.
        seed: seed of the split.
        jobs: number of files read at a time.
        segment_s: length of the segments that longer files are listed as (:func:`segments_of`);
            ``None``: list whole files.

    Returns:
        The files below the folders; the lengths of the audio files, with the files that are not
        listed in ``skipped``; and the clips of each manifest, by its name.

    Raises:
        NotADirectoryError: a folder does not exist.
        ValueError: the segments are too short, there is no usable audio, or a manifest of an
            earlier run would remain.
    """
    for folder in folders:
        if folder.is_file():
            raise NotADirectoryError(f"{folder}: is a file; expected a folder of audio files")
        if not folder.is_dir():
            raise NotADirectoryError(f"{folder}: no such folder")
    if segment_s is not None and not max(min_seconds, MIN_SECONDS) <= segment_s < math.inf:
        raise ValueError(
            f"segments of {segment_s:g} s: expected at least {max(min_seconds, MIN_SECONDS):g} s, "
            "the minimum length of a clip"
        )
    folders = [folder.resolve() for folder in folders]
    found, headers = _usable_files(folders, min_seconds, max_seconds, jobs)
    out.mkdir(parents=True, exist_ok=True)
    splits = split_files(headers.infos, folders, valid, test, seed)
    for name in set(SPLITS) - set(splits):
        if (out / f"{name}.tsv").exists():
            raise ValueError(
                f"{out / name}.tsv is there from before and would stay, though its files may now "
                "be in another split; remove it, or choose another --out"
            )
    root = Path(os.path.commonpath(folders))
    clips = {
        name: [
            clip
            for path in paths
            for clip in segments_of(path, headers.infos[path], segment_s, min_seconds)
        ]
        for name, paths in splits.items()
    }
    for name, listed in clips.items():
        write_clips(out / f"{name}.tsv", root, listed, headers.infos)
    write_report(out / NOTES_FILE, map("\t".join, headers.notes().items()))
    write_report(out / SKIPPED_FILE, map("\t".join, headers.skipped.items()))
    return found, headers, clips


def _usable_files(
    folders: Sequence[Path], min_seconds: float, max_seconds: float, jobs: int
) -> tuple[Found, Headers]:
    """Find the audio below folders and read its headers; see :func:`write_manifests`.

    Raises:
        ValueError: there is no usable audio.
    """
    found = find_audio(folders, jobs)
    if not found.audio and not found.damaged:
        there = found.describe_others() or "nothing"
        raise ValueError(f"no audio files below {', '.join(map(str, folders))}; found {there}")
    headers = read_headers(found.audio, jobs, min_seconds, max_seconds)
    headers.skipped.update(found.damaged | dict.fromkeys(headers.missing, "no such file"))
    if not headers.infos:
        count, reason = len(headers.skipped), next(iter(headers.skipped.values()))
        raise ValueError(f"none of {plural(count, 'file')} is usable; the first: {reason}")
    return found, headers


def segments_of(
    path: str, info: AudioInfo, segment_s: float | None, min_seconds: float
) -> Iterator[Clip]:
    """Yield a file as one clip or, if it is longer than a segment, its segments.

    They follow one another from the start of the file. The last one has what remains; it is left
    out if it is shorter than ``min_seconds``.

    Args:
        path: path of the file.
        info: its length and sample rate.
        segment_s: length of a segment in seconds; ``None``: the file is one clip.
        min_seconds: minimum length of a clip.
    """
    size = info.num_frames if segment_s is None else round(segment_s * info.sample_rate)
    if info.num_frames <= size:
        yield Clip(path)
        return
    for start in range(0, info.num_frames, size):
        length = min(size, info.num_frames - start)
        if length == size or length >= min_seconds * info.sample_rate:
            yield Clip(path, start=start, length=length)


def find_audio(folders: Sequence[Path], jobs: int) -> Found:
    """Walk folders, and list the files in their tars.

    Args:
        folders: resolved paths; one below another is not walked twice.
        jobs: number of tars read at a time.
    """
    found = Found()
    for folder in set(folders):
        if not any(folder != other and folder.is_relative_to(other) for other in folders):
            for parent, name in walk_files(folder):
                found.add(name, os.path.join(parent, name))
    found.audio.sort()
    found.tars.sort()

    def add(tar: str, members: Found) -> None:
        found.audio += members.audio
        found.num_in_tars += len(members.audio)
        found.others += members.others
        found.damaged |= members.damaged

    if found.tars:
        for_each_ahead(_list_tar, found.tars, add, jobs, jobs, bar("reading tars", "tar"))
    return found


def split_files(
    files: Iterable[str], folders: Sequence[Path], valid: float, test: float, seed: int
) -> dict[str, list[str]]:
    """Split files by chance; a file's split depends on its path below its folder and the seed.

    Args:
        files: their paths.
        folders: folders that they are below.
        valid, test: fraction of the files; at least one file is drawn if the fraction is positive.
        seed: seed of the split.

    Returns:
        The splits that have files, by name.
    """
    splits: dict[str, list[str]] = {name: [] for name in SPLITS}
    for file in files:
        folder = next(f for f in folders if file.startswith(os.path.join(f, "")))
        chance = hash_uniform(f"{seed}\t{os.path.relpath(file, folder)}")
        splits["valid" if chance < valid else "test" if chance < valid + test else "train"].append(
            file
        )
    for name, ratio in (("valid", valid), ("test", test)):
        if ratio > 0 and not splits[name] and len(splits["train"]) > 1:
            splits[name].append(splits["train"].pop())
    return {name: listed for name, listed in splits.items() if listed}


def _list_tar(tar: str) -> Found:
    """List the files in a tar, and the tar itself if it is damaged."""
    found = Found()

    @retried
    def look() -> None:
        found.audio.clear()
        found.others.clear()
        for name, member in list_members(tar):
            found.add(name, str(member))

    try:
        look()
    except (ArchiveError, OSError) as error:
        found.damaged[tar] = str(error).removeprefix(f"{tar}: ")
    return found
