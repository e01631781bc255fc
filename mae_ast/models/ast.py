"""fairseq model ``ast``: AST, initialised from an image ViT, SSAST, AST or random weights."""

# No postponed annotations: fairseq reads the field types at run time.
from dataclasses import dataclass
from functools import partial
from typing import Any

from fairseq.models import register_model

from mae_ast.core.models.classifier import HeadConfig
from mae_ast.core.models.config import AstArchitecture
from mae_ast.finetune.initialize import start_ast
from mae_ast.models.classifier import ClassifierConfig, FairseqClassifier, check_settings
from mae_ast.models.compute import ComputeConfig


@dataclass
class AstModelConfig(ComputeConfig, ClassifierConfig, AstArchitecture):
    """Settings under ``model.*``; sizes must match those of the weights it starts from."""


@register_model("ast", dataclass=AstModelConfig)
class FairseqAst(FairseqClassifier):
    """AST with its own head: layer norm and linear layer on the mean of the prefix tokens."""

    @classmethod
    def build_model(cls, cfg: AstModelConfig, task: Any) -> "FairseqAst":
        """Build the model from ``model.*`` and the task's number of classes."""
        check_settings(cfg, AstModelConfig)
        head = HeadConfig(len(task.labels), pool="encoder", dropout=cfg.head_dropout)
        return cls.build(cfg, head, partial(start_ast, num_classes=len(task.labels)))
