"""Specification of a classifier, as stored in fine-tuned checkpoints."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from mae_ast.core.io.labels import Labels
from mae_ast.core.models.classifier import HeadConfig


@dataclass(frozen=True)
class ClassifierSpec:
    """Everything needed to build a classifier, except its weights.

    Args:
        system: a key of ``SYSTEMS``.
        encoder: fields of that system's configuration.
        head: configuration of the classification head.
        labels: names of the outputs.
        independent: scores are sigmoids (multi-label); else a softmax over all classes.
        multi_label: a clip may have several classes.
        clip_samples: length of the longest clips seen in training, in samples at 16 kHz.
    """

    system: str
    encoder: Mapping[str, Any]
    head: HeadConfig
    labels: Labels
    independent: bool
    multi_label: bool
    clip_samples: int

    def to_dict(self) -> dict[str, Any]:
        """Return plain containers to store in a checkpoint."""
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
        """Invert :meth:`to_dict`.

        Raises:
            KeyError, TypeError, ValueError: a field is missing or invalid.
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
