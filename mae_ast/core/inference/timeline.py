"""Label a stream of samples over time: blocks -> windows (W, L) -> scores (W, C) -> segments.

Windows start every ``hop``; the last one ends with the recording. The scores of a moment are the
mean of the windows that cover it, so that they change where a window begins or ends. Only the
samples of the next windows are held, so a stream may have any length.

    W windows, L samples of a window, C classes; times are in samples at 16 kHz
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor


@dataclass(frozen=True)
class Span:
    """Scores (C,) from ``start`` to ``end``, in samples."""

    start: int
    end: int
    scores: np.ndarray


@dataclass(frozen=True)
class Segment:
    """A label from ``start`` to ``end``, in samples.

    Args:
        start, end: first sample, and the one after the last.
        label: index of the class.
        score: mean score over the segment.
    """

    start: int
    end: int
    label: int
    score: float


def stream_windows(blocks: Iterable[Tensor], window: int, hop: int) -> Iterator[tuple[int, Tensor]]:
    """Cut a stream into windows of ``window`` samples that start every ``hop`` samples.

    If the stream does not end with a window, one more is aligned with its end. A stream shorter
    than a window is one window.

    Args:
        blocks: blocks of samples, (L,) int16, of any lengths.
        window, hop: in samples, with 0 < hop <= window.

    Yields:
        First sample and samples of each window.
    """
    pending: list[Tensor] = []
    first, end, start = 0, 0, 0  # of the pending samples, of the stream so far, of the next window
    for block in blocks:
        pending.append(block)
        end += len(block)
        if start + window > end:
            continue
        held = torch.cat(pending)
        while start + window <= end:
            yield start, held[start - first : start - first + window]
            start += hop
        keep_from = min(start, end - window)  # the last window may have to end with the stream
        pending, first = [held[keep_from - first :].clone()], keep_from
    last = max(0, end - window)
    if end and (start == 0 or start - hop < last):
        yield last, torch.cat(pending)[last - first :]


def mean_spans(windows: Iterable[tuple[int, int, np.ndarray]]) -> Iterator[Span]:
    """Average the scores of overlapping windows.

    Args:
        windows: start, end and scores (C,) of each window, in order; together they leave no gaps.

    Yields:
        Spans without overlaps or gaps, each with the mean over the windows that cover it.
    """
    active: deque[tuple[int, int, np.ndarray]] = deque()
    at = 0
    for window in windows:
        while active and at < window[0]:
            yield (span := _next_span(active, at, window[0]))
            at = span.end
        active.append(window)
    while active:
        yield (span := _next_span(active, at, active[-1][1]))
        at = span.end


def _next_span(active: deque[tuple[int, int, np.ndarray]], at: int, until: int) -> Span:
    """Return the span from ``at`` to ``until``, or to the end of the first active window."""
    end = min(until, active[0][1])
    span = Span(at, end, np.mean([scores for _, _, scores in active], axis=0))
    while active and active[0][1] <= end:
        active.popleft()
    return span


def merge_spans(spans: Iterable[Span], threshold: float, top: int) -> list[Segment]:
    """Merge adjacent spans of the same label.

    Args:
        spans: without gaps, in order.
        threshold: minimum score of a label in a span.
        top: maximum number of labels in a span; those with the highest scores are kept.

    Returns:
        Segments by start, then by label. The score of a segment is the mean over its duration.
    """
    segments: list[Segment] = []
    open_at: dict[int, tuple[int, float]] = {}  # label: start, and sum of its scores over time
    end = 0

    def close(label: int) -> None:
        start, total = open_at.pop(label)
        segments.append(Segment(start, end, label, total / (end - start)))

    for span in spans:
        best = np.argsort(-span.scores, kind="stable")[:top]
        chosen = [int(label) for label in best if span.scores[label] >= threshold]
        for label in open_at.keys() - set(chosen):
            close(label)
        for label in chosen:
            start, total = open_at.get(label, (span.start, 0.0))
            open_at[label] = start, total + float(span.scores[label]) * (span.end - span.start)
        end = span.end
    for label in list(open_at):
        close(label)
    return sorted(segments, key=lambda each: (each.start, each.label))


class Overview:
    """Mean of a stream of vectors over at most ``max_bins`` bins of equal duration.

    When all bins are filled, pairs of them are merged.

    Args:
        max_bins: maximum number of bins, even.
        width: F, length of a vector.
    """

    def __init__(self, max_bins: int, width: int) -> None:
        self.per_bin = 1  # vectors per bin
        self._count = 0
        self._sums = torch.zeros(max_bins, width)

    def add(self, vectors: Tensor) -> None:
        """Add the next vectors, (T, F)."""
        max_bins, width = self._sums.shape
        while self._count + len(vectors) > max_bins * self.per_bin:
            merged = self._sums.view(-1, 2, width).sum(1)
            self._sums = torch.cat((merged, torch.zeros_like(merged)))
            self.per_bin *= 2
        bins = torch.arange(self._count, self._count + len(vectors)) // self.per_bin
        self._sums.index_add_(0, bins, vectors)
        self._count += len(vectors)

    def means(self) -> Tensor:
        """Return the mean of each bin, (bins, F); the last bin may hold fewer vectors."""
        num_bins = -(-self._count // self.per_bin)
        counts = torch.full((num_bins, 1), float(self.per_bin))
        if num_bins:
            counts[-1] = self._count - (num_bins - 1) * self.per_bin
        return self._sums[:num_bins] / counts
