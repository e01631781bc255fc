"""Silence the logs of libraries in commands that print a result of their own."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def quiet() -> Iterator[None]:
    """Silence hydra, fairseq and the data set."""
    root = logging.getLogger()
    level, handlers, disabled = root.level, list(root.handlers), root.manager.disable
    logging.disable(logging.INFO)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # by hydra, about its versions
            yield
    finally:
        logging.disable(disabled)
        root.setLevel(level)  # fairseq and hydra set up logs of their own when they are imported
        root.handlers[:] = handlers
