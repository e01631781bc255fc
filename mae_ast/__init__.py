"""mae-ast: self-supervised pretraining of spectrogram transformers.

``mae_ast.core`` is plain PyTorch. ``mae_ast.plugin.register()`` registers the tasks, models and
criterions with fairseq; ``fairseq-hydra-train common.user_dir=.../mae_ast`` calls it automatically.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from mae_ast.hub.load import Pretrained

__version__ = "0.1.0"


def load(source: str | os.PathLike[str]) -> Pretrained:
    """Load a model: the name of a released one, a path, a URL or a Hugging Face hub id.

    See :func:`mae_ast.hub.load.load`.
    """
    from mae_ast.hub import (
        load as pretrained,  # fairseq imports this package only to find tasks and models
    )

    return pretrained.load(source)
