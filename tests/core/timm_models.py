"""timm, which wants torchvision at import, where no torchvision fits the installed torch."""

from __future__ import annotations

import importlib
import importlib.machinery
import importlib.util
import sys
import types
from types import ModuleType

import pytest

# What timm takes from it while being imported; its ViTs use none of it.
_WANTED = ("", ".datasets", ".ops", ".ops.misc", ".transforms", ".transforms.functional")


class _AnyMember(type):
    """Kind of a class that has whatever constant is asked for, as an enumeration has."""

    def __getattr__(cls, name: str) -> str:
        if name.startswith("__"):
            raise AttributeError(name)
        return name


class _Stub(types.ModuleType):
    """A module that holds a class of any name."""

    def __getattr__(self, name: str) -> type:
        if name.startswith("__"):
            raise AttributeError(name)
        return _AnyMember(name, (), {})


def import_timm() -> ModuleType:
    """timm, or skip the test."""
    if importlib.util.find_spec("timm") is None:
        pytest.skip("needs timm")
    if "timm" in sys.modules or importlib.util.find_spec("torchvision") is not None:
        return importlib.import_module("timm")
    stubs: dict[str, ModuleType] = {}
    for suffix in _WANTED:
        name = f"torchvision{suffix}"
        stub = _Stub(name)
        stub.__path__ = []
        stub.__spec__ = importlib.machinery.ModuleSpec(name, None)
        parent, _, child = name.rpartition(".")
        if parent:
            setattr(stubs[parent], child, stub)
        stubs[name] = stub
    sys.modules.update(stubs)
    try:
        return importlib.import_module("timm")
    finally:  # others ask whether torchvision is there
        for name in stubs:
            del sys.modules[name]
