"""Find audio below folders and in tars, and split it into train, valid and test."""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from mae_ast.console import bar
from mae_ast.core.io.archive import TAR_SUFFIX, ArchiveError, list_members
from mae_ast.core.io.plural import plural
from mae_ast.core.io.read_ahead import map_ahead
from mae_ast.core.io.retry import retried
from mae_ast.core.io.suffixes import AUDIO_SUFFIXES
from mae_ast.prepare.layout import hash_uniform

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


def find_audio(folders: Sequence[Path], jobs: int) -> Found:
    """Walk folders, and list the files in their tars.

    Args:
        folders: resolved paths; one below another is not walked twice.
        jobs: number of tars read at a time.
    """
    found = Found()
    for folder in set(folders):
        if not any(folder != other and folder.is_relative_to(other) for other in folders):
            _walk(folder, found)
    found.audio.sort()
    found.tars.sort()
    if not found.tars:
        return found
    in_tars = map_ahead(_list_tar, found.tars, jobs, jobs)
    for members in bar("reading tars", "tar")(in_tars, len(found.tars)):
        found.audio += members.audio
        found.num_in_tars += len(members.audio)
        found.others += members.others
        found.damaged |= members.damaged
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
    splits: dict[str, list[str]] = {"train": [], "valid": [], "test": []}
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


def _walk(folder: Path, found: Found) -> None:
    seen: set[str] = set()
    for parent, folders, names in os.walk(folder, followlinks=True):
        real = os.path.realpath(parent)
        if real in seen:  # a link to a folder above, or to one that was listed already
            folders.clear()
            continue
        seen.add(real)
        for name in names:
            found.add(name, os.path.join(parent, name))


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
