"""fairseq model ``audio_mae``."""

# No postponed annotations here: fairseq reads the types of the fields.
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
    """``model.*``; what describes the model is the core's."""

    encoder_weights: Optional[str] = field(  # noqa: UP045
        default=None,
        metadata={
            "help": "where the encoder starts: timm:NAME, or a file with the weights of a ViT of "
            "timm's; default: new weights"
        },
    )


@register_model("audio_mae", dataclass=AudioMaeModelConfig)
class FairseqAudioMae(AudioMae, PretrainingModel):
    """The core's model as fairseq wants it; keys of the state dict stay flat."""

    @classmethod
    def build_model(cls, cfg: AudioMaeModelConfig, task: Any) -> "FairseqAudioMae":
        """Build from ``model.*``, once it is known to work with the task's masks."""
        model = super().build_model(cfg, task)
        if cfg.encoder_weights:
            with user_errors():
                start_encoder(model, cfg.encoder_weights)
        return model
