"""VoxCeleb1: speaker identification, 150,000 utterances of 1,251 celebrities.

    iden_split.txt                               1 (train), 2 (valid) or 3 (test), and the clip
    dev/wav/id10001/1zcIwhmdeo4/00001.wav, ...   the prefix may also be wav/ or empty
    test/wav/id10270/5r0dWxy17C8/00001.wav, ...

Every speaker is in all three splits of ``iden_split.txt``, every video in only one. (The folder
names ``dev`` and ``test`` refer to another task, speaker verification.)
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from pathlib import Path

from mae_ast.core.io.labels import Labels
from mae_ast.core.io.manifest import PROBE_THREADS
from mae_ast.prepare.clips import Clip
from mae_ast.prepare.layout import read_lines
from mae_ast.prepare.origins import SID_LIST_SOURCE, SID_LISTS, SID_SOURCE
from mae_ast.prepare.splits import Prepared, write_splits

SPLIT_OF = {"1": "train", "2": "valid", "3": "test"}
SPEAKERS = range(10001, 11252)
BASES = ("dev/wav", "test/wav", "wav", ".")
EXPECTED = (
    f"VoxCeleb1 (dev/wav/id10001/..., test/wav/id10270/...), unpacked from vox1_dev_wav.zip and "
    f"vox1_test_wav.zip of {SID_SOURCE}, with {SID_LIST_SOURCE}"
)


def prepare(folder: Path, out: Path, jobs: int = PROBE_THREADS) -> Prepared:
    """Write train, valid and test with the speakers as labels.

    Raises:
        FileNotFoundError, NotADirectoryError: the folder is not VoxCeleb1.
        ValueError: its list is invalid, or a split has no usable clip.
    """
    if not folder.is_dir():
        raise NotADirectoryError(f"{folder}: no such folder; expected {EXPECTED}")
    lists = [folder / name for name in SID_LISTS if (folder / name).is_file()]
    if not lists:
        raise FileNotFoundError(f"{folder}: no {SID_LISTS[1]} in it; expected {EXPECTED}")
    root = folder.resolve()
    bases = [base for base in BASES if any((root / base).glob("id[0-9]*/"))]
    if not bases:
        raise FileNotFoundError(f"{folder}: no {BASES[0]}/id* in it; expected {EXPECTED}")
    splits: dict[str, list[Clip]] = {split: [] for split in SPLIT_OF.values()}
    missing: dict[str, list[str]] = {split: [] for split in splits}
    speakers: set[str] = set()
    for _, number, clip in read_list(lists[0]):
        speaker = clip.partition("/")[0]
        speakers.add(speaker)
        places = [os.path.normpath(root / base / clip) for base in bases]
        if path := next(filter(os.path.isfile, places), ""):
            splits[SPLIT_OF[number]].append(Clip(path, (speaker,)))
        else:
            missing[SPLIT_OF[number]].append(clip)
    if not speakers:
        raise ValueError(f"{lists[0]}: lists no clips; expected {SID_LIST_SOURCE}")
    mids = tuple(sorted(speakers))
    return write_splits(out, root, splits, Labels(mids, mids), missing, jobs=jobs)


def read_list(path: Path) -> Iterator[tuple[str, str, str]]:
    """Yield ``file:line``, the number of the split and the clip of each line.

    Raises:
        ValueError: a line has another form.
    """
    for where, line in read_lines(path):
        match = re.fullmatch(r"([123])\s+(id(\d{5})/[^/\s]+/[^/\s]+\.wav)", line)
        if match is None or int(match[3]) not in SPEAKERS:
            raise ValueError(
                f"{where}: {line!r} is not a split (1, 2 or 3) and a clip; expected a line like "
                f"'1 id10001/1zcIwhmdeo4/00001.wav', of speakers id{SPEAKERS[0]} to "
                f"id{SPEAKERS[-1]}"
            )
        yield where, match[1], match[2]
