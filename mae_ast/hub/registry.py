"""The released models: URLs and published scores."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

MIRRORS = (
    "https://saltlab.cs.utexas.edu/downloads/model_checkpoints/mae_ast/",
    "https://www.cs.utexas.edu/~harwath/model_checkpoints/mae_ast/",
)

# Metric of each task, in percent.
TASKS = MappingProxyType(
    {
        "AS-20K": "mAP",  # AudioSet, balanced
        "ESC-50": "accuracy",
        "KS2": "accuracy",  # Speech Commands 2, 35 words
        "KS1": "accuracy",  # SUPERB keyword spotting
        "SID": "accuracy",  # SUPERB speaker identification
        "ER": "accuracy",  # SUPERB emotion recognition
    }
)


@dataclass(frozen=True)
class ReleasedModel:
    """A checkpoint that can be downloaded.

    Args:
        name: name of the model, as :func:`mae_ast.load` takes it.
        urls: URLs of the file, tried in this order.
        sha256: SHA-256 of the file, if published.
        description: short description.
        scores: scores after fine-tuning on ``TASKS``, in percent; tasks may be missing.
    """

    name: str
    urls: tuple[str, ...]
    sha256: str | None
    description: str
    scores: Mapping[str, float]

    @property
    def file_name(self) -> str:
        """File name in the cache."""
        return self.urls[0].rpartition("/")[2]


def _released(name: str, file: str, description: str, *scores: float | None) -> ReleasedModel:
    known = {task: score for task, score in zip(TASKS, scores, strict=True) if score is not None}
    urls = tuple(mirror + file for mirror in MIRRORS)
    return ReleasedModel(name, urls, None, description, MappingProxyType(known))


# Scores of the 12-layer models as published (arXiv:2203.16691).
RELEASED = {
    model.name: model
    for model in (
        _released(
            "mae_ast_patch",
            "chunk_patch_75_12LayerEncoder.pt",
            "12 + 2 layers, patches of 16 x 16, chunk masks, 75 % masked",
            *(30.6, 90.0, 97.9, 95.8, None, 59.8),
        ),
        _released(
            "mae_ast_frame",
            "random_frame_75_12LayerEncoder.pt",
            "12 + 2 layers, frames of 128 x 2, random masks, 75 % masked",
            *(23.0, 88.9, 98.0, 97.3, 63.3, 62.1),
        ),
    )
}


def find(name: str) -> ReleasedModel:
    """Return a released model by its name.

    Raises:
        ValueError: there is no model of this name; the message lists them.
    """
    if name not in RELEASED:
        raise ValueError(
            f"{name}: not a released model; the released models are {', '.join(RELEASED)}"
        )
    return RELEASED[name]
