"""Wait for a server that does not answer, for a limited time.

``MAE_AST_SHARD_CACHE_PATIENCE_S`` (default 900, a quarter of an hour) limits the time without
progress of a transfer, not its duration.
"""

from __future__ import annotations

import logging
import math
import os
import time

from mae_ast.core.io.remote.transfer import reason, retry_after
from mae_ast.core.io.remote.urls import RemoteError, server_of

VARIABLE = "MAE_AST_SHARD_CACHE_PATIENCE_S"
DEFAULT_S = 900.0
FIRST_WAIT_S, LONGEST_WAIT_S = 0.5, 30.0
LOG_INTERVAL_S = 60.0
# After a transfer was given up, others from the server fail at once for this time: a data set would
# else wait for each of its clips in turn.
GIVEN_UP_S = 60.0

logger = logging.getLogger(__name__)

_given_up: dict[str, tuple[float, str]] = {}  # server to the time and the message


def patience_s() -> float:
    """Return the time in seconds to wait for a server.

    Raises:
        RemoteError: the environment variable is not a number from 0.
    """
    return number_from(VARIABLE, DEFAULT_S, "seconds")


def number_from(variable: str, default: float, unit: str) -> float:
    """Return the number in an environment variable.

    Raises:
        RemoteError: it is not a number from 0.
    """
    text = os.environ.get(variable) or str(default)
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not (0 <= value < math.inf):
        raise RemoteError(f"{variable}={text}: expected a number of {unit} from 0, such as 600")
    return value


class Patience:
    """Time that a transfer may take without progress.

    Args:
        url: URL of the transfer.
        since: time from which another process has waited in vain for it, on the monotonic clock;
            ``None``: no other process has.

    Raises:
        RemoteError: another transfer from this server was given up less than a minute ago.
    """

    def __init__(self, url: str, since: float | None = None) -> None:
        self._url, self._server = url, server_of(url)
        self._limit_s = patience_s()
        self._since = since
        self._attempts = 0
        self._logged = -math.inf
        when, message = _given_up.get(self._server, (-math.inf, ""))
        if time.monotonic() < when + GIVEN_UP_S:
            raise RemoteError(message)

    def progress(self) -> None:
        """Declare that the transfer has advanced further than before."""
        if self._attempts and self._logged > -math.inf:
            logger.warning("%s: answers again", self._server)
        self._since, self._attempts, self._logged = None, 0, -math.inf

    def wait(self, error: Exception) -> None:
        """Wait before the next attempt, longer each time, and log it once a minute.

        Raises:
            RemoteError: there was no progress for too long.
        """
        now = time.monotonic()
        self._since = now if self._since is None else self._since
        left_s = self._since + self._limit_s - now
        if left_s <= 0:
            message = (
                f"{self._url}: not fetched for {self._limit_s:g} s ({reason(error)}); once the "
                f"server answers, the same command resumes ({VARIABLE} sets how long to wait)"
            )
            _given_up[self._server] = now, message
            raise RemoteError(message) from error
        # Processes that failed together must not come back together.
        spread = 1 + os.getpid() % 16 / 32
        wait_s = min(FIRST_WAIT_S * 2**self._attempts, LONGEST_WAIT_S) * spread
        wait_s = min(max(wait_s, retry_after(error)), left_s)
        self._attempts += 1
        if now - self._logged >= LOG_INTERVAL_S:
            self._logged = now
            logger.warning(
                "%s: %s; waiting for the server, for up to %.0f s",
                *(self._url, reason(error), left_s),
            )
        time.sleep(wait_s)
