"""How fairseq's trainer writes checkpoint files."""

from __future__ import annotations

import os
import shutil

from fairseq.file_io import PathManager


def apply() -> None:
    """Replace fairseq's functions."""
    # checkpoint_last.pt is a plain copy of the file just saved; a run killed meanwhile leaves it
    # truncated and can never be resumed. Can go when fairseq renames a finished copy into place.
    PathManager.copy = staticmethod(_copy_atomically)


def _copy_atomically(src_path: str, dst_path: str, overwrite: bool = False) -> str:
    if os.path.exists(dst_path) and not overwrite:
        raise FileExistsError(dst_path)
    part = f"{dst_path}.tmp"
    shutil.copyfile(src_path, part)
    os.replace(part, dst_path)
    return dst_path
