"""SUPERB tasks: their s3prl downstreams, features and data.

Data is checked before training: s3prl itself fails with ``list index out of range`` after minutes
of searching, or hangs.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mae_ast.core.io.plural import plural
from mae_ast.prepare.origins import KS_SOURCE, KS_WORDS, SID_LIST_SOURCE, SID_LISTS, SID_SOURCE
from mae_ast.prepare.voxceleb1 import read_list

KS_TRAIN, KS_TEST = "speech_commands_v0.01", "speech_commands_test_set_v0.01"
SID_SPLITS = {"1": "training", "2": "development", "3": "test"}
FILE_LISTS = "file_lists"  # subfolder of the run folder
ER_LISTS = "s3prl/downstream/emotion/meta_data of github.com/s3prl/s3prl"
ER_SOURCE = "https://sail.usc.edu/iemocap/"
ER_SESSIONS = range(1, 6)
ER_LABELS = {"neu": 0, "hap": 1, "ang": 2, "sad": 3}  # "exc" is labelled "hap", too
# [6.2901 - 8.2357]    Ses01F_impro01_F000    neu    [2.5000, 2.5000, 2.5000]
ER_LINE = re.compile(r"\[[^\]]*\]\t(\S+)\t(neu|hap|ang|sad|exc)\t")


@dataclass(frozen=True)
class Task:
    """Downstream task of s3prl.

    Args:
        downstream: name of the downstream in s3prl.
        features: features of the upstream that it uses, s3prl's ``-s``.
        locate: function of (data folder, run folder) that returns entries of s3prl's ``datarc``
            and raises ``FileNotFoundError`` for missing data.
        prepare: function of (datarc, run folder, whether to train), called once s3prl can be
            imported.
    """

    downstream: str
    features: str
    locate: Callable[[Path, Path], dict[str, Any]]
    prepare: Callable[[dict[str, Any], Path, bool], None] = lambda datarc, out, training: None


def locate_ks(data: Path, out: Path) -> dict[str, Any]:
    """Locate Speech Commands v0.01 and its test set, unpacked in folders of the archives' names."""
    train, test = data / KS_TRAIN, data / KS_TEST
    for folder, classes in (
        (train, {*KS_WORDS, "_background_noise_"}),
        (test, {*KS_WORDS, "_unknown_", "_silence_"}),
    ):
        source = f"{KS_SOURCE}{folder.name}.tar.gz unpacked in {folder}"
        if not folder.is_dir():
            raise FileNotFoundError(f"{folder}: no such folder; it is {source}")
        if missing := sorted(name for name in classes if not any(folder.glob(f"{name}/*.wav"))):
            raise FileNotFoundError(
                f"{folder}: no *.wav in {', '.join(missing)}; the folder is {source}"
            )
    known = {*KS_WORDS, "_unknown_", "_silence_"}
    if other := sorted(p.name for p in test.iterdir() if p.is_dir() and p.name not in known):
        raise ValueError(f"{test / other[0]}: is not one of the 12 classes of {KS_SOURCE}{KS_TEST}")
    return {"speech_commands_root": str(train), "speech_commands_test_root": str(test)}


def prepare_ks(datarc: dict[str, Any], out: Path, training: bool) -> None:
    """Check that there is at least one full batch of training clips: s3prl hangs otherwise."""
    if not training:
        return
    from s3prl.downstream.speech_commands.expert import split_dataset

    root = Path(datarc["speech_commands_root"])
    train, _ = split_dataset(root)
    clips = len(train) + len(list(root.glob("_background_noise_/*.wav")))
    if clips < datarc["batch_size"]:
        raise ValueError(
            f"{root}: {plural(clips, 'training clip')}, less than one batch of "
            f"{datarc['batch_size']}; add: -- -o "
            f"config.downstream_expert.datarc.batch_size={max(1, clips // 4)}"
        )


def locate_sid(data: Path, out: Path) -> dict[str, Any]:
    """Locate VoxCeleb1: ``{dev,test}/wav/id10001/...`` and the list of splits."""
    lists = [data / name for name in SID_LISTS if (data / name).is_file()]
    if not lists:
        raise FileNotFoundError(
            f"{data / SID_LISTS[1]}: no such file; it is {SID_LIST_SOURCE} (s3prl's "
            f"{SID_LISTS[0]} is accepted, too)"
        )
    found = {"file_path": str(data), "meta_data": str(lists[0])}
    if (out / FILE_LISTS).is_dir():  # an earlier call has found all clips
        return found
    missing = set(SID_SPLITS)
    folders = [str(folder) for folder in data.glob("*/wav")]
    for where, split, clip in read_list(lists[0]):
        missing.discard(split)
        if not any(os.path.isfile(f"{folder}/{clip}") for folder in folders):
            raise FileNotFoundError(
                f"{where}: {clip} is neither in {data / 'dev' / 'wav'} nor in "
                f"{data / 'test' / 'wav'}; they are the archives vox1_dev_wav.zip and "
                f"vox1_test_wav.zip of {SID_SOURCE}"
            )
    if missing:
        split = min(missing)
        raise ValueError(f"{lists[0]}: no {SID_SPLITS[split]} clips, which start with {split}")
    return found


def prepare_sid(datarc: dict[str, Any], out: Path, training: bool) -> None:
    """Cache s3prl's lists of files in the run folder instead of in the s3prl package.

    There they would also be used for other data folders.
    """
    import s3prl.downstream.voxceleb1.dataset as dataset

    listed = Path(datarc["meta_data"]).read_bytes() + datarc["file_path"].encode()
    dataset.CACHE_PATH = str(out / FILE_LISTS / hashlib.sha256(listed).hexdigest()[:12])


def locate_er(data: Path, out: Path) -> dict[str, Any]:
    """Locate IEMOCAP: ``Session1`` to ``Session5``, and s3prl's lists of clips in ``meta_data``.

    Missing lists are created from the corpus.
    """
    for session in ER_SESSIONS:
        folder = data / f"Session{session}" / "sentences" / "wav"
        if not folder.is_dir():
            raise FileNotFoundError(
                f"{folder}: no such folder; --data is IEMOCAP_full_release of {ER_SOURCE}"
            )
    lists = data / "meta_data"
    if not lists.is_dir():
        lists = out / "meta_data"
        write_er_lists(data, lists)
        print(
            f"{lists}: created from the corpus; the development split differs from that of the "
            f"published lists, {ER_LISTS}; to use those, put them into {data / 'meta_data'}",
            file=sys.stderr,
        )
    names = [
        lists / f"Session{session}" / f"{split}_meta_data.json"
        for session in ER_SESSIONS
        for split in ("train", "test")
    ]
    for path in names:
        if not path.is_file():
            raise FileNotFoundError(f"{path}: no such file; it is one of {ER_LISTS}")
    for path in names[:2]:  # the two together list all sessions
        for clip in json.loads(path.read_text())["meta_data"]:
            if not (data / clip["path"]).is_file():
                raise FileNotFoundError(f"{data / clip['path']}: no such file; {path} lists it")
    return {"root": str(data), "meta_data": str(lists)}


def write_er_lists(data: Path, lists: Path) -> None:
    """Write lists of clips with each session as test set: ``Session1/test_meta_data.json``, ...

    The clips are those of s3prl's lists, but sorted, while s3prl's order is that of a file system.
    The clips that s3prl holds out for development therefore differ.
    """
    by_session = {session: _er_clips(data, session) for session in ER_SESSIONS}
    for session in ER_SESSIONS:
        rest = [clip for other in ER_SESSIONS if other != session for clip in by_session[other]]
        folder = lists / f"Session{session}"
        folder.mkdir(parents=True, exist_ok=True)
        for split, clips in (("train", rest), ("test", by_session[session])):
            text = json.dumps({"labels": ER_LABELS, "meta_data": clips})
            (folder / f"{split}_meta_data.json").write_text(text)


def _er_clips(data: Path, session: int) -> list[dict[str, str]]:
    labels = data / f"Session{session}" / "dialog" / "EmoEvaluation"
    files = sorted(path for path in labels.glob("*.txt") if not path.name.startswith("."))
    if not files:
        raise FileNotFoundError(
            f"{labels}: no *.txt; provide the complete corpus in {data}, or s3prl's lists in "
            f"{data / 'meta_data'} ({ER_LISTS})"
        )
    clips = []
    for path in files:
        for name, label in ER_LINE.findall(path.read_text(encoding="utf-8", errors="replace")):
            # The name of a clip is that of its dialogue, followed by the turn.
            wav = f"Session{session}/sentences/wav/{name.rpartition('_')[0]}/{name}.wav"
            if (data / wav).is_file():
                clips.append(
                    {
                        "path": wav,
                        "label": label.replace("exc", "hap"),
                        "speaker": name.partition("_")[0],
                    }
                )
    if not clips:
        raise ValueError(f"{labels}: no clip labelled neu, hap, ang, sad or exc has a wav file")
    return clips


TASKS = {
    "ks": Task("speech_commands", "last_hidden_state", locate_ks, prepare_ks),
    "sid": Task("voxceleb1", "hidden_states", locate_sid, prepare_sid),
    "er": Task("emotion", "last_hidden_state", locate_er),
}
