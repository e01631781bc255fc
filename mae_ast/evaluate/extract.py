"""Extract the features of a manifest, in fairseq's format: ``.npy`` + ``.len``.

``{split}_{shard}_{shards}.npy`` holds the features of all clips, concatenated along the rows.
``{split}_{shard}_{shards}.len`` holds the number of rows of each clip, one per line, in the order
of the manifest; skipped clips have 0 rows. An interrupted extraction resumes where it stopped.
"""

from __future__ import annotations

import hashlib
import io
import os
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from torch import nn

from mae_ast.core.io.atomic import atomic_write, file_lock
from mae_ast.core.io.manifest import Manifest, ManifestError
from mae_ast.core.io.plural import plural
from mae_ast.core.io.read_ahead import Progress
from mae_ast.core.io.settings_note import assert_same_as_note, file_digest, write_note
from mae_ast.core.nn.precision import resolve_precision
from mae_ast.evaluate.embeddings import NOT_FINITE
from mae_ast.evaluate.read_clips import Batch, for_each_batch
from mae_ast.hub.load import Pretrained

_HEADER_BYTES = 128  # size of the .npy header: fixed, so that it can be written last


@dataclass(frozen=True)
class Extraction:
    """Features to extract; an extraction is only resumed with the same values.

    Args:
        layer: layer index, counted from 1.
        pool: store one row per clip, the mean over its rows.
        tokens: store one row per token (D) instead of one per time step (C D).
        shard: index of the shard of the manifest, from 0.
        shards: number of shards.
    """

    layer: int
    pool: bool
    tokens: bool
    shard: int
    shards: int


def parse_shard(text: str) -> tuple[int, int]:
    """Parse a shard ``i/n`` into (i, n), with i from 0 to n - 1.

    Raises:
        ValueError: ``text`` does not have this form.
    """
    shard, slash, shards = text.partition("/")
    if not slash or not shard.isdigit() or not shards.isdigit() or int(shard) >= int(shards):
        raise ValueError(f"--shard {text}: expected i/n with i from 0 to n - 1, such as 0/4")
    return int(shard), int(shards)


def extract(
    model: Pretrained,
    manifest: Manifest,
    out: Path,
    wanted: Extraction,
    progress: Progress | None = None,
) -> tuple[Path, int]:
    """Write the features of a manifest's shard, resuming a stopped extraction.

    Args:
        model: model on any device.
        manifest: manifest of the clips.
        out: output folder.
        wanted: features and shard to extract.
        progress: wrapper of the iteration over clips, called with it and the number of clips.

    Returns:
        The path of the ``.npy`` file and the number of skipped clips.

    Raises:
        ValueError: the folder holds an extraction with other settings, another process is writing
            to it, or features are not finite.
        OSError: a file could not be written.
        ManifestError: there are more shards than clips.
    """
    rows = np.array_split(np.arange(len(manifest)), wanted.shards)[wanted.shard].tolist()
    if not rows:
        raise ManifestError(
            f"{manifest.path}: {plural(len(manifest), 'clip')} for {plural(wanted.shards, 'shard')}"
        )
    out.mkdir(parents=True, exist_ok=True)
    name = f"{manifest.path.stem}_{wanted.shard}_{wanted.shards}"
    done = out / f"{name}.npy"
    device = model.batch_norm.running_mean.device
    tokens_per_row = 1 if wanted.tokens else model.patch_shape.per_column
    description = {
        **asdict(wanted),
        "precision": resolve_precision(model.precision, device.type),
        "weights": digest_of_weights(model),
        "manifest": str(manifest.path.resolve()),
        "content": file_digest(manifest.path),
        "clips": len(rows),
        "width": tokens_per_row * model.config.encoder_embed_dim,
    }
    files = _Files(out, name, description)
    if files.are_complete():
        return done, files.num_bad()
    with file_lock(done), files:
        remaining = rows[files.num_clips :]
        min_samples = model.patch_shape.min_samples

        def write(batch: Batch) -> None:
            files.write(_features(model, batch, wanted))

        for_each_batch(manifest, min_samples, write, remaining, progress=progress)
        files.finish()
    return done, files.num_bad()


def _features(model: Pretrained, batch: Batch, wanted: Extraction) -> list[np.ndarray]:
    """Return (rows, width) features of each clip, with no rows for a skipped clip.

    Raises:
        ValueError: features are not finite.
    """
    arrays = dict.fromkeys(batch.rows, np.empty((0, 0), np.float32))
    if batch.clips:
        clips = list(batch.clips.values())
        found = model.extract_features(clips, layers=[wanted.layer], pooled_only=wanted.pool)
        if wanted.pool:
            pooled = found.pooled  # (B, 1, C D): one layer
            if wanted.tokens:
                pooled = pooled.unflatten(2, (found.per_column, -1)).mean(2)
            values = list(pooled)
        else:
            states = (found.hidden_states if wanted.tokens else found.time_steps)[0]
            lengths = found.lengths * (found.per_column if wanted.tokens else 1)
            values = [row[:n] for row, n in zip(states, lengths.tolist(), strict=True)]
        if not all(bool(value.isfinite().all()) for value in values):
            raise ValueError(NOT_FINITE)
        arrays |= {row: value.numpy() for row, value in zip(batch.clips, values, strict=True)}
    return list(arrays.values())


def digest_of_weights(model: nn.Module) -> str:
    """Return a hash of the weights: a checkpoint may be replaced between two runs."""
    digest = hashlib.sha256()
    for value in model.state_dict().values():
        digest.update(value.cpu().contiguous().numpy().data)
    return digest.hexdigest()[:16]


class _Files:
    """Partial output files; the ``.len`` lists a clip only after its rows have been written."""

    def __init__(self, folder: Path, name: str, description: dict[str, Any]) -> None:
        self.npy, self.len = folder / f"{name}.npy", folder / f"{name}.len"
        self._description = folder / f"{name}.json"
        self._npy_part, self._len_part = folder / f"{name}.npy.part", folder / f"{name}.len.part"
        self._wanted = description
        self._row_bytes = 4 * description["width"]
        self._lengths: list[int] = []
        if self._description.exists():
            assert_same_as_note(
                self._description,
                description,
                f"remove {self._description.name} and its files, or choose another folder",
                absent={"precision": "float32"},
            )
        elif self.npy.exists():
            raise ValueError(
                f"{self.npy}: exists, but {self._description.name}, which records its model, is "
                "missing; remove it, or choose another folder"
            )

    @property
    def num_clips(self) -> int:
        return len(self._lengths)

    def num_bad(self) -> int:
        return sum(int(line) == 0 for line in self.len.read_text().split())

    def are_complete(self) -> bool:
        return self.npy.exists() and self.len.exists() and self._description.exists()

    def __enter__(self) -> _Files:
        if not self._description.exists():
            write_note(self._description, self._wanted)
        text = self._len_part.read_text() if self._len_part.exists() else ""
        complete = text[: text.rfind("\n") + 1]
        self._lengths = [int(line) for line in complete.split()]
        rows = sum(self._lengths)
        size = self._npy_part.stat().st_size if self._npy_part.exists() else 0
        if size < _HEADER_BYTES + rows * self._row_bytes:
            self._lengths, complete, rows = [], "", 0  # the rows never reached the disk
        self._data = self._npy_part.open("r+b" if self._npy_part.exists() else "w+b")
        self._data.truncate(_HEADER_BYTES + rows * self._row_bytes)
        self._data.seek(0, os.SEEK_END)
        if complete != text:
            with atomic_write(self._len_part) as part:
                part.write_text(complete)
        self._lines = self._len_part.open("a")
        return self

    def __exit__(self, *_: object) -> None:
        for file in (self._data, self._lines):
            with suppress(OSError):  # write has already reported a full disk
                file.close()

    def write(self, arrays: list[np.ndarray]) -> None:
        try:
            for array in arrays:
                self._data.write(np.ascontiguousarray(array, np.float32).tobytes())
            self._data.flush()
            self._lines.writelines(f"{len(array)}\n" for array in arrays)
            self._lines.flush()
        except OSError as error:
            raise OSError(
                f"{self.npy}: could not be written ({error.strerror}); with more disk space, the "
                "same command resumes"
            ) from error
        self._lengths += [len(array) for array in arrays]

    def finish(self) -> None:
        header = io.BytesIO()
        shape = (sum(self._lengths), self._wanted["width"])
        fields = {"descr": "<f4", "fortran_order": False, "shape": shape}
        np.lib.format.write_array_header_1_0(header, fields)
        assert len(header.getvalue()) == _HEADER_BYTES
        self._data.seek(0)
        self._data.write(header.getvalue())
        self._data.close()
        self._lines.close()
        self._npy_part.replace(self.npy)
        self._len_part.replace(self.len)
