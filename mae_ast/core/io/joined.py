"""Join manifests: rows of several manifests, one after the other, as those of one."""

from __future__ import annotations

import copy
import hashlib
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np

from mae_ast.core.io.manifest import Manifest
from mae_ast.core.io.read_ahead import Progress

__all__ = ["JoinedManifest", "join", "load_manifests", "read_manifests"]


class JoinedManifest(Manifest):
    """Rows of several manifests, each with a root, line numbers and a rate cache of its own.

    Args:
        manifests: the manifests; their sample rates are taken as they are now.

    Attributes:
        manifests: the manifests.
        part: (rows,) int64, index into ``manifests`` of each row's manifest.
        path: text that names all of them, for messages.
    """

    def __init__(self, manifests: Sequence[Manifest]) -> None:
        names = [str(manifest.path) for manifest in manifests]
        super().__init__(
            Path(f"{', '.join(names[:-1])} and {names[-1]}"),
            "",
            b"",
            np.zeros(0, dtype=np.int64),
            np.concatenate([manifest.lines for manifest in manifests]),
            np.concatenate([manifest.lengths for manifest in manifests]),
            np.concatenate([manifest.sample_rates for manifest in manifests]),
            np.concatenate([manifest.starts for manifest in manifests]),
        )
        self.manifests = tuple(manifests)
        self.part = np.repeat(np.arange(len(manifests)), [len(each) for each in manifests])
        self._row_of_part = np.concatenate([np.arange(len(each)) for each in manifests])

    def row_path(self, row: int) -> str:
        """Return the path of a row as written in its manifest."""
        return self._manifest_of(row).row_path(int(self._row_of_part[row]))

    def root_of(self, row: int) -> str:
        """Return the root of a row's manifest."""
        return self._manifest_of(row).root

    def where(self, row: int) -> str:
        """Return ``file:line`` of a row in its manifest, for messages."""
        return self._manifest_of(row).where(int(self._row_of_part[row]))

    @property
    def may_be_remote(self) -> bool:
        """True if one of the manifests may have rows whose files are on a server."""
        return any(each.may_be_remote for each in self.manifests)

    def digest(self) -> bytes:
        """Return the SHA-256 of the rows' paths, lengths, sample rates and, if any, starts."""
        digest = hashlib.sha256()
        for each in self.manifests:
            digest.update(each._packed_paths)
            digest.update(each._path_ends.tobytes())
        starts = [self.starts] if self.has_segments else []
        for values in (self.part, self._row_of_part, self.lengths, self.sample_rates, *starts):
            digest.update(np.ascontiguousarray(values).tobytes())
        return digest.digest()

    def take(self, rows: Iterable[int] | np.ndarray) -> JoinedManifest:
        """Select rows, in this order; messages still give their manifests and line numbers."""
        chosen = np.asarray(list(rows), dtype=np.int64)
        taken = copy.copy(self)
        for name in ("lines", "lengths", "sample_rates", "starts", "part", "_row_of_part"):
            setattr(taken, name, getattr(self, name)[chosen])
        return taken

    def probe_rates(self, progress: Progress | None = None) -> None:
        """Read missing sample rates from each manifest's cache or the files' headers."""
        if bool((self.sample_rates > 0).all()):
            return
        for manifest in self.manifests:
            manifest.probe_rates(progress)
        for number, manifest in enumerate(self.manifests):
            is_in = self.part == number
            self.sample_rates[is_in] = manifest.sample_rates[self._row_of_part[is_in]]

    def _manifest_of(self, row: int) -> Manifest:
        return self.manifests[int(self.part[row])]


def join(manifests: Sequence[Manifest]) -> Manifest:
    """Join one or more manifests; a single one is returned as it is."""
    return manifests[0] if len(manifests) == 1 else JoinedManifest(manifests)


def read_manifests(paths: Sequence[Path]) -> Manifest:
    """Parse manifests and join them; see :meth:`Manifest.read`."""
    return join([Manifest.read(path) for path in paths])


def load_manifests(paths: Sequence[Path], progress: Progress | None = None) -> Manifest:
    """Parse manifests, check their files, read missing sample rates, and join them.

    See :meth:`Manifest.load`.
    """
    return join([Manifest.load(path, progress) for path in paths])
