"""Splits by hash: stable when groups are added, with each class in each split."""

from __future__ import annotations

import numpy as np
import pytest

from mae_ast.prepare.splitting import compile_group, draw_splits, group_by

RATIOS = {"valid": 0.1, "test": 0.1, "train": 0.8}
FOLDS = dict.fromkeys(("fold1", "fold2", "fold3", "fold4", "fold5"), 0.2)


def groups_of(sizes: dict[str, int]) -> dict[str, frozenset[str]]:
    """Return groups of one class each."""
    return {
        f"{name}/{number}": frozenset({name})
        for name, size in sizes.items()
        for number in range(size)
    }


def count(split_of: dict[str, str], split: str, name: str) -> int:
    return sum(s == split and group.startswith(f"{name}/") for group, s in split_of.items())


def test_ratios_are_those_wanted() -> None:
    groups = groups_of({"a": 5_000, "b": 5_000})
    drawn = draw_splits(groups, RATIOS, 0, "train")
    assert drawn.moved == ()
    for split, ratio in RATIOS.items():
        for name in "ab":
            assert count(drawn.split_of, split, name) / 5_000 == pytest.approx(ratio, abs=0.02)
    other = draw_splits(groups, RATIOS, 1, "train")
    assert sum(other.split_of[g] != s for g, s in drawn.split_of.items()) > 2_000


@pytest.mark.parametrize(("ratios", "first"), [(RATIOS, "train"), (FOLDS, "")])
def test_adding_groups_moves_no_others(ratios: dict[str, float], first: str) -> None:
    """Except those that had been moved, so that a split has a class."""
    before = draw_splits(groups_of({"a": 60, "b": 30, "rare": 5}), ratios, 3, first)
    after = draw_splits(groups_of({"a": 90, "b": 31, "rare": 9, "new": 40}), ratios, 3, first)
    changed = {group for group, split in before.split_of.items() if after.split_of[group] != split}
    assert changed <= {*before.moved, *after.moved}
    assert all(group.startswith("rare/") for group in changed)


@pytest.mark.parametrize("seed", range(20))
def test_each_split_has_each_class_that_has_enough_groups(seed: int) -> None:
    sizes = {"a": 200, "b": 12, "three": 3, "two": 2, "one": 1}
    drawn = draw_splits(groups_of(sizes), RATIOS, seed, "train")
    for name in ("a", "b", "three"):
        assert all(count(drawn.split_of, split, name) for split in RATIOS), name
    assert count(drawn.split_of, "train", "two") == 1
    assert count(drawn.split_of, "train", "one") == 1
    assert len(drawn.moved) <= 5


@pytest.mark.parametrize("seed", range(20))
def test_each_fold_has_each_class_that_has_enough_groups(seed: int) -> None:
    drawn = draw_splits(groups_of({"a": 40, "five": 5, "two": 2}), FOLDS, seed)
    for fold in FOLDS:
        assert count(drawn.split_of, fold, "a") >= 1
        assert count(drawn.split_of, fold, "five") == 1
    assert max(count(drawn.split_of, fold, "two") for fold in FOLDS) == 1


@pytest.mark.parametrize("num_groups", [3, 5, 12])
@pytest.mark.parametrize("seed", range(10))
def test_groups_of_several_classes_keep_each_class_in_training(seed: int, num_groups: int) -> None:
    rng = np.random.default_rng(seed)
    groups = {
        f"site{number}": frozenset(rng.choice(list("abcdef"), size=3, replace=False).tolist())
        for number in range(num_groups)
    }
    drawn = draw_splits(groups, RATIOS, seed, "train")
    present = {
        split: frozenset().union(*(groups[g] for g, s in drawn.split_of.items() if s == split))
        for split in RATIOS
    }
    assert present["train"] == frozenset().union(*groups.values())
    assert len(present["valid"]) >= 4 or num_groups < 12


@pytest.mark.parametrize(
    ("pattern", "names", "groups"),
    [
        (r"([^/]+)_\d+\.wav$", ["dog/ann_1.wav", "cat/bob_2.wav"], ["ann", "bob"]),
        (r"(dog|cat)/(?P<group>\w)", ["dog/ann_1.wav", "cat/bob_2.wav"], ["a", "b"]),
    ],
)
def test_groups_are_matched(pattern: str, names: list[str], groups: list[str]) -> None:
    assert group_by(compile_group(pattern), names) == groups


@pytest.mark.parametrize(
    ("pattern", "words"),
    [
        ("(", r"--group \(: is no regular expression"),
        (r"\w+", "has no group in parentheses"),
        (r"(ann)", r"does not match cat/bob_2\.wav; every file needs a group"),
    ],
)
def test_invalid_groups_are_refused(pattern: str, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        group_by(compile_group(pattern), ["dog/ann_1.wav", "cat/bob_2.wav"])
