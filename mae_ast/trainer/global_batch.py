"""Batches of an update over all ranks, so that a run resumes on another number of ranks.

The order of an epoch's batches is global. With W ranks and update_freq F, update u of an epoch
takes the next N = W x F of them, and rank r takes u N + r, u N + r + W, ... (fairseq deals them out
in turn). Updates thus depend on N alone, as ``task.batches_per_update`` sets it. A checkpoint holds
the number of batches that each rank has taken in the epoch, which is translated when a run resumes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from mae_ast.core.io.plural import plural

KEY = "task.batches_per_update"


@dataclass(frozen=True)
class Division:
    """Division of an update's batches.

    Args:
        ranks: number of ranks.
        update_freq: batches of an update on each rank.
    """

    ranks: int
    update_freq: int

    @classmethod
    def of(cls, cfg: Any, epoch: int) -> Division:
        """Read the division in an epoch, counted from 1, from all settings of a run."""
        freqs: Sequence[int] = cfg["optimization"]["update_freq"]
        ranks = cfg["distributed_training"]["distributed_world_size"]
        return cls(int(ranks), int(freqs[min(epoch, len(freqs)) - 1]))

    @property
    def batches(self) -> int:
        """Number of batches of an update over all ranks."""
        return self.ranks * self.update_freq

    def describe(self) -> str:
        """Return the division in words."""
        processes = plural(self.ranks, "process", "processes")
        return f"{plural(self.batches, 'batch', 'batches')} ({processes} x {self.update_freq})"


def update_freq(batches_per_update: int, ranks: int) -> int:
    """Return the batches of an update on each rank.

    Raises:
        ValueError: they cannot be divided equally; names what could be.
    """
    freq, rest = divmod(batches_per_update, ranks)
    if freq >= 1 and not rest:
        return freq
    near = [batches for batches in (freq * ranks, (freq + 1) * ranks) if batches > 0]
    divisors = [n for n in range(1, batches_per_update + 1) if batches_per_update % n == 0][-4:]
    valid = _either(near)
    if divisors:
        valid += f", or {_either(divisors)} {'process' if divisors == [1] else 'processes'}"
    raise ValueError(
        f"{KEY}={batches_per_update}: not divisible by {plural(ranks, 'process', 'processes')}; "
        f"use {valid}"
    )


def set_update_freq(cfg: Any, ranks: int) -> None:
    """Set ``optimization.update_freq`` as ``task.batches_per_update`` requires, if it is set.

    Args:
        cfg: all settings of a run; changed in place.
        ranks: number of ranks.

    Raises:
        ValueError: the batches cannot be divided equally, or depend on the number of ranks.
    """
    batches = cfg.task.get("batches_per_update")
    if batches is None:
        return
    if cfg.dataset.grouped_shuffling:
        raise ValueError(
            f"{KEY}={batches}: dataset.grouped_shuffling=true orders batches by the number of "
            "processes; set it to false"
        )
    cfg.optimization.update_freq = [update_freq(batches, ranks)]


def translate(position: int, before: Division, now: Division) -> tuple[int, int]:
    """Translate a position in an epoch to another division.

    Args:
        position: batches that each rank has taken, in whole updates.
        before: division of these updates.
        now: division of the updates to come.

    Returns:
        The batches that each rank skips, in whole updates, and the number of batches over all
        ranks that are repeated because an update has begun, but not ended, with them.
    """
    updates, repeated = divmod(position * before.ranks, now.batches)
    return updates * now.update_freq, repeated


def resume(state: Mapping[str, Any], cfg: Any) -> str | None:
    """Translate the position in a checkpoint's epoch to the ranks of the run that resumes.

    Args:
        state: content of the checkpoint; changed in place.
        cfg: all settings of the run that resumes.

    Returns:
        A warning if updates have another number of batches from now on, else ``None``.
    """
    iterator = (state.get("extra_state") or {}).get("train_iterator") or {}
    saved = state.get("cfg")
    if not saved or not {"epoch", "iterations_in_epoch"} <= iterator.keys():
        return None
    epoch = iterator["epoch"]
    before, now = Division.of(saved, epoch), Division.of(cfg, epoch)
    position, repeated = translate(iterator["iterations_in_epoch"], before, now)
    iterator["iterations_in_epoch"] = position
    if before.batches == now.batches:
        return None
    again = ""
    if repeated:
        again = f"; {plural(repeated, 'batch', 'batches')} of epoch {epoch} are read again"
    return (
        f"an update has {now.describe()} from now on, and had {before.describe()} before; "
        f"{KEY}={before.batches} keeps the number{again}"
    )


def _either(numbers: Sequence[int]) -> str:
    *most, last = map(str, numbers)
    return f"{', '.join(most)} or {last}" if most else last
