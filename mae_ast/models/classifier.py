"""fairseq model ``mae_ast_classifier``: a pretrained encoder and a head."""

# No postponed annotations here: fairseq reads the types of the fields.
from dataclasses import dataclass, field
from typing import Any, Optional

from fairseq.dataclass import FairseqDataclass
from fairseq.models import register_model
from omegaconf import II

from mae_ast.core.classifier import Classifier, HeadConfig
from mae_ast.core.encoder import Encoder, set_dropout
from mae_ast.core.precision import PRECISIONS
from mae_ast.errors import user_errors
from mae_ast.finetuned import encoder_of
from mae_ast.models.weights import NamedWeights

OPTIMIZER_OF_SCALES = "mae_ast_adamw"


@dataclass
class MaeAstClassifierConfig(FairseqDataclass):  # type: ignore[misc]
    """``model.*``. The network is that of a checkpoint; what is here is the rest."""

    checkpoint: Optional[str] = field(  # noqa: UP045
        default=None,
        metadata={"help": "where to start: a file, a released model's name, a URL, a hub id"},
    )
    architecture_of: Optional[str] = field(  # noqa: UP045
        default=None,
        metadata={"help": "instead: the network and input statistics of that, with new weights"},
    )
    freeze_encoder: bool = field(default=False, metadata={"help": "train the head only"})
    head: str = field(default="linear", metadata={"help": "linear or mlp"})
    head_dropout: float = field(default=0.0, metadata={"help": "before the head's last layer"})
    pool: str = field(
        default="time_steps",
        metadata={
            "help": "mean over 'time_steps' (a column's tokens side by side) or 'tokens'; "
            "'encoder': what the network itself makes of a clip (AST's prefix tokens)"
        },
    )

    dropout: float = field(default=0.0, metadata={"help": "dropout in the transformer"})
    attention_dropout: float = field(default=0.0, metadata={"help": "of attention weights"})
    activation_dropout: float = field(
        default=0.0, metadata={"help": "after the activation in feed-forward blocks"}
    )
    encoder_layerdrop: float = field(
        default=0.0, metadata={"help": "probability of skipping a layer in a training step"}
    )

    layer_decay: float = field(
        default=1.0,
        metadata={"help": "each layer's learning rate over that of the one above; 1: all alike"},
    )
    head_lr_scale: float = field(
        default=1.0, metadata={"help": "the head's learning rate over optimization.lr"}
    )

    input_mean: Optional[float] = field(  # noqa: UP045
        default=None, metadata={"help": "mean log-mel of the input; default: the checkpoint's"}
    )
    input_std: Optional[float] = field(  # noqa: UP045
        default=None, metadata={"help": "its deviation; default: the checkpoint's"}
    )
    precision: str = field(
        default="auto", metadata={"help": f"of the transformer: {', '.join(PRECISIONS)}"}
    )

    optimizer: Optional[str] = II("optimizer._name")  # noqa: UP045
    fp16: bool = II("common.fp16")
    bf16: bool = II("common.bf16")


@register_model("mae_ast_classifier", dataclass=MaeAstClassifierConfig)
class FairseqClassifier(Classifier, NamedWeights):
    """The core's classifier as fairseq wants it; what describes its encoder goes with it."""

    system: str
    encoder_fields: dict[str, Any]

    @classmethod
    def build_model(cls, cfg: MaeAstClassifierConfig, task: Any) -> "FairseqClassifier":
        """Build from ``model.*``; the number of classes is the task's."""
        with user_errors():
            _check(cfg)
            head = HeadConfig(len(task.labels), cfg.head, cfg.pool, cfg.head_dropout)
            source = cfg.checkpoint or cfg.architecture_of
            assert source is not None
            encoder, system, fields = encoder_of(source, random_weights=not cfg.checkpoint)
            _set_up(encoder, cfg)
            model = cls(encoder, fields["encoder_embed_dim"], head, cfg.freeze_encoder)
            model.scale_learning_rates(cfg.layer_decay, cfg.head_lr_scale)
        model.system, model.encoder_fields = system, fields
        return model


def _check(cfg: MaeAstClassifierConfig) -> None:
    if bool(cfg.checkpoint) == bool(cfg.architecture_of):
        raise ValueError(
            f"model.checkpoint={cfg.checkpoint} and model.architecture_of={cfg.architecture_of}: "
            "set one of them, to start from its weights or from new ones"
        )
    if cfg.precision not in PRECISIONS:
        raise ValueError(f"model.precision={cfg.precision!r}; it is one of {', '.join(PRECISIONS)}")
    if (cfg.layer_decay, cfg.head_lr_scale) == (1, 1):
        return
    if cfg.optimizer != OPTIMIZER_OF_SCALES or cfg.fp16 or cfg.bf16:
        raise ValueError(
            f"model.layer_decay={cfg.layer_decay} and model.head_lr_scale={cfg.head_lr_scale} need "
            f"optimizer._name={OPTIMIZER_OF_SCALES} and neither common.fp16 nor common.bf16 "
            "(model.precision=bfloat16 does their work)"
        )


def _set_up(encoder: Encoder, cfg: MaeAstClassifierConfig) -> None:
    """Regularisation, input statistics and number format of this training."""
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
            raise ValueError(f"model.input_std={cfg.input_std}; a positive number, or null")
        statistics.running_var.fill_(cfg.input_std**2)
