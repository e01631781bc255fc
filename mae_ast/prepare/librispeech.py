"""LibriSpeech: 960 h of read English for training, with development and test sets.

    train-clean-100/19/198/19-198-0000.flac   subset / speaker / chapter / utterance
    train-clean-100/19/198/19-198.trans.txt   utterances of the chapter: id and text

``train-*`` go to train, ``dev-*`` to valid and ``test-*`` to test, without labels, for pretraining.
With speakers as labels, only the utterances of ``train-*`` are used, since the speakers of the
other sets do not occur in training. They are split by a hash of their names: 80 % to train, 10 %
each to valid and test.
"""

from __future__ import annotations

from pathlib import Path

from mae_ast.core.io.labels import Labels
from mae_ast.core.io.manifest import PROBE_THREADS
from mae_ast.prepare.clips import SPLITS, Clip
from mae_ast.prepare.layout import hash_uniform, locate, read_lines
from mae_ast.prepare.splits import Prepared, write_splits

SUBSETS = {"train": "train-*", "valid": "dev-*", "test": "test-*"}
EXPECTED = (
    "LibriSpeech (train-clean-100/19/198/19-198-0000.flac, ...), unpacked from the archives of "
    "https://www.openslr.org/12"
)
HELD_OUT = 0.1  # fraction of the utterances for valid, and for test


def prepare(folder: Path, out: Path, speakers: bool = False, jobs: int = PROBE_THREADS) -> Prepared:
    """Write train, and valid and test if their subsets exist.

    Args:
        folder: ``LibriSpeech``, or its parent folder.
        out: output folder for the manifests.
        speakers: use speakers as labels, and split the training utterances.
        jobs: number of headers read at a time.

    Raises:
        FileNotFoundError, NotADirectoryError: the folder is not LibriSpeech, or has no train-*.
        ValueError: a list is invalid, or a split has no usable clip.
    """
    root = locate(folder, ["LibriSpeech"], "*-*/*/*/*.flac", EXPECTED)
    if not any(root.glob("train-*")):
        raise FileNotFoundError(f"{root}: no {SUBSETS['train']} in it; expected {EXPECTED}")
    if speakers:
        splits, labels = _by_speaker(root)
        return write_splits(out, root, splits, labels, jobs=jobs)
    splits = {split: _utterances(root, pattern) for split, pattern in SUBSETS.items()}
    there = {split: clips for split, clips in splits.items() if clips}
    absent = [SUBSETS[split] for split in SPLITS if split not in there]
    notes = [f"{root}: has no {name}, so no manifest was written for it" for name in absent]
    return write_splits(out, root, there, remarks=lambda headers: notes, jobs=jobs)


def _utterances(root: Path, pattern: str) -> list[Clip]:
    """List the utterances named in the transcripts or found in the chapters, in sorted order."""
    paths = {str(path) for path in root.glob(f"{pattern}/*/*/*.flac")}
    for transcript in root.glob(f"{pattern}/*/*/*.trans.txt"):
        chapter = transcript.parent
        for where, line in read_lines(transcript):
            name = line.split()[0]
            if name.split("-")[:2] != [chapter.parent.name, chapter.name]:
                raise ValueError(
                    f"{where}: {name!r} is not an utterance of this chapter; expected an id like "
                    f"'{chapter.parent.name}-{chapter.name}-0000'"
                )
            paths.add(str(chapter / f"{name}.flac"))
    return [Clip(path) for path in sorted(paths)]


def _by_speaker(root: Path) -> tuple[dict[str, list[Clip]], Labels]:
    splits: dict[str, list[Clip]] = {split: [] for split in SPLITS}
    speakers: set[str] = set()
    for clip in _utterances(root, SUBSETS["train"]):
        path = Path(clip.path)
        speaker = path.parent.parent.name
        number = hash_uniform(path.name)
        split = "valid" if number < HELD_OUT else "test" if number < 2 * HELD_OUT else "train"
        splits[split].append(Clip(clip.path, (speaker,)))
        speakers.add(speaker)
    names = _names(root / "SPEAKERS.TXT")
    mids = tuple(sorted(speakers, key=lambda speaker: (len(speaker), speaker)))
    return splits, Labels(mids, tuple(names.get(mid, mid) for mid in mids))


def _names(path: Path) -> dict[str, str]:
    """Read speaker names by id: ``19   | F | train-clean-100 | 25.19 | Kara Shallenberg``."""
    if not path.is_file():
        return {}
    rows = (line.split("|") for _, line in read_lines(path) if not line.startswith(";"))
    return {row[0].strip(): row[4].strip() for row in rows if len(row) >= 5}
