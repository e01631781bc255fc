"""Results of threads: their order, the bound on pending items, errors, early ends."""

from __future__ import annotations

import threading
from collections.abc import Iterable, Iterator

import pytest

from mae_ast.core.io.read_ahead import for_each_ahead, map_ahead, one_ahead


def test_results_are_in_order_and_computed_concurrently() -> None:
    meeting = threading.Barrier(3, timeout=60)

    def square(number: int) -> int:
        meeting.wait()  # returns only when three threads are here
        return number**2

    assert list(map_ahead(square, range(9), 3, 3)) == [n**2 for n in range(9)]


@pytest.mark.parametrize("max_ahead", [0, 1, 5])
def test_at_most_max_ahead_items_are_taken_before_they_are_needed(max_ahead: int) -> None:
    taken = []

    def items() -> Iterator[int]:
        for number in range(20):
            taken.append(number)
            yield number

    results = map_ahead(lambda number: number, items(), 2, max_ahead)
    for number in range(20):
        assert next(results) == number
        assert len(taken) == min(number + 1 + max_ahead, 20)
    assert next(results, None) is None


def test_an_error_is_raised_in_place_of_its_result() -> None:
    results = map_ahead(lambda number: 12 // (3 - number), range(5), 4, 8)
    assert [next(results) for _ in range(3)] == [4, 6, 12]
    with pytest.raises(ZeroDivisionError):
        next(results)


def test_pending_items_are_dropped_when_the_iteration_ends_early() -> None:
    computed = []
    first_used, started = threading.Event(), threading.Event()

    def compute(number: int) -> int:
        if number == 1:
            started.set()
            assert first_used.wait(60)  # the only thread is busy until then
        computed.append(number)
        return number

    results = map_ahead(compute, range(100), 1, 50)
    assert next(results) == 0
    assert started.wait(60)
    threading.Timer(0.05, first_used.set).start()
    results.close()
    assert computed == [0, 1]


def test_no_items_give_no_results() -> None:
    assert list(map_ahead(str, [], 2, 2)) == []


@pytest.mark.parametrize("fails", [False, True])
def test_progress_counts_used_results_and_ends_before_an_error(fails: bool) -> None:
    events: list[object] = []

    def use(item: str, length: int) -> None:
        if fails and item == "ccc":
            raise ValueError("ccc is too long")
        events.append((item, length))

    def progress(items: Iterable[str], total: int) -> Iterator[str]:
        try:
            for item in items:
                yield item
                events.append(item)
        finally:
            events.append(total)

    items = ["a", "bb", "ccc"]
    expected: list[object] = [("a", 1), "a", ("bb", 2), "bb"]
    if fails:
        with pytest.raises(ValueError, match="ccc is too long") as raised:
            for_each_ahead(len, items, use, 2, 2, progress)
        assert raised.traceback  # keeps all frames alive
    else:
        for_each_ahead(len, items, use, 2, 2, progress)
        expected += [("ccc", 3), "ccc"]
    assert events == [*expected, 3]


def test_the_next_item_is_computed_while_one_is_used() -> None:
    begun = [threading.Event() for _ in range(6)]
    closed = []

    def items() -> Iterator[int]:
        try:
            for number in range(5):
                begun[number].set()
                yield number
            begun[5].set()
        finally:
            closed.append(threading.current_thread())

    for number in one_ahead(items()):
        assert begun[number + 1].wait(60)
        if number < 4:
            assert not begun[min(number + 2, 5)].is_set()
    assert number == 4
    assert len(closed) == 1


def test_an_unfinished_iteration_closes_its_items() -> None:
    closed = []

    def items() -> Iterator[int]:
        try:
            yield from range(10)
        finally:
            closed.append(1)

    ahead = one_ahead(items())
    assert next(ahead) == 0
    ahead.close()
    assert closed


def test_an_error_of_the_next_item_is_raised_after_the_one_before_it() -> None:
    ahead = one_ahead(12 // (2 - number) for number in range(5))
    assert [next(ahead), next(ahead)] == [6, 12]
    with pytest.raises(ZeroDivisionError):
        next(ahead)
