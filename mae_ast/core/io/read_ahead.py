"""Compute items in threads, a bounded number ahead of their use."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Generator, Iterable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from itertools import islice
from typing import Any, TypeVar

T = TypeVar("T")
R = TypeVar("R")

# Shows the progress of an iteration; called with it and the number of its items.
Progress = Callable[[Iterable[Any], int], Iterable[Any]]


def for_each_ahead(
    function: Callable[[T], R],
    items: Sequence[T],
    use: Callable[[T, R], None],
    threads: int,
    max_ahead: int,
    progress: Progress | None = None,
) -> None:
    """Call ``use(item, function(item))`` for each item, in order.

    Args:
        function, threads, max_ahead: as in :func:`map_ahead`.
        items: the items.
        use: called in this thread.
        progress: wrapper of the iteration over items.
    """

    def used() -> Generator[T, None, None]:
        with closing(map_ahead(function, items, threads, max_ahead)) as results:
            for item, result in zip(items, results, strict=True):
                use(item, result)
                yield item

    run_steps(used(), len(items), progress)


def run_steps(steps: Iterable[Any], total: int, progress: Progress | None) -> None:
    """Run through steps, for what they do.

    Errors within a step pass through ``progress``, which ends its line before they are reported.

    Args:
        steps: iterator that does some work for each item.
        total: number of steps.
        progress: wrapper of the iteration over steps; ``None``: nothing is shown.
    """
    deque(steps if progress is None else progress(steps, total), maxlen=0)


def map_ahead(
    function: Callable[[T], R], items: Iterable[T], threads: int, max_ahead: int
) -> Generator[R, None, None]:
    """Yield ``function(item)`` for each item, in order.

    ``ThreadPoolExecutor.map`` takes all items at once, at about 1 kB each, and holds all results
    that are not yet used. When the iteration ends early, as on Ctrl-C, items that no thread has
    started are dropped.

    Args:
        function: called in a thread; its exception is raised in place of the result.
        items: consumed ``max_ahead`` items before their results.
        threads: number of items processed at a time.
        max_ahead: maximum number of items that are processed before they are needed.
    """
    pool = ThreadPoolExecutor(threads)
    pending: deque[Future[R]] = deque()
    try:
        for item in items:
            pending.append(pool.submit(function, item))
            if len(pending) > max_ahead:
                yield pending.popleft().result()
        while pending:
            yield pending.popleft().result()
    finally:
        pool.shutdown(cancel_futures=True)


def one_ahead(items: Generator[T, None, None]) -> Generator[T, None, None]:
    """Yield items, while a thread computes the next one.

    Args:
        items: runs in the thread, and is closed at the end. At most two of its items exist at a
            time: the one in use and the next one.
    """
    with closing(items), ThreadPoolExecutor(1) as pool:

        def following() -> Future[list[T]]:
            return pool.submit(lambda: list(islice(items, 1)))  # empty at the end

        pending = following()
        while found := pending.result():
            pending = following()
            yield found[0]
