"""Label recordings over time with a fine-tuned classifier, and write the segments as a table."""

from __future__ import annotations

import csv
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import TextIO

import numpy as np
import torch
from torch import Tensor

from mae_ast.core.frontend.fbank import (
    FRAME_LENGTH,
    FRAME_SHIFT,
    NUM_MEL_BINS,
    fbank,
    num_frames,
)
from mae_ast.core.inference.timeline import (
    Overview,
    Segment,
    mean_spans,
    merge_spans,
    stream_windows,
)
from mae_ast.core.inference.whole_clips import BATCH_SAMPLES
from mae_ast.core.io.atomic import atomic_write
from mae_ast.core.io.audio import SAMPLE_RATE, probe_audio, stream_audio
from mae_ast.core.io.read_ahead import Progress, one_ahead
from mae_ast.evaluate.read_clips import check_length
from mae_ast.finetune.checkpoint import FineTuned

MULTI_LABEL_THRESHOLD = 0.5
MAX_BINS = 2048  # time bins of the spectrogram in a plot
RAVEN_COLUMNS = (
    *("Selection", "View", "Channel", "Begin Time (s)", "End Time (s)"),
    *("Low Freq (Hz)", "High Freq (Hz)", "Label", "Score"),
)


@dataclass(frozen=True)
class Windows:
    """Windows in which recordings are scored.

    Args:
        window_s: length of a window in seconds.
        hop_s: seconds between the starts of successive windows.
        threshold: minimum score of a label; ``None``: 0.5 for a multi-label classifier, else 0.
        top: maximum number of labels at a time; a classifier with one label per clip gives one.

    Raises:
        ValueError: a value is out of range.
    """

    window_s: float
    hop_s: float
    threshold: float | None = None
    top: int = 5

    def __post_init__(self) -> None:
        if not 0 < self.window_s < float("inf"):
            raise ValueError(f"--window {self.window_s:g}; a positive number of seconds is needed")
        if not 0 < self.hop_s <= self.window_s or self.hop < 1:
            raise ValueError(
                f"--hop {self.hop_s:g}; must be positive and at most --window {self.window_s:g}, "
                "so that windows leave no gaps"
            )
        if self.threshold is not None and not 0 <= self.threshold <= 1:
            raise ValueError(f"--threshold {self.threshold:g}; scores are from 0 to 1")

    @property
    def window(self) -> int:
        """Samples of a window at 16 kHz."""
        return round(self.window_s * SAMPLE_RATE)

    @property
    def hop(self) -> int:
        """Samples between the starts of successive windows at 16 kHz."""
        return round(self.hop_s * SAMPLE_RATE)


@dataclass(frozen=True)
class Timeline:
    """Labels of a recording over time.

    Args:
        segments: segments of adjacent windows with the same label, by start.
        duration_s: length of the recording in seconds.
        log_mel: (T', 128) float32, spectrogram averaged over time bins; ``None`` if not wanted.
        bin_s: duration of a time bin in seconds.
    """

    segments: list[Segment]
    duration_s: float
    log_mel: np.ndarray | None
    bin_s: float


def label_over_time(
    classifier: FineTuned,
    path: Path,
    windows: Windows,
    with_spectrogram: bool = False,
    progress: Progress | None = None,
) -> Timeline:
    """Score windows of a recording of any length, in constant memory, and merge their labels.

    The next windows are decoded while others are scored.

    Args:
        classifier: classifier on any device.
        path: audio file.
        windows: length, hop and threshold.
        with_spectrogram: also compute a spectrogram for a plot.
        progress: wrapper of the iteration over windows, called with it and their number.

    Raises:
        FileNotFoundError: the file does not exist.
        AudioError: the file cannot be decoded, or is shorter than one patch.
        ValueError: a window is shorter than one patch, or a score is not finite.
    """
    min_samples = classifier.model.encoder.patch_shape.min_samples
    if windows.window < min_samples:
        raise ValueError(
            f"--window {windows.window_s:g}; must be at least one patch of the model, "
            f"{min_samples / SAMPLE_RATE:g} s"
        )
    multi_label = classifier.description.multi_label
    threshold = windows.threshold
    if threshold is None:
        threshold = MULTI_LABEL_THRESHOLD if multi_label else 0.0
    num_windows = 0
    if progress is not None:
        samples = probe_audio(path).seconds * SAMPLE_RATE
        num_windows = 1 + max(0, -int(-(samples - windows.window) // windows.hop))

    def use(blocks: Iterator[Tensor]) -> Timeline:
        stream = _Stream(blocks, with_spectrogram)
        batches = _in_batches(stream_windows(stream, windows.window, windows.hop))
        with closing(one_ahead(batches)) as ahead:
            scored = _scored(classifier, path, min_samples, ahead)
            shown = scored if progress is None else progress(scored, num_windows)
            segments = merge_spans(mean_spans(shown), threshold, windows.top if multi_label else 1)
        return Timeline(
            segments, stream.num_samples / SAMPLE_RATE, stream.log_mel(), stream.bin_s()
        )

    return stream_audio(path, use)


def _in_batches(
    windows: Iterable[tuple[int, Tensor]],
) -> Generator[list[tuple[int, Tensor]], None, None]:
    """Group windows of equal length into batches of at most ``BATCH_SAMPLES``."""
    batch: list[tuple[int, Tensor]] = []
    for window in windows:
        if batch and (len(batch) + 1) * len(batch[0][1]) > BATCH_SAMPLES:
            yield batch
            batch = []
        batch.append(window)
    if batch:
        yield batch


def _scored(
    classifier: FineTuned,
    path: Path,
    min_samples: int,
    batches: Iterable[list[tuple[int, Tensor]]],
) -> Iterator[tuple[int, int, np.ndarray]]:
    """Yield start, end and scores (C,) of each window."""
    for batch in batches:
        check_length(batch[0][1], min_samples, path)
        scores = classifier.scores(torch.stack([samples for _, samples in batch])).numpy()
        if not np.isfinite(scores).all():
            raise ValueError("the classifier's scores are not finite; its training has diverged")
        for (start, samples), found in zip(batch, scores, strict=True):
            yield start, start + len(samples), found


class _Stream:
    """Iterable over blocks of samples, which counts them and computes a spectrogram of all."""

    def __init__(self, blocks: Iterator[Tensor], with_spectrogram: bool) -> None:
        self.num_samples = 0
        self._blocks = blocks
        self._overview = Overview(MAX_BINS, NUM_MEL_BINS) if with_spectrogram else None

    def __iter__(self) -> Iterator[Tensor]:
        rest = torch.empty(0, dtype=torch.int16)
        for block in self._blocks:
            self.num_samples += len(block)
            if self._overview is not None:
                rest = torch.cat((rest, block))
                if len(rest) >= FRAME_LENGTH:
                    self._overview.add(fbank(rest[None])[0])
                    rest = rest[num_frames(len(rest)) * FRAME_SHIFT :].clone()
            yield block

    def log_mel(self) -> np.ndarray | None:
        return None if self._overview is None else self._overview.means().numpy()

    def bin_s(self) -> float:
        per_bin = 0 if self._overview is None else self._overview.per_bin
        return per_bin * FRAME_SHIFT / SAMPLE_RATE


def write_csv(file: TextIO, segments: Iterable[Segment], names: Sequence[str]) -> None:
    """Write a CSV table with the columns start, end (seconds), label and score."""
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow(("start", "end", "label", "score"))
    for each in segments:
        writer.writerow((*_times(each), names[each.label], f"{each.score:.4f}"))


def write_audacity(file: TextIO, segments: Iterable[Segment], names: Sequence[str]) -> None:
    """Write a label track of Audacity: start, end and label, separated by tabs."""
    for each in segments:
        file.write("\t".join((*_times(each), _in_one_field(names[each.label]))) + "\n")


def write_raven(file: TextIO, segments: Iterable[Segment], names: Sequence[str]) -> None:
    """Write a selection table of Raven, over all frequencies that the model hears."""
    file.write("\t".join(RAVEN_COLUMNS) + "\n")
    for number, each in enumerate(segments, 1):
        band = ("0.0", f"{SAMPLE_RATE / 2:.1f}")
        label = _in_one_field(names[each.label])
        row = (str(number), "Spectrogram 1", "1", *_times(each), *band, label, f"{each.score:.4f}")
        file.write("\t".join(row) + "\n")


# Format: suffix of its files, and the function that writes it.
FORMATS: dict[str, tuple[str, Callable[[TextIO, Iterable[Segment], Sequence[str]], None]]] = {
    "csv": (".csv", write_csv),
    "audacity": (".txt", write_audacity),
    "raven": (".selections.txt", write_raven),
}


def write_table(path: Path, kind: str, segments: Iterable[Segment], names: Sequence[str]) -> None:
    """Write segments as a table.

    Args:
        path: file to write.
        kind: a key of ``FORMATS``.
        segments: the segments.
        names: names of the classes.

    Raises:
        OSError: the file could not be written.
    """
    with atomic_write(path) as part, part.open("w", encoding="utf-8", newline="") as file:
        FORMATS[kind][1](file, segments, names)


def _times(segment: Segment) -> tuple[str, str]:
    return f"{segment.start / SAMPLE_RATE:.3f}", f"{segment.end / SAMPLE_RATE:.3f}"


def _in_one_field(name: str) -> str:
    """Replace tabs and line breaks, which separate fields and rows."""
    return " ".join(name.split())
