"""Models for pretraining, built from ``model.*``."""

from __future__ import annotations

from typing import Any, Self

from mae_ast.console import user_errors
from mae_ast.core.models.encoder import mark_weight_decay
from mae_ast.core.models.registry import parse_config
from mae_ast.models.compute import set_compute
from mae_ast.models.weights import NamedWeights


class PretrainingModel(NamedWeights):
    """Base of the models that ``mae_ast_pretraining`` trains, second after the core's class."""

    @classmethod
    def build_model(cls, cfg: Any, task: Any) -> Self:
        """Build from ``model.*``, once it is known to work with the task's masks."""
        with user_errors():
            config = parse_config(cfg)
            config.validate(task.cfg.mask_type)
            model = cls(config)
        mark_weight_decay(model)
        set_compute(model, cfg)
        return model
