"""Report invalid input in one line, where fairseq's program calls this package.

fairseq and hydra show such an error below a traceback of many frames. The program cannot be wrapped
as a whole: its ``main`` has already begun when it imports ``common.user_dir``.
"""

from __future__ import annotations

from typing import Any

import fairseq.tasks
import fairseq_cli.hydra_train
import fairseq_cli.train
from fairseq import checkpoint_utils
from fairseq.distributed import utils

from mae_ast.console import user_errors
from mae_ast.trainer.preemption import InterruptibleTask

# What ``main`` looks up, by module, when it calls it.
_FUNCTIONS: tuple[tuple[Any, tuple[str, ...]], ...] = (
    (fairseq_cli.hydra_train, ("add_defaults",)),
    (fairseq_cli.train, ("add_defaults", "train")),
    (checkpoint_utils, ("load_checkpoint", "verify_checkpoint_directory")),
    (utils, ("call_main",)),
)
_METHODS_OF_TASKS = ("build_model", "build_criterion", "load_dataset", "get_batch_iterator")


def apply() -> None:
    """Wrap the functions, after all other patches; call it once."""
    # Remove when fairseq and hydra show a ValueError of a plug-in without a traceback.
    for module, names in _FUNCTIONS:
        for name in names:
            setattr(module, name, user_errors()(getattr(module, name)))
    setup_task = fairseq.tasks.setup_task

    def setup(cfg: Any, **kwargs: Any) -> Any:
        task = setup_task(cfg, **kwargs)
        if isinstance(task, InterruptibleTask):
            for name in _METHODS_OF_TASKS:
                setattr(task, name, user_errors()(getattr(task, name)))
        return task

    fairseq.tasks.setup_task = user_errors()(setup)
