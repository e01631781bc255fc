"""fairseq model ``mae_ast_classifier``: a pretrained encoder and a head."""

# No postponed annotations here: fairseq reads the types of the fields.
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
from mae_ast.models.weights import NamedWeights
from mae_ast.optim.adamw import MARKED_OPTIMIZER


@dataclass
class ClassifierConfig(FairseqDataclass):  # type: ignore[misc]
    """Keys of ``model.*`` of all classifiers: where they start, and how they are trained."""

    checkpoint: Optional[str] = field(  # noqa: UP045
        default=None,
        metadata={
            "help": "where to start: a file, a run's folder, a released model's name, a URL, a hub "
            "id; for ast also timm:NAME, or a file of timm's, or null for new weights"
        },
    )
    architecture_of: Optional[str] = field(  # noqa: UP045
        default=None,
        metadata={"help": "instead: the network and input statistics of that, with new weights"},
    )
    freeze_encoder: bool = field(default=False, metadata={"help": "train the head only"})
    head_dropout: float = field(default=0.0, metadata={"help": "before the head's last layer"})

    dropout: float = field(default=0.0, metadata={"help": "dropout in the transformer"})
    attention_dropout: float = field(default=0.0, metadata={"help": "dropout of attention weights"})
    activation_dropout: float = field(
        default=0.0, metadata={"help": "dropout after the activation in feed-forward blocks"}
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


@dataclass
class MaeAstClassifierConfig(ComputeConfig, ClassifierConfig):
    """``model.*``. The network is that of a checkpoint; what is here is the rest."""

    head: str = field(default="linear", metadata={"help": "linear or mlp"})
    pool: str = field(
        default="time_steps",
        metadata={
            "help": "mean over 'time_steps' (a column's tokens side by side) or 'tokens'; "
            "'encoder': what the network itself makes of a clip (AST's prefix tokens)"
        },
    )
    overlap: bool = field(
        default=False,
        metadata={
            "help": "overlapping patches for SSAST and AST: stride 10 for patches of 16, 1 for "
            "patches of 2, as in SSAST's own fine-tuning; false: as in the checkpoint"
        },
    )
    input_frames: Optional[int] = field(  # noqa: UP045
        default=None,
        metadata={
            "help": "for SSAST, AST and Audio-MAE: cut or zero-pad training clips to this many "
            "frames, and cut or interpolate positions to them; longer clips are validated in "
            "windows of as many; default: as in the checkpoint"
        },
    )


class FairseqClassifier(Classifier, NamedWeights):
    """The core's classifier as fairseq wants it; what describes its encoder goes with it."""

    system: str
    encoder_fields: dict[str, Any]

    @classmethod
    def on(cls, encoder: Encoder, head: HeadConfig, cfg: ClassifierConfig) -> Self:
        """A classifier for the training that ``model.*`` describes."""
        _set_up(encoder, cfg)
        config = encoder.config
        model = cls(encoder, config.encoder_embed_dim, head, cfg.freeze_encoder)
        set_compute(model, cfg)
        model.scale_learning_rates(cfg.layer_decay, cfg.head_lr_scale)
        model.system, model.encoder_fields = system_name(config), dataclasses.asdict(config)
        return model

    def clip_logits(
        self, source: Tensor, lengths: Tensor | None, independent: bool, trained_samples: int
    ) -> Tensor:
        """Return the logits (B, C) of whole clips; reachable through fairseq's wrappers."""
        return clip_logits(self, source, lengths, independent, trained_samples)


@register_model("mae_ast_classifier", dataclass=MaeAstClassifierConfig)
class FairseqCheckpointClassifier(FairseqClassifier):
    """On the encoder of a checkpoint."""

    @classmethod
    def build_model(cls, cfg: MaeAstClassifierConfig, task: Any) -> "FairseqClassifier":
        """Build from ``model.*``; the number of classes is the task's."""
        with user_errors():
            check(cfg)
            source = cfg.checkpoint or cfg.architecture_of
            if not source:
                raise ValueError(
                    "model.checkpoint and model.architecture_of are null: set one of them, to "
                    "start from its weights or from new ones"
                )
            head = HeadConfig(len(task.labels), cfg.head, cfg.pool, cfg.head_dropout)
            encoder = encoder_of(source, random_weights=not cfg.checkpoint)
            return cls.on(finetuning_view(encoder, cfg.overlap, cfg.input_frames), head, cfg)


def check(cfg: ClassifierConfig) -> None:
    """Refuse what cannot work in any classifier.

    Raises:
        ValueError: with the key, its value and what would be right.
    """
    if cfg.checkpoint and cfg.architecture_of:
        raise ValueError(
            f"model.checkpoint={cfg.checkpoint} and model.architecture_of={cfg.architecture_of}: "
            "set one of them, to start from its weights or from new ones"
        )
    if cfg.precision not in PRECISIONS:
        raise ValueError(f"model.precision={cfg.precision!r}; it is one of {', '.join(PRECISIONS)}")
    if (cfg.layer_decay, cfg.head_lr_scale) == (1, 1):
        return
    if cfg.optimizer != MARKED_OPTIMIZER:
        raise ValueError(
            f"model.layer_decay={cfg.layer_decay} and model.head_lr_scale={cfg.head_lr_scale} need "
            f"optimizer._name={MARKED_OPTIMIZER}"
        )


def _set_up(encoder: Encoder, cfg: ClassifierConfig) -> None:
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
