"""Keep training when the disk is full: drop log entries that cannot be written."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

from tensorboardX.event_file_writer import EventsWriter

logger = logging.getLogger(__name__)


def apply() -> None:
    """Replace tensorboardX's methods; may be called more than once."""
    if hasattr(EventsWriter, "failed"):
        return
    # The thread that writes events ends at the first error, and training then waits for it forever.
    # Remove when tensorboardX handles errors in that thread.
    EventsWriter.failed = False
    for name in ("write_event", "flush", "close"):
        setattr(EventsWriter, name, _until_it_fails(getattr(EventsWriter, name)))

    # A log file that cannot be written would cause a traceback for each line; the console shows the
    # lines anyway.
    logging.raiseExceptions = False


def _until_it_fails(method: Callable[..., Any]) -> Callable[..., Any]:
    def wrapper(self: Any, *args: Any) -> Any:
        if self.failed:  # records after a truncated one could not be read
            return None
        try:
            return method(self, *args)
        except OSError as error:
            self.failed = True
            logger.warning(
                "%s: cannot be written (%s); no more values of this run are sent to TensorBoard",
                *(self._file_name, error.strerror or error),
            )
            return None

    return wrapper
