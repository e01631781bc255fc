"""Fetch remote shards in the background."""

from __future__ import annotations

import logging
import os
import threading
from collections import deque
from collections.abc import Sequence

from mae_ast.core.io.remote.cache import ensure
from mae_ast.core.io.remote.urls import RemoteError

logger = logging.getLogger(__name__)


class Prefetcher:
    """Thread that fetches shards one after the other, and exists while there are any.

    Shards that other processes are fetching are skipped, so that several processes share the work.
    Errors are left to whoever reads the shard.
    """

    def __init__(self) -> None:
        self._urls: deque[str] = deque()
        self._changing = threading.Lock()
        self._thread: threading.Thread | None = None

    def request(self, urls: Sequence[str]) -> None:
        """Fetch these shards, which replace those requested earlier."""
        first = os.getpid() % max(1, len(urls))  # each process begins with another one
        with self._changing:
            self._urls = deque([*urls[first:], *urls[:first]])
            if self._thread is None and self._urls:
                self._thread = threading.Thread(target=self._run, daemon=True)
                self._thread.start()

    def wait(self) -> None:
        """Wait until all requested shards were tried."""
        thread = self._thread
        if thread is not None:
            thread.join()

    def _next(self) -> str | None:
        with self._changing:
            if self._urls:
                return self._urls.popleft()
            self._thread = None
            return None

    def _run(self) -> None:
        while (url := self._next()) is not None:
            try:
                ensure(url, wait=False)
            except RemoteError as error:
                logger.debug("not fetched ahead: %s", error)
