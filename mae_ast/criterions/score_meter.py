"""A meter that keeps all scores of a validation, of all workers, until figures are asked for.

Average precision and AUC are no sums over batches: they want all clips at once.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from fairseq.logging import metrics
from fairseq.logging.meters import Meter
from torch import Tensor

from mae_ast.evaluate.metrics import Summary, accuracy, summarise

_KEY = "_scores"  # fairseq shows no meter whose name begins so
_NAMES = {"mAP": "mean_average_precision", "mAUC": "mean_auc", "d_prime": "d_prime"}


class ScoreMeter(Meter):  # type: ignore[misc]
    """Scores and targets of the clips seen so far."""

    def __init__(self) -> None:
        self.reset()

    def reset(self) -> None:
        """Forget all."""
        self._parts: list[tuple[Tensor, Tensor, Tensor]] = []
        self._all: tuple[np.ndarray, np.ndarray] | None = None
        self._summary: Summary | None = None

    def update(self, ids: Tensor, scores: Tensor, targets: Tensor) -> None:
        """Add a batch: (B,) rows of the manifest, (B, C) and (B, C)."""
        self._parts.append((ids, scores, targets))
        self._all = self._summary = None

    def everything(self) -> tuple[np.ndarray, np.ndarray]:
        """Scores and targets (R, C) of all workers, each clip once; all workers must call it."""
        if self._all is None:
            parts = [torch.cat(column).cpu().numpy() for column in zip(*self._parts, strict=True)]
            if torch.distributed.is_initialized():
                of_all: list[Any] = [None] * torch.distributed.get_world_size()
                torch.distributed.all_gather_object(of_all, parts)
                parts = [np.concatenate(column) for column in zip(*of_all, strict=True)]
            # In the order of rows, each row once.
            _, first = np.unique(parts[0], return_index=True)
            self._all = parts[1][first], parts[2][first]
        return self._all

    def accuracy(self) -> float:
        """Of clips with one label."""
        return accuracy(*self.everything())

    def summary(self) -> Summary:
        """Of clips with several."""
        if self._summary is None:
            self._summary = summarise(*self.everything(), multi_label=True)
        return self._summary

    @property
    def smoothed_value(self) -> float:
        """Of fairseq; what is shown are the values derived from this meter."""
        return 0.0


def names_of(multi_label: bool) -> tuple[str, ...]:
    """What :func:`log_scores` logs."""
    return tuple(_NAMES) if multi_label else ("accuracy",)


def log_scores(ids: Tensor, scores: Tensor, targets: Tensor, multi_label: bool) -> None:
    """Log a validation batch, in the outermost aggregator alone, which is this validation's own.

    Of the trainer's others, one lasts as long as the run and is saved with it, where a meter that
    fairseq does not know cannot be read back; one is for this batch alone, whose figures nobody
    looks at, and would be worked out with an exchange among all workers.
    """
    aggregator = metrics.get_active_aggregators()[0]
    if _KEY not in aggregator:
        aggregator.add_meter(_KEY, ScoreMeter(), 0)
        if not multi_label:
            _derive(aggregator, "accuracy", lambda meters: round(meters[_KEY].accuracy(), 5))
        for name, field in _NAMES.items() if multi_label else ():
            _derive(
                aggregator,
                name,
                lambda meters, field=field: round(getattr(meters[_KEY].summary(), field), 5),
            )
    aggregator[_KEY].update(ids, scores, targets)


def _derive(aggregator: Any, name: str, value: Any) -> None:
    aggregator.add_meter(name, type(aggregator)._DerivedMeter(value), 20)
