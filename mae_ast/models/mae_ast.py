"""fairseq model ``mae_ast``."""

# No postponed annotations here: fairseq reads the types of the fields.
from dataclasses import dataclass
from typing import Any

from fairseq.dataclass import FairseqDataclass
from fairseq.models import register_model

from mae_ast.core.config import MaeAstConfig
from mae_ast.core.mae_ast import MaeAst
from mae_ast.errors import user_errors
from mae_ast.models.weights import NamedWeights


@dataclass
class MaeAstModelConfig(FairseqDataclass, MaeAstConfig):  # type: ignore[misc]
    """``model.*``; all fields are the core's."""


@register_model("mae_ast", dataclass=MaeAstModelConfig)
class FairseqMaeAst(MaeAst, NamedWeights):
    """The core's model as fairseq wants it; keys of the state dict stay flat."""

    @classmethod
    def build_model(cls, cfg: MaeAstModelConfig, task: Any) -> "FairseqMaeAst":
        """Build from ``model.*``, once it is known to work with the task's masks."""
        with user_errors():
            config = MaeAstConfig.from_mapping(cfg)
            config.validate(task.cfg.mask_type)
            return cls(config)
