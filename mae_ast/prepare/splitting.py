"""Draw splits or folds by hash: groups stay together, and each split gets each class.

The hash of a group's name decides its split, so that adding clips does not move others. Where this
leaves a split without a class, one group of the class is moved there; only such groups may change
their split when clips are added.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from mae_ast.prepare.layout import hash_uniform

Classes = frozenset[str]


@dataclass(frozen=True)
class Drawn:
    """Result of :func:`draw_splits`.

    Args:
        split_of: group to split.
        moved: groups that are not in the split of their hash, so that it has each class.
    """

    split_of: dict[str, str]
    moved: tuple[str, ...]


def draw_splits(
    groups: Mapping[str, Classes], ratios: Mapping[str, float], seed: int, first: str = ""
) -> Drawn:
    """Assign groups to splits.

    Args:
        groups: name of each group to the classes of its clips.
        ratios: split to its expected ratio of the groups; they sum to 1.
        seed: seed of the draw.
        first: split that gets each class, also one which has too few groups for all splits; "":
            none.
    """
    split_of = {group: _split_at(hash_uniform(f"{seed}\t{group}"), ratios) for group in groups}
    counts = {split: Counter[str]() for split in ratios}
    having: dict[str, list[str]] = {}
    for group, classes in groups.items():
        counts[split_of[group]].update(classes)
        for each in classes:
            having.setdefault(each, []).append(group)
    moved: dict[str, None] = {}
    rarest_first = sorted(having, key=lambda each: (len(having[each]), each))
    for split in sorted(ratios, key=lambda each: each != first):
        for wanted in rarest_first:
            if counts[split][wanted]:
                continue
            free = [
                group
                for group in having[wanted]
                if all(counts[split_of[group]][each] > 1 for each in groups[group])
            ]
            if not free and split == first:  # the others may lack a class, it must not
                free = having[wanted]
            if free:
                group = min(free, key=lambda each: hash_uniform(f"{seed}\t{split}\t{each}"))
                counts[split_of[group]].subtract(groups[group])
                counts[split].update(groups[group])
                split_of[group] = split
                moved[group] = None
    return Drawn(split_of, tuple(moved))


def compile_group(pattern: str) -> re.Pattern[str]:
    """Compile the regular expression of ``--group``.

    Raises:
        ValueError: it is invalid or has no group.
    """
    try:
        compiled = re.compile(pattern)
    except re.error as error:
        raise ValueError(f"--group {pattern}: is no regular expression ({error})") from error
    if not compiled.groups:
        raise ValueError(
            f"--group {pattern}: has no group in parentheses; expected one around the part of "
            "the path that names the speaker or site, such as '([^/_]+)_[^/]*$'"
        )
    return compiled


def group_by(pattern: re.Pattern[str], names: Sequence[str]) -> list[str]:
    """Return the group of each name: what a group of a regular expression matches.

    Args:
        pattern: regular expression, searched in each name; its group ``(?P<group>...)``, or the
            first one, is used.
        names: paths, relative to the folder of the data.

    Raises:
        ValueError: the pattern does not match a name.
    """
    key = "group" if "group" in pattern.groupindex else 1
    found = []
    for name in names:
        match = pattern.search(name)
        if match is None or match[key] is None:
            raise ValueError(
                f"--group {pattern.pattern}: does not match {name}; every file needs a group"
            )
        found.append(match[key])
    return found


def _split_at(chance: float, ratios: Mapping[str, float]) -> str:
    end = 0.0
    for split, ratio in ratios.items():
        end += ratio
        if chance < end:
            return split
    return split  # the ratios sum to slightly less than 1
