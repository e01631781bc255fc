"""Progress over items that a caller may show."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable

# Wraps an iteration, called with it and the number of its items.
Progress = Callable[[Iterable[int], int], Iterable[int]]


def run_steps(steps: Iterable[int], total: int, progress: Progress | None) -> None:
    """Run through steps, for what they do.

    Errors within a step pass through ``progress``, which can end its line before they are reported.

    Args:
        steps: iterator that does some work for each item.
        total: number of steps.
        progress: shows the progress; ``None``: nothing is shown.
    """
    deque(steps if progress is None else progress(steps, total), maxlen=0)
