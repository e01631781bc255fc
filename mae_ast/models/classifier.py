"""fairseq model ``mae_ast_classifier``: a pretrained encoder and a classification head."""

# No postponed annotations: fairseq reads the field types at run time.
import dataclasses
from dataclasses import dataclass, field
from typing import Any, Optional, Self

from fairseq.dataclass import FairseqDataclass
from fairseq.models import register_model
from omegaconf import II
from torch import Tensor

from mae_ast.console import user_errors
from mae_ast.core.inference.whole_clips import clip_logits
from mae_ast.core.models.classifier import Classifier, HeadConfig
from mae_ast.core.models.encoder import Encoder, set_dropout
from mae_ast.core.models.registry import system_name
from mae_ast.core.nn.precision import PRECISIONS
from mae_ast.finetune.checkpoint import encoder_of
from mae_ast.finetune.initialize import finetuning_view
from mae_ast.models.compute import ComputeConfig, set_compute
from mae_ast.models.weights import CheckedWeights
from mae_ast.optim.adamw import MARKED_OPTIMIZER


@dataclass
class ClassifierConfig(FairseqDataclass):  # type: ignore[misc]
    """Settings under ``model.*`` of all classifiers: initial weights and how to train them."""

    checkpoint: Optional[str] = field(  # noqa: UP045
        default=None,
        metadata={
            "help": "pretrained model to start from: a checkpoint file, a run's folder, a released "
            "model's name, a URL or a Hugging Face id; model ast also takes timm:NAME, a file "
            "with a timm ViT, or null for random weights"
        },
    )
    architecture_of: Optional[str] = field(  # noqa: UP045
        default=None,
        metadata={
            "help": "pretrained model (named as for model.checkpoint) whose architecture and input "
            "statistics to use with random weights, as a baseline; set it instead of "
            "model.checkpoint"
        },
    )
    freeze_encoder: bool = field(
        default=False,
        metadata={"help": "train the head only; false: train the encoder's weights as well"},
    )
    head_dropout: float = field(
        default=0.0, metadata={"help": "dropout probability before the head's last linear layer"}
    )

    dropout: float = field(
        default=0.0, metadata={"help": "dropout probability in the transformer's layers"}
    )
    attention_dropout: float = field(
        default=0.0, metadata={"help": "dropout probability of attention weights"}
    )
    activation_dropout: float = field(
        default=0.0,
        metadata={"help": "dropout probability after the activation in feed-forward blocks"},
    )
    encoder_layerdrop: float = field(
        default=0.0,
        metadata={"help": "probability of skipping an encoder layer in a training step"},
    )

    layer_decay: float = field(
        default=1.0,
        metadata={
            "help": "layer-wise learning rate decay: ratio of each layer's rate to that of the "
            "layer above; 1: the same rate for all layers; needs optimizer mae_ast_adamw"
        },
    )
    head_lr_scale: float = field(
        default=1.0,
        metadata={
            "help": "ratio of the head's learning rate to optimization.lr; values other than 1 "
            "need optimizer mae_ast_adamw"
        },
    )

    input_mean: Optional[float] = field(  # noqa: UP045
        default=None,
        metadata={
            "help": "mean of the log-mel input, to normalise it; null: the checkpoint's value "
            "(AudioSet's if it has none)"
        },
    )
    input_std: Optional[float] = field(  # noqa: UP045
        default=None,
        metadata={
            "help": "std of the log-mel input, to normalise it; null: the checkpoint's value "
            "(AudioSet's if it has none)"
        },
    )
    precision: str = field(
        default="auto",
        metadata={
            "help": f"dtype of the transformer's computation: {', '.join(PRECISIONS)}; auto: "
            "bfloat16 autocast where the device has matrix units for it, else float32"
        },
    )

    optimizer: Optional[str] = II("optimizer._name")  # noqa: UP045


@dataclass
class MaeAstClassifierConfig(ComputeConfig, ClassifierConfig):
    """Settings under ``model.*``; the encoder's architecture is read from the checkpoint."""

    head: str = field(
        default="linear",
        metadata={
            "help": "classification head: 'linear' (layer norm and linear layer) or 'mlp' (with a "
            "hidden layer as wide as the encoder)"
        },
    )
    pool: str = field(
        default="time_steps",
        metadata={
            "help": "pooling of the encoder's output: mean over 'time_steps' (the tokens of a time "
            "step are concatenated) or over 'tokens'; 'encoder': the encoder's own pooling (the "
            "mean of AST's prefix tokens)"
        },
    )
    overlap: bool = field(
        default=False,
        metadata={
            "help": "use overlapping patches with SSAST and AST (stride 10 for patches of 16, 1 "
            "for patches of 2, as in SSAST's fine-tuning); false: the checkpoint's stride"
        },
    )
    input_frames: Optional[int] = field(  # noqa: UP045
        default=None,
        metadata={
            "help": "for SSAST, AST and Audio-MAE: cut or zero-pad training clips to this many "
            "frames of 10 ms, and cut or interpolate the position grid to match; validation "
            "splits longer clips into windows of this length; null: the checkpoint's value"
        },
    )


class FairseqClassifier(Classifier, CheckedWeights):
    """The core's classifier as a fairseq model, with the description of its encoder.

    Attributes:
        system: name of the encoder's system, a key of ``SYSTEMS``.
        encoder_fields: the encoder's configuration.
    """

    system: str
    encoder_fields: dict[str, Any]

    @classmethod
    def from_encoder(cls, encoder: Encoder, head: HeadConfig, cfg: ClassifierConfig) -> Self:
        """Build a classifier on an encoder, configured for training by ``model.*``."""
        _configure_encoder(encoder, cfg)
        config = encoder.config
        model = cls(encoder, config.encoder_embed_dim, head, cfg.freeze_encoder)
        set_compute(model, cfg)
        model.scale_learning_rates(cfg.layer_decay, cfg.head_lr_scale)
        model.system, model.encoder_fields = system_name(config), dataclasses.asdict(config)
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
        with user_errors():
            check_settings(cfg)
            source = cfg.checkpoint or cfg.architecture_of
            if not source:
                raise ValueError(
                    "model.checkpoint and model.architecture_of are both null: set "
                    "model.checkpoint to fine-tune a model, or model.architecture_of to train its "
                    "architecture from random weights"
                )
            head = HeadConfig(len(task.labels), cfg.head, cfg.pool, cfg.head_dropout)
            encoder = encoder_of(source, random_weights=not cfg.checkpoint)
            encoder = finetuning_view(encoder, cfg.overlap, cfg.input_frames)
            return cls.from_encoder(encoder, head, cfg)


def check_settings(cfg: ClassifierConfig) -> None:
    """Check the settings that all classifiers share.

    Raises:
        ValueError: a setting is invalid; the message has its key, its value and valid ones.
    """
    if cfg.checkpoint and cfg.architecture_of:
        raise ValueError(
            f"model.checkpoint={cfg.checkpoint} and model.architecture_of={cfg.architecture_of}: "
            "set only one, model.checkpoint to start from its weights or model.architecture_of "
            "to start from random ones"
        )
    if cfg.precision not in PRECISIONS:
        raise ValueError(
            f"model.precision={cfg.precision!r}: must be one of {', '.join(PRECISIONS)}"
        )
    if (cfg.layer_decay, cfg.head_lr_scale) == (1, 1):
        return
    if cfg.optimizer != MARKED_OPTIMIZER:
        raise ValueError(
            f"model.layer_decay={cfg.layer_decay} and model.head_lr_scale={cfg.head_lr_scale} need "
            f"optimizer._name={MARKED_OPTIMIZER}"
        )


def _configure_encoder(encoder: Encoder, cfg: ClassifierConfig) -> None:
    """Set the encoder's regularisation, input statistics and dtype from ``model.*``."""
    set_dropout(
        encoder,
        cfg.dropout,
        cfg.attention_dropout,
        cfg.activation_dropout,
        cfg.encoder_layerdrop,
    )
    encoder.precision = cfg.precision
    statistics = encoder.batch_norm
    if cfg.input_mean is not None:
        statistics.running_mean.fill_(cfg.input_mean)
    if cfg.input_std is not None:
        if not cfg.input_std > 0:
            raise ValueError(
                f"model.input_std={cfg.input_std}: must be positive, or null for the checkpoint's"
            )
        statistics.running_var.fill_(cfg.input_std**2)
