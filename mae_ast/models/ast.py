"""fairseq model ``ast``: the AST of a configuration, started from images, SSAST, AST or nothing."""

# No postponed annotations here: fairseq reads the types of the fields.
import dataclasses
from dataclasses import dataclass
from typing import Any

from fairseq.models import register_model

from mae_ast.console import user_errors
from mae_ast.core.models.classifier import HeadConfig
from mae_ast.core.models.config import AstArchitecture, AstConfig
from mae_ast.finetune.initialize import ast_encoder
from mae_ast.models.classifier import ClassifierConfig, FairseqClassifier, check
from mae_ast.models.compute import ComputeConfig


@dataclass
class AstModelConfig(ComputeConfig, ClassifierConfig, AstArchitecture):
    """``model.*``. Sizes must be those of what it is started from."""


@register_model("ast", dataclass=AstModelConfig)
class FairseqAst(FairseqClassifier):
    """AST's own head, a layer norm and a linear layer, on the mean of its prefix tokens."""

    @classmethod
    def build_model(cls, cfg: AstModelConfig, task: Any) -> "FairseqAst":
        """Build from ``model.*``; the number of classes is the task's."""
        with user_errors():
            check(cfg)
            network = {f.name: getattr(cfg, f.name) for f in dataclasses.fields(AstArchitecture)}
            config = AstConfig(**network, num_classes=len(task.labels))
            source = cfg.checkpoint or cfg.architecture_of
            encoder = ast_encoder(config, source or None, random_weights=not cfg.checkpoint)
            head = HeadConfig(len(task.labels), pool="encoder", dropout=cfg.head_dropout)
            return cls.on(encoder, head, cfg)
