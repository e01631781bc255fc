"""Data of a study: manifests to pretrain on, and labelled splits to probe.

A data file, below ``config/study/data``, has ``folder`` (with ``train.tsv`` and ``valid.tsv``),
``made_by`` (how to make it), ``overrides`` of all runs on it, and ``probes``: by name a mapping of
``folder`` (relative to the data; default: the data), ``train``, ``test`` (names of splits) and
``group`` (a regular expression).
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from mae_ast.core.io.labels import LABELS_FILE
from mae_ast.core.io.manifest import Manifest, evenly_spaced
from mae_ast.evaluate.probe import ProbeData
from mae_ast.trainer.command import config_dir
from mae_ast.trainer.resume_guard import inputs_of

FOLDER = "study/data"  # below the presets' folder
# 0.2 s, more than a patch of 16 frames: all models are measured on the same clips.
MIN_SAMPLES = 3_200


@dataclass(frozen=True)
class Probe:
    """A labelled task on frozen features.

    Args:
        name: its name.
        train, test: manifests.
        group: as in :func:`mae_ast.evaluate.probe_data.read_labelled`; clips of a group, such as a
            voice, are not split when a layer is chosen.
    """

    name: str
    train: Path
    test: Path
    group: re.Pattern[str] | None

    def read(self, max_clips: int) -> tuple[ProbeData, ProbeData]:
        """Read the training and test clips, at most ``max_clips`` of each, evenly spaced.

        Clips shorter than ``MIN_SAMPLES`` are omitted.

        Raises:
            FileNotFoundError, ValueError: a file does not exist, or is invalid.
        """
        from mae_ast.evaluate.probe_data import match_classes, read_labelled

        train, test = match_classes(
            read_labelled(self.train, self.group), read_labelled(self.test, self.group)
        )
        return (
            train.take(_chosen(train.manifest, max_clips)),
            test.take(_chosen(test.manifest, max_clips)),
        )


@dataclass(frozen=True)
class StudyData:
    """Data of a study.

    Args:
        folder: folder of ``train.tsv`` and ``valid.tsv``.
        probes: the labelled tasks; possibly none.
        overrides: overrides of all runs; those of a study take precedence.
    """

    folder: Path
    probes: tuple[Probe, ...]
    overrides: tuple[str, ...] = ()

    @property
    def labelled(self) -> Path | None:
        """Folder of the labelled clips of the probe during training; ``None``: there is none."""
        folders = [self.folder, *(probe.train.parent for probe in self.probes)]
        wanted = ("train.lbl", "valid.lbl")
        return next((f for f in folders if all((f / name).is_file() for name in wanted)), None)

    def valid(self, max_clips: int) -> Manifest:
        """Return at most ``max_clips`` validation clips, evenly spaced.

        Raises:
            FileNotFoundError, ManifestError: the manifest does not exist, or is invalid.
        """
        manifest = Manifest.load(self.folder / "valid.tsv")
        return manifest.take(_chosen(manifest, max_clips))

    def content(self) -> dict[str, str]:
        """Return the content of all manifests and labels, by probe and file name."""
        names = ["train.tsv", "valid.tsv"]
        found = inputs_of(self.folder, names)
        for probe in self.probes:
            files = [probe.train, probe.test]
            files += [path.with_suffix(".lbl") for path in files]
            files.append(probe.train.parent / LABELS_FILE)
            found |= inputs_of(probe.train.parent, [path.name for path in files], f"{probe.name}: ")
        return found

    def check(self, max_clips: int) -> None:
        """Read the clips and labels of all probes.

        Raises:
            FileNotFoundError, ValueError: a file does not exist or is invalid, or a probe cannot be
                fitted.
        """
        from mae_ast.evaluate.probe import check_training_clips

        for probe in self.probes:
            train, _ = probe.read(max_clips)
            check_training_clips(train)


def find_data(data: str) -> StudyData:
    """Find the data of a study.

    Args:
        data: name of a data file of this package, or a folder of manifests, whose labels, if there
            are any, are the task: ``train`` against ``test``, or ``valid`` if there is no ``test``.

    Raises:
        ValueError: there is no such data; the message says how to make it.
    """
    known = {path.stem: path for path in sorted((config_dir() / FOLDER).glob("*.yaml"))}
    if data not in known:
        folder = Path(data)
        if not folder.is_dir():
            raise ValueError(f"data={data}: no such folder; known data are {', '.join(known)}")
        _check(folder, "")
        return StudyData(folder, tuple(_labels_of(folder)))
    import yaml

    content = yaml.safe_load(known[data].read_text(encoding="utf-8"))
    folder = Path(content["folder"])
    _check(folder, f"; '{content['made_by']}' makes it")
    probes = [_probe(folder, name, each) for name, each in content["probes"].items()]
    for probe in probes:
        for path in (probe.train, probe.test):
            if not path.is_file():
                raise ValueError(f"{path}: no such file; '{content['made_by']}' makes it")
    return StudyData(folder, tuple(probes), tuple(content.get("overrides", [])))


def _chosen(manifest: Manifest, max_clips: int) -> np.ndarray:
    """Return the rows of at most ``max_clips`` clips that are long enough, evenly spaced."""
    rows = np.flatnonzero(manifest.num_samples >= MIN_SAMPLES)
    chosen: np.ndarray = rows[evenly_spaced(len(rows), max_clips)]
    return chosen


def _check(folder: Path, advice: str) -> None:
    for name in ("train.tsv", "valid.tsv"):
        if not (folder / name).is_file():
            raise ValueError(f"{folder / name}: no such file{advice}")


def _probe(folder: Path, name: str, given: Mapping[str, Any]) -> Probe:
    own = folder / given.get("folder", ".")
    group = given.get("group")
    return Probe(
        name,
        own / f"{given.get('train', 'train')}.tsv",
        own / f"{given.get('test', 'test')}.tsv",
        None if group is None else re.compile(group),
    )


def _labels_of(folder: Path) -> list[Probe]:
    if not (folder / LABELS_FILE).is_file() or not (folder / "train.lbl").is_file():
        return []
    test = next((each for each in ("test", "valid") if (folder / f"{each}.lbl").is_file()), None)
    return [] if test is None else [_probe(folder, "labels", {"test": test})]
