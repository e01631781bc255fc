"""``mae-ast manifest DIR...``: folders of audio, or of tars, to {train,valid,test}.tsv."""

from __future__ import annotations

import hashlib
import os
from collections import Counter
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer

from mae_ast.core.archive import TAR_SUFFIX, ArchiveError, list_members
from mae_ast.core.audio import AUDIO_SUFFIXES, AudioError, AudioInfo, num_samples_16k, probe_audio
from mae_ast.core.manifest import PROBE_THREADS, write_manifest
from mae_ast.progress import bar

MAX_LISTED = 10  # left-out files shown of each kind; all are in left_out.txt


@dataclass(frozen=True)
class _Probed:
    path: str
    info: AudioInfo | None
    problem: str  # why it is left out; empty: it is not


def manifest(
    folders: Annotated[
        list[Path], typer.Argument(metavar="DIR...", help="Folders of audio or of tars with audio.")
    ],
    out: Annotated[Path, typer.Option(help="Where the manifests go.")] = Path("manifests"),
    valid: Annotated[float, typer.Option(help="Share of files for validation.")] = 0.01,
    test: Annotated[float, typer.Option(help="Share of files for test.")] = 0.0,
    min_seconds: Annotated[float, typer.Option(help="Leave out shorter files.")] = 0.045,
    max_seconds: Annotated[float, typer.Option(help="Leave out longer files.")] = float("inf"),
    seed: Annotated[int, typer.Option(help="Of the split.")] = 0,
    jobs: Annotated[int, typer.Option(help="Headers read at a time.")] = PROBE_THREADS,
) -> None:
    """Walk folders, read the length of each audio file from its header, and write manifests.

    Uncompressed tars, such as WebDataset's shards, count as folders; their files are used from
    within them. What a tar has beside audio (json, cls, txt) is passed over.

    A file's split depends on its path below DIR and the seed alone, so it keeps it when files, or
    folders beside DIR, are added.
    """
    if valid < 0 or test < 0 or valid + test >= 1:
        raise ValueError(f"--valid {valid} and --test {test} leave nothing for training")
    for folder in folders:
        if not folder.is_dir():
            raise NotADirectoryError(f"{folder}: no such folder")
    folders = [folder.resolve() for folder in folders]
    root = Path(os.path.commonpath(folders))
    walked = sorted({path for folder in folders for path in _walk(folder)})
    paths = [path for path in walked if not _is_tar(path)]
    tars = [path for path in walked if _is_tar(path)]
    with ThreadPoolExecutor(jobs) as pool:
        probed: list[_Probed] = []
        if tars:
            if paths:
                typer.echo(
                    f"found {len(paths)} audio files and {len(tars)} tars; where a tar holds the "
                    "same files, they are listed twice",
                    err=True,
                )
            listed = list(bar("reading tars", "tar")(pool.map(_members, tars), len(tars)))
            paths += [path for members, _ in listed for path in members]
            probed += [damaged for _, damaged in listed if damaged is not None]
        if not paths and not probed:
            kinds = ", ".join(sorted(AUDIO_SUFFIXES))
            raise ValueError(f"no audio files below {', '.join(map(str, folders))} ({kinds})")
        found = pool.map(lambda path: _probe(path, min_seconds, max_seconds), paths)
        probed += bar("reading headers", "file")(found, len(paths))
    kept = [file for file in probed if not file.problem]
    if not kept:
        raise ValueError(f"none of {len(probed)} files is usable; the first: {probed[0].problem}")
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
        seconds = sum(f.info.num_frames / f.info.sample_rate for f in files if f.info is not None)
        typer.echo(f"{out / name}.tsv: {len(files)} files, {seconds / 3600:.2f} h")
    _report_left_out([file for file in probed if file.problem], out)


def _walk(folder: Path) -> Iterator[str]:
    seen: set[str] = set()
    for parent, folders, names in os.walk(folder, followlinks=True):
        real = os.path.realpath(parent)
        if real in seen:  # a link to a folder above, or to one that was listed already
            folders.clear()
            continue
        seen.add(real)
        for name in names:
            if _is_audio(name) or (_is_tar(name) and not name.startswith(".")):
                yield os.path.join(parent, name)


def _is_audio(path: str) -> bool:
    name = os.path.basename(path)
    return os.path.splitext(name)[1].lower() in AUDIO_SUFFIXES and not name.startswith(".")


def _is_tar(path: str) -> bool:
    return path.lower().endswith(TAR_SUFFIX)


def _members(tar: str) -> tuple[list[str], _Probed | None]:
    """Paths of the audio files in a tar; and the tar itself, where it is damaged."""
    paths = []
    try:
        for name, member in list_members(tar):
            if _is_audio(name):
                paths.append(str(member))
    except (ArchiveError, OSError) as error:
        return paths, _Probed(tar, None, str(error).removeprefix(f"{tar}: "))
    return paths, None


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
        problem = "its header gives no length"
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


def _report_left_out(files: list[_Probed], out: Path) -> None:
    if not files:
        return
    report = out / "left_out.txt"
    report.write_text(
        "".join(f"{file.path}\t{file.problem}\n" for file in files), errors="surrogateescape"
    )
    typer.echo(f"left out {len(files)} files, listed in {report}:", err=True)
    for problem, count in Counter(file.problem for file in files).most_common(MAX_LISTED):
        example = next(file.path for file in files if file.problem == problem)
        typer.echo(f"  {count} x {problem} (as {example})", err=True)
