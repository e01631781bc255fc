"""fairseq model ``mae_ast``."""

# No postponed annotations here: fairseq reads the types of the fields.
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from fairseq.dataclass import FairseqDataclass
from fairseq.models import BaseFairseqModel, register_model

from mae_ast.core.checkpoint import check_weights
from mae_ast.core.config import MaeAstConfig
from mae_ast.core.mae_ast import MaeAst
from mae_ast.errors import user_errors


@dataclass
class MaeAstModelConfig(FairseqDataclass, MaeAstConfig):  # type: ignore[misc]
    """``model.*``; all fields are the core's."""


@register_model("mae_ast", dataclass=MaeAstModelConfig)
class FairseqMaeAst(MaeAst, BaseFairseqModel):  # type: ignore[misc]
    """The core's model as fairseq wants it; keys of the state dict stay flat."""

    @classmethod
    def build_model(cls, cfg: MaeAstModelConfig, task: Any) -> "FairseqMaeAst":
        """Build from ``model.*``, once it is known to work with the task's masks."""
        with user_errors():
            config = MaeAstConfig.from_mapping(cfg)
            config.validate(task.cfg.mask_type)
            return cls(config)

    def load_state_dict(
        self, state_dict: Mapping[str, Any], strict: bool = True, *args: Any, **kwargs: Any
    ) -> Any:
        """Torch's; weights that do not fit are named in one line."""
        with user_errors():
            check_weights(self.state_dict(), state_dict, "the checkpoint")
        return super().load_state_dict(state_dict, strict)
