"""Apply a function to many items in threads, a bounded number of items ahead."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

T = TypeVar("T")
R = TypeVar("R")


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
