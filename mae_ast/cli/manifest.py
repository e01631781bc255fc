"""``mae-ast manifest DIR...``: folders of audio, or of tars, to {train,valid,test}.tsv."""

from __future__ import annotations

import hashlib
import os
import re
from collections import Counter
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

import typer

from mae_ast.console import bar
from mae_ast.core.io.archive import TAR_SUFFIX, ArchiveError, list_members
from mae_ast.core.io.audio import SAMPLE_RATE, AudioError, AudioInfo, num_samples_16k, probe_audio
from mae_ast.core.io.manifest import PROBE_THREADS, write_manifest
from mae_ast.core.io.plural import plural
from mae_ast.core.io.retry import retried
from mae_ast.core.io.suffixes import AUDIO_SUFFIXES

MAX_LISTED = 10  # maximum number of reasons for skipping files, and of wrong headers, to print
MAX_SUFFIXES = 50  # maximum number of suffixes of skipped files to print
PRETRAINING_S = 2.0  # task.min_sample_size of the presets for pretraining


@dataclass(frozen=True)
class _Probed:
    path: str
    info: AudioInfo | None
    problem: str  # why it is skipped; empty if it is not


@dataclass
class _Found:
    """Files found below folders or in tars.

    Args:
        audio: paths of files with an audio suffix.
        tars: paths of tars.
        others: number of files with each other suffix.
        damaged: tars that cannot be read to their end.
    """

    audio: list[str] = field(default_factory=list)
    tars: list[str] = field(default_factory=list)
    others: Counter[str] = field(default_factory=Counter)
    damaged: list[_Probed] = field(default_factory=list)

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


def manifest(
    folders: Annotated[
        list[Path], typer.Argument(metavar="DIR...", help="Folders of audio or of tars with audio.")
    ],
    out: Annotated[Path, typer.Option(help="Folder for the manifests.")] = Path("manifests"),
    valid: Annotated[float, typer.Option(help="Fraction of files for validation.")] = 0.01,
    test: Annotated[float, typer.Option(help="Fraction of files for test.")] = 0.0,
    min_seconds: Annotated[
        float,
        typer.Option(
            help="Skip shorter files. A model needs one patch (0.175 s, with frame patches 0.035 "
            "s); pretraining skips clips below task.min_sample_size, 2 s by default."
        ),
    ] = 0.045,
    max_seconds: Annotated[float, typer.Option(help="Skip longer files.")] = float("inf"),
    seed: Annotated[int, typer.Option(help="Seed of the split.")] = 0,
    jobs: Annotated[int, typer.Option(help="Files read at a time.")] = PROBE_THREADS,
) -> None:
    """Walk folders, find the length of each audio file, and write manifests.

    Uncompressed tars, such as WebDataset's shards, are read like folders, without unpacking.
    Unreadable files are listed, files with other suffixes are counted. Lengths come from the
    headers; files whose header has none, or a wrong one, are decoded.

    A file's split depends only on its path below DIR and the seed, so adding files or folders does
    not change it.
    """
    if valid < 0 or test < 0 or valid + test >= 1:
        raise ValueError(f"--valid {valid} and --test {test} leave nothing for training")
    for folder in folders:
        if not folder.is_dir():
            raise NotADirectoryError(f"{folder}: no such folder")
    folders = [folder.resolve() for folder in folders]
    root = Path(os.path.commonpath(folders))
    with ThreadPoolExecutor(jobs) as pool:
        found = _look_through(folders, pool)
        if not found.audio and not found.damaged:
            there = found.describe_others() or "nothing"
            raise ValueError(f"no audio files below {', '.join(map(str, folders))}; found {there}")
        infos = pool.map(lambda path: _probe(path, min_seconds, max_seconds), found.audio)
        probed = [*found.damaged, *bar("reading headers", "file")(infos, len(found.audio))]
    kept = [file for file in probed if not file.problem]
    if not kept:
        raise ValueError(
            f"none of {plural(len(probed), 'file')} is usable; the first: {probed[0].problem}"
        )
    out.mkdir(parents=True, exist_ok=True)
    splits = _split(kept, folders, valid, test, seed)
    for name in {"train", "valid", "test"} - set(splits):
        if (out / f"{name}.tsv").exists():
            raise ValueError(
                f"{out / name}.tsv is there from before and would stay, though its files may now "
                "be in another split; remove it, or choose another --out"
            )
    for name, files in splits.items():
        write_manifest(out / f"{name}.tsv", str(root), _rows(files, root))
        seconds = [f.info.num_frames / f.info.sample_rate for f in files if f.info is not None]
        hours = sum(seconds) / 3600
        typer.echo(f"{out / name}.tsv: {plural(len(files), 'file')}, {hours:.2f} h")
        _report_short(seconds)
    _report_headers(kept, out)
    _report_skipped([file for file in probed if file.problem], found, out)


def _look_through(folders: list[Path], pool: ThreadPoolExecutor) -> _Found:
    """Walk folders, and list the files in their tars."""
    found = _Found()
    for folder in set(folders):
        if not any(folder != other and folder.is_relative_to(other) for other in folders):
            _walk(folder, found)
    found.audio, found.tars = sorted(found.audio), sorted(found.tars)
    if found.tars and found.audio:
        typer.echo(
            f"found {plural(len(found.audio), 'audio file')} and {plural(len(found.tars), 'tar')}; "
            "where a tar holds the same files, they are listed twice",
            err=True,
        )
    if found.tars:
        tars = pool.map(_members, found.tars)
        for members in bar("reading tars", "tar")(tars, len(found.tars)):
            found.audio += members.audio
            found.others += members.others
            found.damaged += members.damaged
    return found


def _walk(folder: Path, found: _Found) -> None:
    seen: set[str] = set()
    for parent, folders, names in os.walk(folder, followlinks=True):
        real = os.path.realpath(parent)
        if real in seen:  # a link to a folder above, or to one that was listed already
            folders.clear()
            continue
        seen.add(real)
        for name in names:
            found.add(name, os.path.join(parent, name))


def _members(tar: str) -> _Found:
    """List the files in a tar, and the tar itself if it is damaged."""
    found = _Found()

    @retried
    def look() -> None:
        found.audio.clear()
        found.others.clear()
        for name, member in list_members(tar):
            found.add(name, str(member))

    try:
        look()
    except (ArchiveError, OSError) as error:
        found.damaged.append(_Probed(tar, None, str(error).removeprefix(f"{tar}: ")))
    return found


def _probe(path: str, min_seconds: float, max_seconds: float) -> _Probed:
    try:
        info = probe_audio(path)
    except (AudioError, OSError) as error:
        return _Probed(path, None, str(error).removeprefix(f"{path}: "))
    seconds = info.num_frames / info.sample_rate
    problem = ""
    if any(c in path for c in "\t\r\n"):
        problem = "its path has a tab or a line break"
    elif num_samples_16k(info.num_frames, info.sample_rate) == 0:
        problem = "nothing of it can be decoded"
    elif seconds < min_seconds:
        problem = f"shorter than {min_seconds:g} s"
    elif seconds > max_seconds:
        problem = f"longer than {max_seconds:g} s"
    return _Probed(path, info, problem)


def _split(
    files: list[_Probed], folders: list[Path], valid: float, test: float, seed: int
) -> dict[str, list[_Probed]]:
    splits: dict[str, list[_Probed]] = {"train": [], "valid": [], "test": []}
    for file in files:
        folder = next(f for f in folders if file.path.startswith(os.path.join(f, "")))
        relative = os.path.relpath(file.path, folder)
        digest = hashlib.sha256(f"{seed}\t{relative}".encode(errors="surrogateescape")).digest()
        draw = int.from_bytes(digest[:8], "big") / 2**64
        name = "valid" if draw < valid else "test" if draw < valid + test else "train"
        splits[name].append(file)
    for name, share in (("valid", valid), ("test", test)):
        if share > 0 and not splits[name] and len(splits["train"]) > 1:
            splits[name].append(splits["train"].pop())  # small sets get one file at least
    return {name: listed for name, listed in splits.items() if listed}


def _rows(files: list[_Probed], root: Path) -> Iterable[tuple[str, int, int]]:
    for file in files:
        assert file.info is not None
        yield os.path.relpath(file.path, root), file.info.num_frames, file.info.sample_rate


def _report_short(seconds: list[float]) -> None:
    """Report listed files that pretraining skips by default."""
    short = [each for each in seconds if each < PRETRAINING_S]
    if short:
        typer.echo(
            f"  {len(short)} of them ({len(short) / len(seconds):.0%}) are shorter than "
            f"{PRETRAINING_S:g} s, which pretraining skips by default; to keep them, lower "
            f"task.min_sample_size={round(PRETRAINING_S * SAMPLE_RATE)} (samples at 16 kHz)",
            err=True,
        )


def _report_headers(files: list[_Probed], out: Path) -> None:
    """Report files whose length was measured because their header gives none or a wrong one."""
    noted = [
        (file.path, file.info.note) for file in files if file.info is not None and file.info.note
    ]
    if not noted:
        return
    report = out / "headers.txt"
    report.write_text(
        "".join(f"{path}\t{note}\n" for path, note in noted), errors="surrogateescape"
    )
    typer.echo(
        f"{plural(len(noted), 'file')} with no length or a wrong one in the header, listed with "
        f"the true length; see {report}:",
        err=True,
    )
    for path, note in noted[:MAX_LISTED]:
        typer.echo(f"  {path}: {note}", err=True)


def _report_skipped(files: list[_Probed], found: _Found, out: Path) -> None:
    if found.others:
        typer.echo(f"skipped, by suffix: {found.describe_others()}", err=True)
    if not files:
        return
    report = out / "left_out.txt"
    report.write_text(
        "".join(f"{file.path}\t{file.problem}\n" for file in files), errors="surrogateescape"
    )
    typer.echo(f"skipped {plural(len(files), 'file')}, listed in {report}:", err=True)
    for problem, count in Counter(file.problem for file in files).most_common(MAX_LISTED):
        example = next(file.path for file in files if file.problem == problem)
        typer.echo(f"  {count} x {problem} (such as {example})", err=True)
