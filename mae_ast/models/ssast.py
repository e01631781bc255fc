"""fairseq model ``ssast``: SSAST for pretraining."""

# No postponed annotations: fairseq reads the field types at run time.
from dataclasses import dataclass

from fairseq.models import register_model

from mae_ast.core.models.config import SsastConfig
from mae_ast.core.models.ssast import Ssast
from mae_ast.models.compute import ComputeConfig
from mae_ast.models.pretraining import PretrainingModel


@dataclass
class SsastModelConfig(ComputeConfig, SsastConfig):
    """Settings under ``model.*``: the core's configuration, and how the training runs."""


@register_model("ssast", dataclass=SsastModelConfig)
class FairseqSsast(Ssast, PretrainingModel):
    """The core's model as a fairseq model, with the same flat state dict keys."""
