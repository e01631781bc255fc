"""fairseq model ``audio_mae``: Audio-MAE for pretraining."""

# No postponed annotations: fairseq reads the field types at run time.
from dataclasses import dataclass, field
from typing import Any, Optional

from fairseq.models import register_model

from mae_ast.console import user_errors
from mae_ast.core.models.audio_mae import AudioMae
from mae_ast.core.models.config import AudioMaeConfig
from mae_ast.finetune.initialize import start_encoder
from mae_ast.models.compute import ComputeConfig
from mae_ast.models.pretraining import PretrainingModel


@dataclass
class AudioMaeModelConfig(ComputeConfig, AudioMaeConfig):
    """Settings under ``model.*``: the core's configuration, and how the training runs."""

    encoder_weights: Optional[str] = field(  # noqa: UP045
        default=None,
        metadata={
            "help": "initial weights of the encoder: timm:NAME, or a file with the state dict of "
            "a timm ViT; null: random weights"
        },
    )


@register_model("audio_mae", dataclass=AudioMaeModelConfig)
class FairseqAudioMae(AudioMae, PretrainingModel):
    """The core's model as a fairseq model, with the same flat state dict keys."""

    @classmethod
    def build_model(cls, cfg: AudioMaeModelConfig, task: Any) -> "FairseqAudioMae":
        """Build the model from ``model.*``, after checking that it supports the task's masks."""
        model = super().build_model(cfg, task)
        if cfg.encoder_weights:
            with user_errors():
                start_encoder(model, cfg.encoder_weights)
        return model
