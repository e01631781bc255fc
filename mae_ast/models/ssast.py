"""fairseq model ``ssast``."""

# No postponed annotations here: fairseq reads the types of the fields.
from dataclasses import dataclass

from fairseq.models import register_model

from mae_ast.core.models.config import SsastConfig
from mae_ast.core.models.ssast import Ssast
from mae_ast.models.compute import ComputeConfig
from mae_ast.models.pretraining import PretrainingModel


@dataclass
class SsastModelConfig(ComputeConfig, SsastConfig):
    """``model.*``; what describes the model is the core's."""


@register_model("ssast", dataclass=SsastModelConfig)
class FairseqSsast(Ssast, PretrainingModel):
    """The core's model as fairseq wants it; keys of the state dict stay flat."""
