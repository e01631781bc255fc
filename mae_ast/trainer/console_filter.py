"""Console of a training: what a person wants to see; the run's log file keeps everything.

Imported before PyTorch and fairseq, some of whose dependencies configure logging at import.
"""

from __future__ import annotations

import logging
import os
import sys
from typing import Any

import mae_ast

_PACKAGE = os.path.join(os.path.dirname(mae_ast.__file__), "")
# Up to which level the messages of a logger are for the log file only. The description of a run
# says how many clips it has (mae_ast.trainer.run_report).
_ONLY_FOR_THE_LOG = {
    "mae_ast.data.audio_clips": logging.INFO,
    "fairseq.tasks.fairseq_task": logging.WARNING,  # in each validation
    "py.warnings": logging.CRITICAL,  # Python's: deprecations and the like, of other libraries
}
_FILTER = {"()": "mae_ast.trainer.console_filter.ConsoleFilter"}


class ConsoleFilter(logging.Filter):
    """Pass this project's messages, progress lines, and warnings and errors of fairseq."""

    def filter(self, record: logging.LogRecord) -> bool:
        """Return whether the console shows a record."""
        if record.levelno <= _ONLY_FOR_THE_LOG.get(record.name, logging.NOTSET):
            return False
        if record.levelno >= logging.WARNING:
            return True
        if record.levelno < logging.INFO:
            return False
        # fairseq logs progress under the name of the split.
        is_progress = record.module == "progress_bar" and not record.name.startswith("fairseq")
        is_job = record.module == "basic_launcher"  # hydra's, of a sweep
        return is_progress or is_job or record.pathname.startswith(_PACKAGE)


def quiet() -> None:
    """Show nothing of other libraries until hydra configures logging."""
    logging.captureWarnings(True)
    handler = logging.StreamHandler(sys.stdout)
    handler.addFilter(ConsoleFilter())
    # With a handler there, later calls of basicConfig have no effect.
    logging.basicConfig(
        handlers=[handler],
        level=logging.INFO,
        format="[%(asctime)s][%(name)s][%(levelname)s] - %(message)s",
    )


def quiet_handlers() -> None:
    """Show nothing of other libraries on the console that hydra has configured."""
    for handler in logging.getLogger().handlers:
        if not isinstance(handler, logging.FileHandler):
            handler.addFilter(ConsoleFilter())


def quiet_job(job_logging: Any) -> None:
    """Add the filter to the console of hydra's ``job_logging``; its log file is untouched."""
    handlers = job_logging.get("handlers") or {}
    if "console" not in handlers:  # another logging configuration was chosen
        return
    job_logging["filters"] = {**(job_logging.get("filters") or {}), "console": _FILTER}
    handlers["console"]["filters"] = [*(handlers["console"].get("filters") or []), "console"]
