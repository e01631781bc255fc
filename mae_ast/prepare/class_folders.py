"""Find labelled clips in class folders: ``DIR/CLASS/...`` or ``DIR/SPLIT/CLASS/...``.

The class is the name of the first folder below ``DIR``, or below ``train``, ``valid`` and ``test``
if there are no other folders; files may lie in any subfolder of it, or in a tar there.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from mae_ast.core.io.plural import plural
from mae_ast.prepare.folders import Found, find_audio
from mae_ast.prepare.own_clip import OwnClip

# Names of split folders and, in tables, of splits; upper case is accepted as well.
SPLIT_NAMES = {
    **dict.fromkeys(("train", "training"), "train"),
    **dict.fromkeys(("valid", "val", "validation", "dev"), "valid"),
    **dict.fromkeys(("test", "testing", "eval", "evaluation"), "test"),
}


@dataclass(frozen=True)
class ClassFolders:
    """Labelled clips found below a folder.

    Args:
        clips: the clips.
        others: files that are no audio, and damaged tars.
        loose: audio files without a class folder, which are skipped.
        notes: remarks for the user, one line each.
    """

    clips: list[OwnClip]
    others: Found
    loose: list[str]
    notes: list[str]


def find_clips(folder: Path, jobs: int = 16) -> ClassFolders:
    """Find the clips below class folders.

    Args:
        folder: folder of class folders, or of ``train``, ``valid`` and ``test`` with class folders.
        jobs: number of tars read at a time.

    Raises:
        NotADirectoryError: the folder does not exist.
        ValueError: there is no audio in class folders.
    """
    if folder.is_file():
        raise NotADirectoryError(
            f"{folder}: is a file; expected a folder with a folder for each class. If it is a "
            "table of labels, use 'mae-ast prepare table'"
        )
    if not folder.is_dir():
        raise NotADirectoryError(f"{folder}: no such folder")
    root = Path(os.path.abspath(folder))
    found = find_audio([root], jobs)
    names = [Path(os.path.relpath(path, root)).as_posix() for path in found.audio]
    notes = []
    has_splits = _has_splits(names)
    depth = 2 if has_splits else 1
    clips, loose = [], []
    for path, name in zip(found.audio, names, strict=True):
        *folders, _ = name.split("/")
        if len(folders) < depth:
            loose.append(path)
            continue
        split = SPLIT_NAMES[folders[0].lower()] if has_splits else ""
        clips.append(OwnClip(path, name, (folders[depth - 1],), split))
    if not clips:
        if not names:
            there = found.describe_others() or "nothing"
            raise ValueError(f"{folder}: no audio files below it; found {there}")
        raise ValueError(
            f"{folder}: has {plural(len(names), 'audio file')}, but no folder for each class; "
            "expected DIR/CLASS/FILE. If a table has the labels, use 'mae-ast prepare table'"
        )
    if not has_splits:
        confusing = sorted({c.labels[0] for c in clips if c.labels[0].lower() in SPLIT_NAMES})
        if confusing:
            notes.append(f"{', '.join(confusing)}: taken as a class, since other folders are there")
    return ClassFolders(clips, found, loose, notes)


def _has_splits(names: Sequence[str]) -> bool:
    """Return whether all folders have names of splits, and class folders below them."""
    tops = {name.partition("/")[0].lower() for name in names if "/" in name}
    below = [name for name in names if name.count("/") >= 2]
    splits = {SPLIT_NAMES.get(top) for top in tops}
    return "train" in splits and None not in splits and bool(below)
