"""Filter the console output of a run; its log file keeps every message and every digit.

Import this module before PyTorch and fairseq, some of whose dependencies configure logging at
import.
"""

from __future__ import annotations

import logging
import os
import re
import sys
from typing import Any

import mae_ast

_PACKAGE = os.path.join(os.path.dirname(mae_ast.__file__), "")
# Loggers whose messages up to this level go to the log file only. The description of a run already
# gives its number of clips (mae_ast.trainer.run_report).
_ONLY_FOR_THE_LOG = {
    "mae_ast.data.audio_clips": logging.INFO,
    "fairseq.tasks.fairseq_task": logging.WARNING,  # in each validation
    "py.warnings": logging.CRITICAL,  # deprecation warnings of other libraries
}
_FILTER = {"()": "mae_ast.trainer.console_filter.ConsoleFilter"}
_FORMATTER = "mae_ast.trainer.console_filter.ConsoleFormatter"
_DIGITS = 4  # significant digits of floats on the console
_FLOAT = re.compile(r"(?<![\w.])-?\d+\.\d+(?:e[+-]?\d+)?(?![\w.])")


class ConsoleFilter(logging.Filter):
    """Pass this project's messages, progress lines, and every warning and error."""

    def filter(self, record: logging.LogRecord) -> bool:
        """Return ``True`` if the console shows the record."""
        if record.levelno <= _ONLY_FOR_THE_LOG.get(record.name, logging.NOTSET):
            return False
        if record.levelno >= logging.WARNING:
            return True
        if record.levelno < logging.INFO:
            return False
        is_job = record.module == "basic_launcher"  # hydra's messages about the jobs of a sweep
        return _is_progress(record) or is_job or record.pathname.startswith(_PACKAGE)


class ConsoleFormatter(logging.Formatter):
    """Round the floats of progress lines to 4 significant digits."""

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802
        """Return the text of a record whose ``message`` is set."""
        if _is_progress(record) or record.message.startswith("{"):
            record.message = _FLOAT.sub(_rounded, record.message)
        return super().formatMessage(record)


def _is_progress(record: logging.LogRecord) -> bool:
    """Return ``True`` for fairseq's progress lines, logged under the name of the split."""
    return record.module == "progress_bar" and not record.name.startswith("fairseq")


def _rounded(found: re.Match[str]) -> str:
    value = float(found[0])
    return f"{value:.0f}" if abs(value) >= 10**_DIGITS else f"{value:.{_DIGITS}g}"


def quiet() -> None:
    """Filter the console until hydra configures logging."""
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
    """Filter the console that hydra has configured."""
    for handler in logging.getLogger().handlers:
        if not isinstance(handler, logging.FileHandler):
            handler.addFilter(ConsoleFilter())


def quiet_job(job_logging: Any) -> None:
    """Add filter and formatter to the console of hydra's ``job_logging``, not to its log file."""
    handlers = job_logging.get("handlers") or {}
    if "console" not in handlers:  # another logging configuration was chosen
        return
    job_logging["filters"] = {**(job_logging.get("filters") or {}), "console": _FILTER}
    handlers["console"]["filters"] = [*(handlers["console"].get("filters") or []), "console"]
    formatter = job_logging.get("formatters", {}).get(handlers["console"].get("formatter"))
    if formatter is not None and "()" not in formatter:  # keep a custom one, as of colorlog
        job_logging["formatters"]["console"] = {**formatter, "class": _FORMATTER}
        handlers["console"]["formatter"] = "console"
