"""Windows of a stream, the mean of overlapping windows, merged labels, bounded memory."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from itertools import pairwise

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from mae_ast.core.inference.timeline import (
    Overview,
    Segment,
    Span,
    mean_spans,
    merge_spans,
    stream_windows,
)


def blocks_of(samples: Tensor, size: int) -> Iterator[Tensor]:
    yield from samples.split(size)


@pytest.mark.parametrize("size", [1, 7, 10, 23, 1_000])
@pytest.mark.parametrize(
    ("total", "window", "hop", "starts"),
    [
        (23, 10, 5, [0, 5, 10, 13]),  # the last window ends with the stream
        (25, 10, 5, [0, 5, 10, 15]),
        (30, 10, 10, [0, 10, 20]),
        (31, 10, 10, [0, 10, 20, 21]),
        (10, 10, 3, [0]),
        (11, 10, 3, [0, 1]),
        (29, 10, 4, [0, 4, 8, 12, 16, 19]),
        (4, 10, 5, [0]),
    ],
)
def test_windows_cover_a_stream_in_blocks_of_any_size(size, total, window, hop, starts):
    samples = torch.arange(total, dtype=torch.int16)
    found = list(stream_windows(blocks_of(samples, size), window, hop))
    assert [start for start, _ in found] == starts
    for start, part in found:
        assert part.tolist() == list(range(start, min(start + window, total)))


def test_an_empty_stream_has_no_windows():
    assert list(stream_windows(iter([]), 10, 5)) == []


def test_the_scores_of_a_moment_are_the_mean_of_the_windows_that_cover_it():
    windows = [(0, 10, 0.0), (4, 14, 0.3), (8, 18, 0.6), (11, 21, 0.9)]
    spans = list(mean_spans((a, b, np.array([score, 1 - score])) for a, b, score in windows))
    assert spans[0].start == 0
    assert spans[-1].end == 21
    for span, following in pairwise(spans):
        assert span.end == following.start
    for moment in range(21):
        (span,) = (each for each in spans if each.start <= moment < each.end)
        mean = np.mean([score for a, b, score in windows if a <= moment < b])
        assert span.scores == pytest.approx([mean, 1 - mean])
    assert [(span.start, span.end) for span in mean_spans([(0, 4, np.zeros(1))])] == [(0, 4)]


def spans_of(*rows: tuple[int, list[float]]) -> list[Span]:
    starts = [start for start, _ in rows]
    return [
        Span(start, end, np.array(scores))
        for (start, scores), end in zip(rows, [*starts[1:], 100], strict=True)
    ]


def test_adjacent_spans_of_a_label_are_merged_with_their_mean_over_time():
    spans = spans_of((0, [0.9, 0.1]), (10, [0.6, 0.4]), (40, [0.2, 0.8]), (60, [0.7, 0.3]))
    assert merge_spans(spans, 0.0, 1) == [
        Segment(0, 40, 0, pytest.approx((0.9 * 10 + 0.6 * 30) / 40)),
        Segment(40, 60, 1, pytest.approx(0.8)),
        Segment(60, 100, 0, pytest.approx(0.7)),
    ]


def test_labels_overlap_above_the_threshold():
    spans = spans_of((0, [0.9, 0.5, 0.1]), (10, [0.49, 0.6, 0.1]), (50, [0.1, 0.2, 0.3]))
    assert merge_spans(spans, 0.5, 5) == [
        Segment(0, 10, 0, pytest.approx(0.9)),
        Segment(0, 50, 1, pytest.approx((0.5 * 10 + 0.6 * 40) / 50)),
    ]
    at_most_one = merge_spans(spans, 0.5, 1)
    assert [(each.start, each.end, each.label) for each in at_most_one] == [(0, 10, 0), (10, 50, 1)]
    assert merge_spans(spans, 0.95, 5) == []


@pytest.mark.parametrize("total", [1, 63, 64, 65, 128, 1_000])
@pytest.mark.parametrize("size", [1, 40, 1_000])
def test_an_overview_has_few_bins_of_equal_duration(total, size):
    vectors = torch.randn(total, 3)
    overview = Overview(64, 3)
    for part in vectors.split(size):
        overview.add(part)
    found = overview.means()
    assert len(found) <= 64
    assert overview.per_bin == max(1, 2 ** int(np.ceil(np.log2(total / 64))))
    for mean, own in zip(found, vectors.split(overview.per_bin), strict=True):
        assert_close(mean, own.mean(0), rtol=0, atol=1e-5)


SIX_HOURS = """
import numpy as np, torch
from mae_ast.bench.machine import peak_memory
from mae_ast.core.inference.timeline import mean_spans, merge_spans, stream_windows

def blocks():
    for number in range(330):
        yield torch.full((2**20,), number % 2, dtype=torch.int16)

def scored(windows):
    for start, samples in windows:
        yield start, start + len(samples), np.eye(2)[int(samples[-1])]

next(stream_windows(blocks(), 960_000, 480_000))
before = peak_memory()
segments = merge_spans(mean_spans(scored(stream_windows(blocks(), 960_000, 480_000))), 0.0, 1)
assert len(segments) > 100, len(segments)
assert segments[-1].end == 330 * 2**20, segments[-1]
print(1024 * (peak_memory() - before))
"""


def test_a_long_stream_needs_the_memory_of_a_few_windows():
    """All samples of six hours take 692 MB."""
    done = subprocess.run(
        [sys.executable, "-c", SIX_HOURS], capture_output=True, text=True, timeout=300, check=False
    )
    assert done.returncode == 0, done.stderr
    assert float(done.stdout) < 100  # MB
