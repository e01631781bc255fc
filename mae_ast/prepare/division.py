"""Divide clips into splits or folds: their own, or drawn by a hash."""

from __future__ import annotations

import re
from collections.abc import Container, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain

from mae_ast.core.io.plural import plural
from mae_ast.prepare.clips import SPLITS
from mae_ast.prepare.own_clip import OwnClip
from mae_ast.prepare.splitting import draw_splits, group_by

TRAIN, VALID, TEST = SPLITS
RATIO = 0.1  # of the groups, for validation and for test


@dataclass(frozen=True)
class Division:
    """Division of clips that do not say their split.

    Args:
        valid, test: ratios of the groups for validation and test; 0: no such split; ``None``: a
            tenth, if the split is to be drawn.
        folds: number of folds for cross-validation; 0: splits.
        seed: seed of the draw.
        group: pattern that finds the group of a clip in its name, see :func:`group_by`; ``None``:
            the clips have theirs.

    Raises:
        ValueError: the ratios leave nothing for training, or contradict the number of folds.
    """

    valid: float | None = None
    test: float | None = None
    folds: int = 0
    seed: int = 0
    group: re.Pattern[str] | None = None

    def __post_init__(self) -> None:
        ratios = self.ratios()
        if min(ratios.values()) < 0 or sum(ratios.values()) >= 1:
            raise ValueError(
                f"--valid {ratios[VALID]:g} and --test {ratios[TEST]:g} leave nothing for training"
            )
        if self.folds and (self.valid, self.test) != (None, None):
            raise ValueError("--folds leaves no other splits; leave out --valid and --test")

    def ratios(self) -> dict[str, float]:
        """Return the ratios of the splits for validation and test."""
        given = {VALID: self.valid, TEST: self.test}
        return {name: RATIO if ratio is None else ratio for name, ratio in given.items()}

    def grouped(self, clips: Sequence[OwnClip]) -> list[OwnClip]:
        """Return clips with their groups.

        Raises:
            ValueError: the pattern does not match the name of a clip.
        """
        if self.group is None:
            return list(clips)
        groups = group_by(self.group, [clip.name for clip in clips])
        return [clip._replace(group=each) for clip, each in zip(clips, groups, strict=True)]

    def check_unused(self, own: str, there: Container[str]) -> None:
        """Check that no option contradicts the splits or folds that the clips have already.

        Args:
            own: "split" or "fold".
            there: names of the splits that are not to be drawn.

        Raises:
            ValueError: an option would have no effect.
        """
        options: dict[str, float | None] = {"--folds": self.folds or None}
        options |= {"--valid": self.valid} if VALID in there else {}
        options |= {"--test": self.test} if TEST in there else {}
        for option, value in options.items():
            if value is not None:
                raise ValueError(f"{option} {value:g}: the clips have a {own} of their own")


def divide(
    clips: Sequence[OwnClip], division: Division
) -> tuple[dict[str, list[OwnClip]], list[str]]:
    """Return split or fold to its clips, in their order, and notes.

    Raises:
        ValueError: the options contradict the splits or folds of the clips, no clip is in train, or
            there is one fold only.
    """
    own = "fold" if clips[0].fold else "split" if clips[0].split else ""
    notes: list[str] = []
    given = {clip: getattr(clip, own) for clip in clips} if own else dict.fromkeys(clips, TRAIN)
    if own:
        drawn = {VALID} if own == "split" and VALID not in given.values() else set()
        division.check_unused(own, {VALID, TEST} - drawn)
    if own == "fold":
        names = sorted(set(given.values()), key=lambda name: int(name.removeprefix("fold")))
    elif division.folds:
        names = [f"fold{number}" for number in range(1, division.folds + 1)]
        given |= _drawn(clips, dict.fromkeys(names, 1 / division.folds), division.seed, "", notes)
    else:
        for_training = [clip for clip in clips if given[clip] == TRAIN]
        if not for_training:
            raise ValueError("no clip is in train; expected clips of all classes there")
        wanted = drawn if own else {VALID, TEST}
        ratios = {name: r for name, r in division.ratios().items() if name in wanted and r > 0}
        if ratios:
            ratios[TRAIN] = 1 - sum(ratios.values())
            given |= _drawn(for_training, ratios, division.seed, TRAIN, notes)
        names = [name for name in SPLITS if name in ratios or name in given.values()]
    parts: dict[str, list[OwnClip]] = {name: [] for name in names}
    for clip in clips:
        parts[given[clip]].append(clip)
    if sum(map(bool, parts.values())) < 2 and TRAIN not in parts:
        raise ValueError("all clips are in one fold; expected two or more folds")
    return parts, notes


def _drawn(
    clips: Sequence[OwnClip],
    ratios: Mapping[str, float],
    seed: int,
    first: str,
    notes: list[str],
) -> dict[OwnClip, str]:
    """Draw the split of each clip; add a note on those that are not where their hash puts them."""
    classes: dict[str, set[str]] = {}
    for clip in clips:
        classes.setdefault(_group(clip), set()).update(clip.labels)
    groups = {group: frozenset(some) for group, some in classes.items()}
    drawn = draw_splits(groups, ratios, seed, first)
    if drawn.moved:
        group = drawn.moved[0]
        kind = "group" if clips[0].group else "file"
        kind_of_part = "fold" if not first else "split"
        notes.append(
            f"{plural(len(drawn.moved), kind)} moved, so that each {kind_of_part} has each class "
            f"(such as {group} to {drawn.split_of[group]})"
        )
    return {clip: drawn.split_of[_group(clip)] for clip in clips}


def _group(clip: OwnClip) -> str:
    return clip.group or clip.name


def as_splits(parts: Mapping[str, Sequence[OwnClip]]) -> dict[str, list[OwnClip]]:
    """Return the manifests to write: splits as they are; for a fold, the others are its train."""
    parts = {name: some for name, some in parts.items() if some}
    if TRAIN in parts:
        return {name: list(some) for name, some in parts.items()}
    splits: dict[str, list[OwnClip]] = {}
    for fold, held_out in parts.items():
        others = [some for name, some in parts.items() if name != fold]
        splits[f"{fold}/{TRAIN}"] = list(chain(*others))
        splits[f"{fold}/{VALID}"] = list(held_out)
    return splits
