"""Weights that do not fit a model are named in one line."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from fairseq.models import BaseFairseqModel

from mae_ast.console import user_errors
from mae_ast.core.checkpoints.reader import check_weights


class NamedWeights(BaseFairseqModel):  # type: ignore[misc]
    """Base of this project's fairseq models, second after the core's class."""

    weights_are_from = "the checkpoint"

    def load_state_dict(
        self, state_dict: Mapping[str, Any], strict: bool = True, *args: Any, **kwargs: Any
    ) -> Any:
        """Torch's; weights that do not fit are named in one line."""
        with user_errors():
            check_weights(self.state_dict(), state_dict, self.weights_are_from)
        return super().load_state_dict(state_dict, strict)
