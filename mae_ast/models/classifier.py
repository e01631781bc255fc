"""fairseq model ``mae_ast_classifier``: a pretrained encoder and a classification head."""

# No postponed annotations: fairseq reads the field types at run time.
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Optional

from fairseq.dataclass import FairseqDataclass
from fairseq.models import register_model
from omegaconf import II
from torch import Tensor
from typing_extensions import Self

from mae_ast.core.checkpoints.timm import Weights
from mae_ast.core.inference.whole_clips import clip_logits
from mae_ast.core.models.classifier import Classifier, HeadConfig
from mae_ast.core.models.config import (
    EncoderConfig,
    PrecisionConfig,
    RegularisationConfig,
)
from mae_ast.core.models.registry import build_encoder
from mae_ast.core.settings import check_fields, other_default, setting
from mae_ast.finetune.initialize import start_from_checkpoint
from mae_ast.models.compute import ComputeConfig, set_compute
from mae_ast.models.weights import CheckedWeights
from mae_ast.optim.adamw import MARKED_OPTIMIZER


@dataclass
class ClassifierConfig(RegularisationConfig, FairseqDataclass):  # type: ignore[misc]
    """Settings under ``model.*`` of all classifiers: initial weights and how to train them."""

    checkpoint: Optional[str] = setting(  # noqa: UP045
        None,
        help="pretrained model to start from: a checkpoint file, a run's folder, a released "
        "model's name, a URL or a Hugging Face id; model ast also takes timm:NAME, a file with a "
        "timm ViT, or null for random weights",
    )
    architecture_of: Optional[str] = setting(  # noqa: UP045
        None,
        help="pretrained model (named as for model.checkpoint) whose architecture and input "
        "statistics to use with random weights, as a baseline; set it instead of model.checkpoint",
    )
    freeze_encoder: bool = setting(
        False, help="train the head only; false: train the encoder's weights as well"
    )
    head_dropout: float = setting(
        0.0, help="dropout probability before the head's last linear layer", probability=True
    )
    layer_decay: float = setting(
        1.0,
        help="layer-wise learning rate decay: ratio of each layer's rate to that of the layer "
        "above; 1: the same rate for all layers; needs optimizer mae_ast_adamw",
    )
    head_lr_scale: float = setting(
        1.0,
        help="ratio of the head's learning rate to optimization.lr; values other than 1 need "
        "optimizer mae_ast_adamw",
        positive=True,
    )
    input_mean: Optional[float] = setting(  # noqa: UP045
        None,
        help="mean of the log-mel input, to normalise it; null: the checkpoint's value "
        "(AudioSet's if it has none)",
    )
    input_std: Optional[float] = setting(  # noqa: UP045
        None,
        help="std of the log-mel input, to normalise it; null: the checkpoint's value (AudioSet's "
        "if it has none)",
        positive=True,
    )
    precision: str = other_default(PrecisionConfig, "precision", "auto")
    optimizer: Optional[str] = II("optimizer._name")  # noqa: UP045


@dataclass
class MaeAstClassifierConfig(ComputeConfig, ClassifierConfig):
    """Settings under ``model.*``; the encoder's architecture is read from the checkpoint."""

    head: str = other_default(HeadConfig, "kind", "linear")
    pool: str = other_default(HeadConfig, "pool", "time_steps")
    overlap: bool = setting(
        False,
        help="use overlapping patches (stride 10 for patches of 16, 1 for patches of 2, as in "
        "SSAST's fine-tuning); false: the checkpoint's stride",
    )
    input_frames: Optional[int] = setting(  # noqa: UP045
        None,
        help="cut or zero-pad training clips to this many frames of 10 ms, and fit learned "
        "positions to it; validation splits longer clips into windows of this length; null: the "
        "checkpoint's value",
        minimum=1,
    )


class FairseqClassifier(Classifier, CheckedWeights):
    """The core's classifier as a fairseq model."""

    @classmethod
    def build(
        cls,
        cfg: ClassifierConfig,
        head: HeadConfig,
        start: Callable[[Any], tuple[EncoderConfig, Weights]],
    ) -> Self:
        """Build a classifier once, with its final configuration.

        Args:
            cfg: settings ``model.*``.
            head: configuration of the head.
            start: returns the encoder's configuration and initial weights, given ``cfg``.
        """
        config, weights = start(cfg)
        encoder = build_encoder(config)
        encoder.load_state_dict({**encoder.state_dict(), **weights})
        model = cls(encoder, head, cfg.freeze_encoder)
        set_compute(model, cfg)
        model.scale_learning_rates(cfg.layer_decay, cfg.head_lr_scale)
        return model

    def clip_logits(
        self, source: Tensor, lengths: Tensor | None, uses_sigmoid: bool, trained_samples: int
    ) -> Tensor:
        """Return the logits (B, C) of whole clips.

        A method, so that it can be called through fairseq's model wrappers.

        Args:
            source: (B, L) int16 or float waveforms at 16 kHz.
            lengths: (B,) int64, samples of each clip; ``None``: all L.
            uses_sigmoid: a long clip's probabilities, the mean over its windows, are sigmoids;
                else a softmax over the classes.
            trained_samples: longest clips seen in training, in samples; 0: unknown.
        """
        return clip_logits(self, source, lengths, uses_sigmoid, trained_samples)


@register_model("mae_ast_classifier", dataclass=MaeAstClassifierConfig)
class FairseqCheckpointClassifier(FairseqClassifier):
    """Classifier on the encoder of a checkpoint."""

    @classmethod
    def build_model(cls, cfg: MaeAstClassifierConfig, task: Any) -> "FairseqClassifier":
        """Build the model from ``model.*`` and the task's number of classes."""
        check_settings(cfg, MaeAstClassifierConfig)
        if not cfg.checkpoint and not cfg.architecture_of:
            raise ValueError(
                "model.checkpoint and model.architecture_of are both null: set model.checkpoint "
                "to fine-tune a model, or model.architecture_of to train its architecture from "
                "random weights"
            )
        head = HeadConfig(len(task.labels), cfg.head, cfg.pool, cfg.head_dropout)
        return cls.build(cfg, head, start_from_checkpoint)


def check_settings(cfg: ClassifierConfig, config: type[ClassifierConfig]) -> None:
    """Check the settings that all classifiers share.

    Raises:
        ValueError: a setting is invalid; the message has its key, its value and valid ones.
    """
    check_fields(cfg, config, "model.")
    if cfg.checkpoint and cfg.architecture_of:
        raise ValueError(
            f"model.checkpoint={cfg.checkpoint} and model.architecture_of={cfg.architecture_of}: "
            "set only one, model.checkpoint to start from its weights or model.architecture_of "
            "to start from random ones"
        )
    scales = cfg.layer_decay, cfg.head_lr_scale
    if scales != (1, 1) and cfg.optimizer != MARKED_OPTIMIZER:
        raise ValueError(
            f"model.layer_decay={cfg.layer_decay} and model.head_lr_scale={cfg.head_lr_scale} need "
            f"optimizer._name={MARKED_OPTIMIZER}"
        )
