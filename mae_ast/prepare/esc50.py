"""ESC-50: 2,000 environmental sounds of 5 s, 50 classes, 5 folds.

    meta/esc50.csv         filename,fold,target,category,esc10,src_file,take
    audio/1-100032-A-0.wav

The output has a folder for each fold, ``fold1`` to ``fold5``, in which that fold is ``valid`` and
the other four are ``train``. All clips of a recording are in the same fold.
"""

from __future__ import annotations

from pathlib import Path

from mae_ast.core.io.labels import Labels
from mae_ast.core.io.manifest import PROBE_THREADS
from mae_ast.prepare.clips import Clip
from mae_ast.prepare.layout import locate, read_table
from mae_ast.prepare.splits import Prepared, write_splits

FOLDS = range(1, 6)
EXPECTED = (
    "ESC-50 (meta/esc50.csv and audio/*.wav), unpacked from https://github.com/karolpiczak/ESC-50"
)


def prepare(folder: Path, out: Path, jobs: int = PROBE_THREADS) -> Prepared:
    """Write ``fold1`` to ``fold5``, each with train and valid.

    Raises:
        FileNotFoundError, NotADirectoryError: the folder is not ESC-50.
        ValueError: its CSV file is invalid, or a fold has no usable clip.
    """
    root = locate(folder, ["ESC-50-master", "ESC-50"], "meta/esc50.csv", EXPECTED)
    if not (root / "audio").is_dir():
        raise FileNotFoundError(f"{root}: no audio folder in it; expected {EXPECTED}")
    folds: dict[int, list[Clip]] = {fold: [] for fold in FOLDS}
    categories: dict[int, str] = {}
    path = root / "meta" / "esc50.csv"
    for where, row in read_table(path, ("filename", "fold", "target", "category")):
        fold = _number(row["fold"], "fold", FOLDS, where)
        target = _number(row["target"], "target", range(50), where)
        if categories.setdefault(target, row["category"]) != row["category"]:
            raise ValueError(
                f"{where}: target {target} is {row['category']!r} here and "
                f"{categories[target]!r} above; expected one category per target"
            )
        folds[fold].append(Clip(str(root / "audio" / row["filename"]), (row["category"],)))
    if not categories or sorted(categories) != list(range(len(categories))):
        raise ValueError(
            f"{path}: its targets are not exactly 0 to C - 1 for C categories; expected {EXPECTED}"
        )
    mids = tuple(categories[target] for target in sorted(categories))
    splits: dict[str, list[Clip]] = {}
    for fold in FOLDS:
        splits[f"fold{fold}/train"] = [
            clip for other in FOLDS if other != fold for clip in folds[other]
        ]
        splits[f"fold{fold}/valid"] = folds[fold]
    labels = Labels(mids, tuple(mid.replace("_", " ") for mid in mids))
    return write_splits(out, root, splits, labels, jobs=jobs)


def _number(text: str, what: str, known: range, where: str) -> int:
    if not text.isdecimal() or int(text) not in known:
        raise ValueError(f"{where}: {what} {text!r}; expected {known[0]} to {known[-1]}")
    return int(text)
