"""Base class of the fairseq models: report weights that do not fit in a one-line error."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from fairseq.models import BaseFairseqModel

from mae_ast.core.checkpoints.reader import check_weights


class CheckedWeights(BaseFairseqModel):  # type: ignore[misc]
    """Base class of this package's fairseq models; follows the core's class in the bases."""

    weights_are_from = "the checkpoint"

    def load_state_dict(
        self, state_dict: Mapping[str, Any], strict: bool = True, *args: Any, **kwargs: Any
    ) -> Any:
        """Load weights as torch does; exit with one line that names those that do not fit."""
        check_weights(self.state_dict(), state_dict, self.weights_are_from)
        return super().load_state_dict(state_dict, strict)
