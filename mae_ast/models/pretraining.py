"""Base class of the fairseq models for pretraining."""

from __future__ import annotations

from typing import Any, Self

from mae_ast.console import user_errors
from mae_ast.core.models.encoder import mark_weight_decay
from mae_ast.core.models.registry import parse_config
from mae_ast.models.compute import set_compute
from mae_ast.models.weights import CheckedWeights


class PretrainingModel(CheckedWeights):
    """Base class of the models that ``mae_ast_pretraining`` trains; follows the core's class."""

    @classmethod
    def build_model(cls, cfg: Any, task: Any) -> Self:
        """Build the model from ``model.*``, after checking that it supports the task's masks."""
        with user_errors():
            config = parse_config(cfg)
            config.validate(task.cfg.mask_type)
            model = cls(config)
        mark_weight_decay(model)
        set_compute(model, cfg)
        return model
