"""Speech Commands: spoken words of 1 s; version 1 has 30 words, version 2 has 35.

    yes/0a7c2a8d_nohash_0.wav   a folder for each word
    validation_list.txt         word/file.wav, the clips of valid
    testing_list.txt            the clips of test; all others are train
    _background_noise_/*.wav    noise recordings of about a minute

The 12 classes are the ten commands, ``_unknown_`` (other words) and ``_silence_``. As in the
original recipe (P. Warden, arXiv:1804.03209; TensorFlow's ``speech_commands/input_data.py``), the
number of unknown and of silence clips is a tenth of that of the commands, in every split. Unknown
clips are selected by a hash of their names. Silence clips are 1 s excerpts of the noises, written
to ``silence/`` in the output folder because a manifest lists whole files. Each split uses a
different section of the noises. (The original scales silence by a random volume; here it is
unchanged.)
"""

from __future__ import annotations

import math
import os
import re
from pathlib import Path

import numpy as np
import soundfile

from mae_ast.core.io.audio import probe_audio
from mae_ast.core.io.labels import Labels
from mae_ast.core.io.manifest import PROBE_THREADS
from mae_ast.core.io.plural import plural
from mae_ast.prepare.clips import Clip
from mae_ast.prepare.layout import hash_uniform, locate, read_lines
from mae_ast.prepare.origins import KS_SOURCE, KS_WORDS
from mae_ast.prepare.splits import Prepared, write_splits

VERSION_1 = (
    *("bed", "bird", "cat", "dog", "down", "eight", "five", "four", "go", "happy", "house"),
    *("left", "marvin", "nine", "no", "off", "on", "one", "right", "seven", "sheila", "six"),
    *("stop", "three", "tree", "two", "up", "wow", "yes", "zero"),
)
NEW_IN_2 = ("backward", "follow", "forward", "learn", "visual")
WORDS = {1: VERSION_1, 2: tuple(sorted(VERSION_1 + NEW_IN_2))}
LISTS = {"valid": "validation_list.txt", "test": "testing_list.txt"}
NOISES = "_background_noise_"
UNKNOWN, SILENCE = "_unknown_", "_silence_"
COMMANDS_PER_OTHER = 10  # command clips per unknown clip, and per silence clip
# Section of each noise, as fractions, from which a split takes its silence.
STRETCHES = {"train": (0.0, 0.8), "valid": (0.8, 0.9), "test": (0.9, 1.0)}


def prepare(
    folder: Path,
    out: Path,
    version: int = 2,
    classes: int | None = None,
    jobs: int = PROBE_THREADS,
) -> Prepared:
    """Write train, valid and test.

    Args:
        folder: the unpacked archive, or its parent folder.
        out: output folder for the manifests, and for ``silence/`` with 12 classes.
        version: 1 or 2.
        classes: 12, or one per word (30 or 35); ``None``: 12 for version 1, 35 for version 2.
        jobs: number of headers read at a time.

    Raises:
        FileNotFoundError, NotADirectoryError: the folder is not Speech Commands.
        ValueError: the folder is the other version, a list is invalid, or the number of classes is
            not supported.
    """
    words = WORDS[version]
    classes = classes or (12 if version == 1 else len(words))
    if classes not in (12, len(words)):
        raise ValueError(
            f"{plural(classes, 'class', 'classes')}; Speech Commands version {version} supports "
            f"12 or {len(words)}"
        )
    root = _locate(folder, version)
    splits, missing = _by_lists(root, words)
    if classes != 12:
        labelled = {
            name: [Clip(str(root / clip), (_word(clip),)) for clip in clips]
            for name, clips in splits.items()
        }
        return write_splits(out, root, labelled, Labels(words, words), missing, jobs=jobs)
    silence = _write_silence(
        root, out, {name: _tenth_of_commands(clips) for name, clips in splits.items()}
    )
    labelled = {
        name: [*_commands(root, clips), *_unknown(root, clips), *silence[name]]
        for name, clips in splits.items()
    }
    mids = (*KS_WORDS, UNKNOWN, SILENCE)
    labels = Labels(mids, (*KS_WORDS, "unknown", "silence"))
    # Words and silence are in different folders; paths are relative to their common parent.
    common = Path(os.path.commonpath([root, out.resolve()]))
    written = sum(map(len, silence.values()))
    note = f"{out / 'silence'}: {written} clips of 1 s cut from {NOISES}"
    return write_splits(out, common, labelled, labels, missing, lambda headers: (note,), jobs)


def _locate(folder: Path, version: int) -> Path:
    name = f"speech_commands_v0.0{version}"
    what = (
        f"Speech Commands version {version} (a folder for each word, {LISTS['valid']} and "
        f"{LISTS['test']}), unpacked from {KS_SOURCE}{name}.tar.gz"
    )
    root = locate(folder, [name, f"SpeechCommands/{name}"], LISTS["valid"], what)
    if not (root / LISTS["test"]).is_file():
        raise FileNotFoundError(f"{root}: no {LISTS['test']} in it; expected {what}")
    other = [word for word in NEW_IN_2 if (root / word).is_dir()]
    if version == 1 and other:
        raise ValueError(
            f"{root}: has {', '.join(other)}, which are words of version 2; expected {what}"
        )
    if missing_words := [word for word in WORDS[version] if not (root / word).is_dir()]:
        raise FileNotFoundError(f"{root}: no folder {', '.join(missing_words)}; expected {what}")
    return root


def _by_lists(
    root: Path, words: tuple[str, ...]
) -> tuple[dict[str, list[str]], dict[str, list[str]]]:
    """Return the existing and the missing clips of each split: ``word/file.wav`` and paths."""
    split_of: dict[str, str] = {}
    for split, name in LISTS.items():
        for where, clip in read_lines(root / name):
            if not re.fullmatch(r"[^/]+/[^/]+\.wav", clip) or _word(clip) not in words:
                raise ValueError(
                    f"{where}: {clip!r} is not a word and file; expected one of the {len(words)} "
                    "words and a file, such as 'yes/0a7c2a8d_nohash_0.wav'"
                )
            if split_of.setdefault(clip, split) != split:
                raise ValueError(f"{where}: {clip} is already in {LISTS[split_of[clip]]}")
    there = [
        f"{word}/{name}"
        for word in words
        for name in sorted(os.listdir(root / word))
        if name.endswith(".wav") and not name.startswith(".")
    ]
    splits: dict[str, list[str]] = {"train": [], "valid": [], "test": []}
    for clip in there:
        splits[split_of.get(clip, "train")].append(clip)
    missing: dict[str, list[str]] = {split: [] for split in LISTS}
    for clip in sorted(split_of.keys() - set(there)):
        missing[split_of[clip]].append(str(root / clip))
    return splits, missing


def _word(clip: str) -> str:
    return clip.partition("/")[0]


def _tenth_of_commands(clips: list[str]) -> int:
    return math.ceil(sum(_word(clip) in KS_WORDS for clip in clips) / COMMANDS_PER_OTHER)


def _commands(root: Path, clips: list[str]) -> list[Clip]:
    return [Clip(str(root / c), (_word(c),)) for c in clips if _word(c) in KS_WORDS]


def _unknown(root: Path, clips: list[str]) -> list[Clip]:
    """Select clips of other words, those with the lowest hashes."""
    others = [clip for clip in clips if _word(clip) not in KS_WORDS]
    drawn = sorted(sorted(others, key=hash_uniform)[: _tenth_of_commands(clips)])
    return [Clip(str(root / clip), (UNKNOWN,)) for clip in drawn]


def _write_silence(root: Path, out: Path, sizes: dict[str, int]) -> dict[str, list[Clip]]:
    """Cut ``sizes[split]`` clips of 1 s from the noises for each split."""
    paths = sorted((root / NOISES).glob("*.wav"))
    if not paths:
        raise FileNotFoundError(
            f"{root / NOISES}: no *.wav; the class _silence_ is cut from these noises"
        )
    noises = {}
    for path in paths:
        probe_audio(path)  # raises a clear error if the file is bad
        noises[path.stem] = soundfile.read(path, dtype="int16", always_2d=True)
    silence: dict[str, list[Clip]] = {}
    for split, size in sizes.items():
        (out / "silence" / split).mkdir(parents=True, exist_ok=True)
        stretches = _stretches(noises, split)
        if not stretches:
            raise ValueError(
                f"{root / NOISES}: no noise is long enough to cut 1 s for {split}; expected one "
                "of at least 10 s"
            )
        silence[split] = []
        for number in range(size):
            stem, begin, end = stretches[int(hash_uniform(f"{split} {number}") * len(stretches))]
            samples, rate = noises[stem]
            start = begin + int(hash_uniform(f"{split} {number} {stem}") * (end - rate - begin + 1))
            path = out.resolve() / "silence" / split / f"{number:05}_{stem}_{start}.wav"
            soundfile.write(path, samples[start : start + rate, 0], rate, subtype="PCM_16")
            silence[split].append(Clip(str(path), (SILENCE,)))
    return silence


def _stretches(noises: dict[str, tuple[np.ndarray, int]], split: str) -> list[tuple[str, int, int]]:
    """Return (noise, begin, end) in samples of the sections of a split that have at least 1 s."""
    first, last = STRETCHES[split]
    found = [
        (stem, round(first * len(samples)), round(last * len(samples)), rate)
        for stem, (samples, rate) in noises.items()
    ]
    return [(stem, begin, end) for stem, begin, end, rate in found if end - begin >= rate]
