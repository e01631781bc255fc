"""Description of a classifier, as fine-tuned checkpoints hold it."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from mae_ast.core.io.labels import Labels
from mae_ast.core.models.classifier import HeadConfig


@dataclass(frozen=True)
class ClassifierSpec:
    """All that a classifier is made of, but its weights.

    Args:
        system: a key of ``SYSTEMS``.
        encoder: fields of that system's configuration.
        head: what stands on the encoder.
        labels: what the outputs are called.
        independent: scores are sigmoids, each class by itself; else a softmax over all.
        multi_label: a clip may have several classes.
        clip_samples: longest clips seen in training, at 16 kHz.
    """

    system: str
    encoder: Mapping[str, Any]
    head: HeadConfig
    labels: Labels
    independent: bool
    multi_label: bool
    clip_samples: int

    def to_dict(self) -> dict[str, Any]:
        """Plain containers, for a checkpoint."""
        return {
            "system": self.system,
            "encoder": dict(self.encoder),
            "head": dataclasses.asdict(self.head),
            "mids": list(self.labels.mids),
            "names": list(self.labels.names),
            "independent": self.independent,
            "multi_label": self.multi_label,
            "clip_samples": self.clip_samples,
        }

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> ClassifierSpec:
        """What :meth:`to_dict` gave.

        Raises:
            KeyError, TypeError, ValueError: something is missing or wrong.
        """
        return cls(
            str(values["system"]),
            dict(values["encoder"]),
            HeadConfig(**values["head"]),
            Labels(tuple(values["mids"]), tuple(values["names"])),
            bool(values["independent"]),
            bool(values["multi_label"]),
            int(values["clip_samples"]),
        )
