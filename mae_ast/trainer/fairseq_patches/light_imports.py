"""Import fairseq without scikit-learn, SciPy and wandb, which most trainings do not call."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import ModuleType
from typing import Any

_DEFERRED = ("sklearn.metrics", "scipy.stats")
_HIDDEN = "wandb"  # imported by weights_and_biases.py in trainings that log to it


@contextmanager
def deferring_metrics() -> Iterator[None]:
    """Defer the import of metrics to their first call, for modules imported within the context.

    fairseq imports all its tasks and criterions, and two of them import these packages: a second
    for each process of a pretraining, which needs neither. It imports wandb if that is
    installed. Remove when fairseq imports them where they are called.
    """
    if any(name.partition(".")[0] in sys.modules for name in _DEFERRED):
        yield
        return
    stand_ins: dict[str, Any] = {} if _HIDDEN in sys.modules else {_HIDDEN: None}
    for name in _DEFERRED:
        package, _, attribute = name.partition(".")
        stand_ins[package], stand_ins[name] = ModuleType(package), _Deferred(name)
        setattr(stand_ins[package], attribute, stand_ins[name])
    sys.modules.update(stand_ins)
    try:
        yield
    finally:
        for name in stand_ins:
            del sys.modules[name]


class _Deferred(ModuleType):
    """Module whose attributes are functions that import the real module when they are called."""

    def __getattr__(self, name: str) -> Callable[..., Any]:
        if name.startswith("__"):
            raise AttributeError(name)

        def call(*args: Any, **kwargs: Any) -> Any:
            return getattr(importlib.import_module(self.__name__), name)(*args, **kwargs)

        return call
