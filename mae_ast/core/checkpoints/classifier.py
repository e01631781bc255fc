"""Specification of a classifier, as stored in fine-tuned checkpoints."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from mae_ast.core.frontend.fbank import num_samples_of_frames
from mae_ast.core.io.labels import Labels
from mae_ast.core.models.classifier import Classifier, HeadConfig
from mae_ast.core.models.config import AstConfig, EncoderConfig
from mae_ast.core.models.registry import build_encoder, parse_config, system_name

# Layers of a classifier's head: the same layers of AST, whose own pooling it then uses.
AST_HEAD = {"head.0.": "head.layer_norm.", "head.2.": "head.linear."}
FINETUNING = "mae_ast_classification"  # key in the task state of fine-tuned files


@dataclass(frozen=True)
class ClassifierSpec:
    """Everything needed to build a classifier, except its weights.

    Args:
        encoder: configuration of the encoder.
        head: configuration of the classification head.
        labels: names of the outputs.
        independent: scores are sigmoids (multi-label); else a softmax over all classes.
        multi_label: a clip may have several classes.
        clip_samples: length of the longest clips seen in training, in samples at 16 kHz.
    """

    encoder: EncoderConfig
    head: HeadConfig
    labels: Labels
    independent: bool
    multi_label: bool
    clip_samples: int

    def build(self) -> Classifier:
        """Build the classifier, with random weights, for inference in float32."""
        config = dataclasses.replace(self.encoder, input_stats="fixed", precision="float32")
        return Classifier(build_encoder(config), self.head)

    def to_dict(self) -> dict[str, Any]:
        """Return plain containers to store in a checkpoint."""
        return {
            "system": system_name(self.encoder),
            "encoder": dataclasses.asdict(self.encoder),
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
            parse_config({**values["encoder"], "system": str(values["system"])}),
            HeadConfig(**values["head"]),
            Labels(tuple(values["mids"]), tuple(values["names"])),
            bool(values["independent"]),
            bool(values["multi_label"]),
            int(values["clip_samples"]),
        )

    @classmethod
    def from_state(cls, state: Mapping[str, Any]) -> ClassifierSpec:
        """Read the specification from the content of a fine-tuned file; see :meth:`from_dict`."""
        return cls.from_dict(state["task_state"][FINETUNING])


def spec_of_ast(
    config: AstConfig, labels: Sequence[str] | None, independent: bool
) -> ClassifierSpec:
    """Return the specification of an AST as a classifier whose head uses AST's own pooling.

    Args:
        config: configuration of the AST.
        labels: class names, if known.
        independent: scores are sigmoids (multi-label); else a softmax over all classes.
    """
    mids = tuple(f"class_{n}" for n in range(config.num_classes))
    frames = config.input_frames or config.position_frames
    return ClassifierSpec(
        config,
        HeadConfig(config.num_classes, pool="encoder", layer_norm_eps=config.head_layer_norm_eps),
        Labels(mids, mids if labels is None else tuple(labels)),
        independent=independent,
        multi_label=independent,
        clip_samples=num_samples_of_frames(frames),
    )


def classifier_weights(weights: Mapping[str, Any]) -> dict[str, Any]:
    """Rename AST's weights to those of a classifier with its head; see :func:`encoder_weights`."""
    found = {}
    for name, value in weights.items():
        ours = next(
            (own for own, theirs in AST_HEAD.items() if name.startswith(theirs)), "encoder."
        )
        found[ours + name.removeprefix(AST_HEAD.get(ours, ""))] = value
    return found


def encoder_weights(weights: Mapping[str, Any], with_head: bool) -> dict[str, Any]:
    """Return the encoder's weights of a classifier, with AST's names for its head if wanted."""
    names = {"encoder.": "", **(AST_HEAD if with_head else {})}
    return {
        ours + name.removeprefix(theirs): value
        for name, value in weights.items()
        for theirs, ours in names.items()
        if name.startswith(theirs)
    }
