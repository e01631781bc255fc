"""Read labelled clips for a probe: ``NAME.tsv``, ``NAME.lbl`` and ``labels.csv`` in a folder."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np

from mae_ast.core.io.labels import LABELS_FILE, ClipLabels, LabelError, Labels
from mae_ast.core.io.manifest import Manifest
from mae_ast.evaluate.probe import ProbeData


def read_labelled(path: Path, group: re.Pattern[str] | None = None) -> ProbeData:
    """Read a manifest and its labels.

    Args:
        path: path of the manifest.
        group: expression whose first group, found in a clip's path, names the clip's group;
            ``None``: each clip is a group of its own, or the segments of each file are.

    Raises:
        FileNotFoundError: one of the three files does not exist.
        ManifestError, LabelError: a file is invalid.
        ValueError: ``group`` does not match a path.
    """
    manifest = Manifest.read(path)
    manifest.check_paths()
    manifest.check_segments()
    labels = Labels.read(path.parent / LABELS_FILE)
    clip_labels = ClipLabels.read(path.with_suffix(".lbl"), labels, len(manifest))
    targets = clip_labels.multi_hot(np.arange(len(manifest)))
    if (targets.sum(1) == 1).all():
        targets = targets.argmax(1)
    groups = _files(manifest) if group is None else _groups(manifest, group)
    return ProbeData(manifest, targets, groups, labels)


def match_classes(one: ProbeData, other: ProbeData) -> tuple[ProbeData, ProbeData]:
    """Return two sets of clips with targets of the same form.

    If the clips of one set have several classes, the targets of both become multi-hot.

    Raises:
        LabelError: the classes differ, or their order does.
    """
    if one.labels.mids != other.labels.mids:
        here, there = (data.manifest.path.with_name(LABELS_FILE) for data in (one, other))
        raise LabelError(
            f"{there}: has other classes than {here}, or another order; prepare both data sets in "
            "the same way"
        )
    if one.targets.ndim == other.targets.ndim:
        return one, other
    num_classes = max(each.targets.shape[1] for each in (one, other) if each.targets.ndim == 2)
    return _multi_hot(one, num_classes), _multi_hot(other, num_classes)


def _multi_hot(data: ProbeData, num_classes: int) -> ProbeData:
    if data.targets.ndim == 2:
        return data
    hot = np.eye(num_classes, dtype=np.float32)[data.targets]
    return ProbeData(data.manifest, hot, data.groups, data.labels)


def _files(manifest: Manifest) -> np.ndarray:
    """Return the index of each clip's file; if there are no segments or one file, of each clip."""
    rows = range(len(manifest))
    if not manifest.has_segments:
        return np.arange(len(manifest))
    indices: dict[str, int] = {}
    files = [indices.setdefault(manifest.row_path(row), len(indices)) for row in rows]
    return np.array(files if len(indices) > 1 else rows)


def _groups(manifest: Manifest, pattern: re.Pattern[str]) -> np.ndarray:
    found = [pattern.search(manifest.row_path(row)) for row in range(len(manifest))]
    if None in found:
        row = found.index(None)
        raise ValueError(
            f"--group {pattern.pattern!r} is not found in {manifest.row_path(row)} "
            f"({manifest.where(row)})"
        )
    return np.array([match[1] if match is not None else "" for match in found])
