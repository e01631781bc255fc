"""A labelled clip of the user's own: a file, or a segment of it."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

from mae_ast.core.io.audio import AudioInfo
from mae_ast.prepare.clips import Clip


class OwnClip(NamedTuple):
    """A labelled clip, as a folder or a table describes it.

    Args:
        path: absolute path; the file may be missing.
        name: path relative to the folder of the data; its hash decides the split.
        labels: names of its classes.
        split: ``train``, ``valid`` or ``test``; "": to be drawn.
        fold: ``fold1``, ``fold2``, ...; "": to be drawn.
        group: speaker, site or session, all of whose clips are in one split; "": its file.
        start_s, end_s: segment of the file in seconds; no end: to the end of the file.
    """

    path: str
    name: str
    labels: tuple[str, ...]
    split: str = ""
    fold: str = ""
    group: str = ""
    start_s: float = 0.0
    end_s: float | None = None

    @property
    def is_segment(self) -> bool:
        """``True`` if the clip is a part of its file."""
        return self.start_s > 0 or self.end_s is not None

    def describe(self) -> str:
        """Return the name, and the segment if it is one."""
        if not self.is_segment:
            return self.name
        end = "end" if self.end_s is None else f"{self.end_s:g} s"
        return f"{self.name} from {self.start_s:g} s to {end}"

    def in_samples(self, info: AudioInfo) -> Clip:
        """Return the clip with its segment in samples; one that ends after its file is cut."""
        if not self.is_segment:
            return Clip(self.path)
        end = info.num_frames
        if self.end_s is not None:
            end = min(end, round(self.end_s * info.sample_rate))
        start = round(self.start_s * info.sample_rate)
        return Clip(self.path, (), start, end - start)


def common_root(clips: Iterable[OwnClip]) -> Path:
    """Return the folder that contains all files of the clips."""
    return Path(os.path.commonpath({os.path.dirname(clip.path) for clip in clips}))
