"""Progress on a terminal and in a log file."""

from __future__ import annotations

import io
import sys
from collections.abc import Iterator

import pytest

from mae_ast import console
from mae_ast.console import bar, progress_bar


class Clock:
    """Time that passes only when it is told to."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(console, "monotonic", clock)
    return clock


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_progress_in_a_log_is_a_line_every_ten_seconds_and_one_at_the_end(
    clock: Clock, capsys: pytest.CaptureFixture[str]
) -> None:
    for _ in bar("reading", "file")(range(100), 100):
        clock.now += 0.25
    assert capsys.readouterr().err.splitlines() == [
        "reading: 40% 40/100 [00:10<00:15,  4.00file/s]",
        "reading: 80% 80/100 [00:20<00:05,  4.00file/s]",
        "reading: 100% 100/100 [00:25<00:00,  4.00file/s]",
    ]


def test_quick_work_is_one_line_in_a_log(clock: Clock, capsys: pytest.CaptureFixture[str]) -> None:
    assert list(bar("reading", "file")("abc", 3)) == ["a", "b", "c"]
    said = capsys.readouterr()
    assert said.out == ""
    assert said.err.startswith("reading: 100% 3/3 [")
    assert said.err.count("\n") == 1
    assert "\r" not in said.err


def test_an_error_ends_progress_at_the_items_done(
    clock: Clock, capsys: pytest.CaptureFixture[str]
) -> None:
    def items() -> Iterator[int]:
        yield from range(2)
        raise KeyError

    with pytest.raises(KeyError):
        list(bar("reading", "file")(items(), 4))
    assert capsys.readouterr().err.startswith("reading: 50% 2/4 [")


def test_a_slow_item_is_followed_by_a_line_at_once(
    clock: Clock, capsys: pytest.CaptureFixture[str]
) -> None:
    with progress_bar("reading", "file", 3) as progress:
        clock.now += 35
        progress.update()
        assert capsys.readouterr().err.startswith("reading: 33% 1/3 [00:35<01:10")
        clock.now += 9
        progress.update()
        assert capsys.readouterr().err == ""


def test_nothing_is_shown_before_the_delay(
    clock: Clock, capsys: pytest.CaptureFixture[str]
) -> None:
    for seconds, lines in ((9, 0), (12, 1)):
        with progress_bar("a.pt", "B", 65_536, 1_000, unit_scale=True, delay=10.0) as progress:
            clock.now += seconds
            progress.n = 65_535
        said = capsys.readouterr().err
        assert said.count("\n") == lines
    assert said.startswith("a.pt: 100% 65.5k/65.5k [")


def test_an_unknown_total_and_values_are_shown(
    clock: Clock, capsys: pytest.CaptureFixture[str]
) -> None:
    with progress_bar("a.pt", "B", unit_scale=True) as progress:
        progress.update(2_000)
        progress.set_postfix({"mirror": 2})
        progress.close()
    said = capsys.readouterr().err
    assert said.startswith("a.pt: 2.00kB [")
    assert said.endswith("mirror=2]\n")
    assert said.count("\n") == 1


def test_progress_on_a_terminal_is_a_bar(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    assert list(bar("reading", "file")(range(3), 3)) == [0, 1, 2]
    said = terminal.getvalue()
    assert said.startswith("\rreading:   0%|")
    assert "\rreading: 100%|" in said
    assert said.count("\n") == 1
