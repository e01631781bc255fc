"""Progress bars."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TypeVar

from tqdm import tqdm

T = TypeVar("T")


def bar(what: str, unit: str) -> Callable[[Iterable[T], int], Iterable[T]]:
    """A function that shows progress while its argument is iterated over."""

    def wrap(items: Iterable[T], total: int) -> Iterable[T]:
        wrapped: Iterable[T] = tqdm(items, total=total, desc=what, unit=unit)
        return wrapped

    return wrap
