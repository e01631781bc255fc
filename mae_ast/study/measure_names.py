"""Names of the measures of a study, and how they are printed."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Measure:
    """Heading of a measure and format of its values.

    Args:
        title: heading of its column.
        digits: digits after the decimal point.
        factor: printed value per unit of the measure.
        unit: unit of the printed value.
        lower_is_better: a lower value is better.
        is_baseline: it is measured for the first seed only.
    """

    title: str
    digits: int = 1
    factor: float = 1.0
    unit: str = ""
    lower_is_better: bool = False
    is_baseline: bool = False


# Those of each probe have its name in front: "words_linear".
MEASURES = {
    "update_s": Measure("update", 0, 1000, "ms", lower_is_better=True),
    "memory_gib": Measure("memory of training", 2, 1, "GiB", lower_is_better=True),
    "peak_gib": Measure("peak memory", 2, 1, "GiB", lower_is_better=True),
    "relative_mse": Measure("relative MSE", 3, lower_is_better=True),
    "info_nce_accuracy": Measure("InfoNCE accuracy", 1, 100, "%"),
    "rank_me": Measure("RankMe"),
    "updates_to": Measure("updates to the target", 0, lower_is_better=True),
    "linear": Measure("linear probe", 1, 100, "%"),
    "knn": Measure("k-NN", 1, 100, "%"),
    "layer": Measure("layer", 1),
    "random_linear": Measure("linear probe, random weights", 1, 100, "%", is_baseline=True),
    "random_knn": Measure("k-NN, random weights", 1, 100, "%", is_baseline=True),
    "log_mel_linear": Measure("linear probe, mean log-mel", 1, 100, "%", is_baseline=True),
    "log_mel_knn": Measure("k-NN, mean log-mel", 1, 100, "%", is_baseline=True),
}


def measure_of(name: str) -> Measure:
    """Return the description of a measure.

    Raises:
        ValueError: there is no such measure.
    """
    return MEASURES[_split(name)[1]]


def kind_of(name: str) -> str:
    """Return the key of ``MEASURES`` of a measure: "linear" of "words_linear".

    Raises:
        ValueError: there is no such measure.
    """
    return _split(name)[1]


def heading(name: str) -> str:
    """Return the heading of a measure: the name of its probe, its title, and its unit."""
    probe, _ = _split(name)
    measure = measure_of(name)
    title = f"{probe}, {measure.title}" if probe else measure.title
    return f"{title} ({measure.unit})" if measure.unit else title


def _split(name: str) -> tuple[str, str]:
    """Split a measure's name into the name of its probe, or "", and a key of ``MEASURES``."""
    if name in MEASURES:
        return "", name
    for key in reversed(MEASURES):  # "random_linear" before "linear"
        if name.endswith(f"_{key}"):
            return name.removesuffix(f"_{key}"), key
    raise ValueError(f"measure {name!r}: no such measure; they are {', '.join(MEASURES)}")
