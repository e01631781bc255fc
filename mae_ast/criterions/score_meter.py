"""fairseq meter that collects the scores of a whole validation, from all workers.

Average precision and AUC cannot be summed over batches: they are computed over all clips at once.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from fairseq.logging import metrics
from fairseq.logging.meters import Meter
from torch import Tensor

from mae_ast.evaluate.metrics import Summary, accuracy, summarise

_KEY = "_scores"  # fairseq does not print meters whose name starts with an underscore
_NAMES = {"mAP": "mean_average_precision", "mAUC": "mean_auc", "d_prime": "d_prime"}


class ScoreMeter(Meter):  # type: ignore[misc]
    """Scores and targets of the clips seen so far."""

    def __init__(self) -> None:
        self.reset()

    def reset(self) -> None:
        """Remove all scores."""
        self._parts: list[tuple[Tensor, Tensor, Tensor]] = []
        self._all: tuple[np.ndarray, np.ndarray] | None = None
        self._summary: Summary | None = None

    def update(self, ids: Tensor, scores: Tensor, targets: Tensor) -> None:
        """Add a batch.

        Args:
            ids: (B,) rows of the clips in the manifest.
            scores: (B, C) from 0 to 1.
            targets: (B, C).
        """
        self._parts.append((ids, scores, targets))
        self._all = self._summary = None

    def gather(self) -> tuple[np.ndarray, np.ndarray]:
        """Gather scores and targets (R, C) from all workers, each clip once.

        All workers must call it.
        """
        if self._all is None:
            parts = [torch.cat(column).cpu().numpy() for column in zip(*self._parts, strict=True)]
            if torch.distributed.is_initialized():
                gathered: list[Any] = [None] * torch.distributed.get_world_size()
                torch.distributed.all_gather_object(gathered, parts)
                parts = [np.concatenate(column) for column in zip(*gathered, strict=True)]
            # Sorted by row; a row that several workers evaluated is kept once.
            _, first = np.unique(parts[0], return_index=True)
            self._all = parts[1][first], parts[2][first]
        return self._all

    def accuracy(self) -> float:
        """Return the accuracy of single-label classification."""
        return accuracy(*self.gather())

    def summary(self) -> Summary:
        """Return the metrics of multi-label classification."""
        if self._summary is None:
            self._summary = summarise(*self.gather(), multi_label=True)
        return self._summary

    @property
    def smoothed_value(self) -> float:
        """Placeholder that fairseq requires; only the values derived from this meter are shown."""
        return 0.0


def metric_names(multi_label: bool) -> tuple[str, ...]:
    """Return the names of the metrics that :func:`log_scores` logs."""
    return tuple(_NAMES) if multi_label else ("accuracy",)


def log_scores(ids: Tensor, scores: Tensor, targets: Tensor, multi_label: bool) -> None:
    """Log a validation batch in the outermost aggregator only, which covers this validation.

    Two other aggregators of the trainer must not get the meter. One lasts as long as the run and
    is saved in checkpoints, from which fairseq cannot restore a meter that it does not know. The
    other covers this batch alone: nobody reads its metrics, and computing them would cost an
    exchange among all workers.
    """
    aggregator = metrics.get_active_aggregators()[0]
    if _KEY not in aggregator:
        aggregator.add_meter(_KEY, ScoreMeter(), 0)
        if not multi_label:
            _derive(aggregator, "accuracy", lambda meters: meters[_KEY].accuracy())
        for name, field in _NAMES.items() if multi_label else ():
            _derive(
                aggregator,
                name,
                lambda meters, field=field: getattr(meters[_KEY].summary(), field),
            )
    aggregator[_KEY].update(ids, scores, targets)


def _derive(aggregator: Any, name: str, value: Any) -> None:
    aggregator.add_meter(name, type(aggregator)._DerivedMeter(value), 20)
