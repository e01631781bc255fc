"""fairseq model ``mae_ast``: MAE-AST for pretraining."""

# No postponed annotations: fairseq reads the field types at run time.
from dataclasses import dataclass

from fairseq.models import register_model

from mae_ast.core.models.config import MaeAstConfig
from mae_ast.core.models.mae_ast import MaeAst
from mae_ast.models.compute import ComputeConfig
from mae_ast.models.pretraining import PretrainingModel


@dataclass
class MaeAstModelConfig(ComputeConfig, MaeAstConfig):
    """Settings under ``model.*``: the core's configuration, and how the training runs."""


@register_model("mae_ast", dataclass=MaeAstModelConfig)
class FairseqMaeAst(MaeAst, PretrainingModel):
    """The core's model as a fairseq model, with the same flat state dict keys."""
