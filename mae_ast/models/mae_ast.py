"""fairseq model ``mae_ast``."""

# No postponed annotations here: fairseq reads the types of the fields.
from dataclasses import dataclass

from fairseq.models import register_model

from mae_ast.core.models.config import MaeAstConfig
from mae_ast.core.models.mae_ast import MaeAst
from mae_ast.models.compute import ComputeConfig
from mae_ast.models.pretraining import PretrainingModel


@dataclass
class MaeAstModelConfig(ComputeConfig, MaeAstConfig):
    """``model.*``; what describes the model is the core's."""


@register_model("mae_ast", dataclass=MaeAstModelConfig)
class FairseqMaeAst(MaeAst, PretrainingModel):
    """The core's model as fairseq wants it; keys of the state dict stay flat."""
