"""Record the values that fairseq logs in ``metrics.jsonl``, in full precision."""

from __future__ import annotations

import copy
from collections import OrderedDict
from collections.abc import Callable, Mapping
from typing import Any

from fairseq.logging import progress_bar
from fairseq.logging.meters import MetersDict

from mae_ast.trainer import metrics_log
from mae_ast.trainer.fairseq_patches import weights_and_biases


class LoggedValues(OrderedDict[str, Any]):
    """Values as fairseq shows them, most of them rounded, with the meters that hold them."""

    meters: Mapping[str, Any] = {}


def apply() -> None:
    """Replace fairseq's functions; call it once."""
    # fairseq writes values to the text log, with 6 digits at most. Remove when it has a log in
    # which programs read values.
    MetersDict.get_smoothed_values = _with_meters(MetersDict.get_smoothed_values)
    progress_bar.progress_bar = _recorded(progress_bar.progress_bar)
    weights_and_biases.apply()


def record(kind: str, num_updates: int, values: Mapping[str, Any]) -> None:
    """Record values that do not pass through fairseq's progress bar, such as feature metrics."""
    metrics_log.record(kind, num_updates, values)
    weights_and_biases.log(kind, num_updates, values)


def end() -> None:
    """Close the logs of the training in this process."""
    metrics_log.end()
    weights_and_biases.end()


def _with_meters(get: Callable[[Any], Any]) -> Callable[[Any], Any]:
    def wrapper(self: Any) -> LoggedValues:
        values = LoggedValues(get(self))
        values.meters = self
        return values

    return wrapper


def _recorded(build: Callable[..., Any]) -> Callable[..., Any]:
    def wrapper(*args: Any, epoch: int | None = None, **kwargs: Any) -> Any:
        bar = build(*args, epoch=epoch, **kwargs)
        for name in ("log", "print"):  # within an epoch, and at the end of an epoch
            setattr(bar, name, _recording(getattr(bar, name), epoch))
        return bar

    return wrapper


def _recording(log: Callable[..., None], epoch: int | None) -> Callable[..., None]:
    def wrapper(stats: Any, tag: str | None = None, step: int | None = None) -> None:
        num_updates = int(stats["num_updates"]) if step is None else step
        metrics_log.record(tag or "train_inner", num_updates, _exact(stats), epoch)
        log(stats, tag=tag, step=step)

    return wrapper


def _exact(stats: Mapping[str, Any]) -> dict[str, Any]:
    """Return the values before they were rounded."""
    meters = getattr(stats, "meters", {})
    return {
        name: _unrounded(meters[name]) if hasattr(meters.get(name), "round") else value
        for name, value in stats.items()
    }


def _unrounded(meter: Any) -> Any:
    copied = copy.copy(meter)
    copied.round = None
    return copied.smoothed_value
