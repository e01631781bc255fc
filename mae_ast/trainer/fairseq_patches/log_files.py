"""Keep training when the disk is full: log entries that cannot be written are dropped."""

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
    # The thread that writes events ends at the first error; training then waits for it forever.
    # Remove when tensorboardX handles errors of its thread.
    EventsWriter.failed = False
    for name in ("write_event", "flush", "close"):
        setattr(EventsWriter, name, _until_it_fails(getattr(EventsWriter, name)))

    # A log file that cannot be written to would print a traceback for each line; the lines are on
    # the console all the same.
    logging.raiseExceptions = False


def _until_it_fails(method: Callable[..., Any]) -> Callable[..., Any]:
    def wrapper(self: Any, *args: Any) -> Any:
        if self.failed:  # what follows a record that was cut short could not be read
            return None
        try:
            return method(self, *args)
        except OSError as error:
            self.failed = True
            logger.warning(
                "%s: cannot be written (%s); TensorBoard gets no more values of this run",
                *(self._file_name, error.strerror or error),
            )
            return None

    return wrapper
