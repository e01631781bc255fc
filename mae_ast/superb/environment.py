"""Context managers in which s3prl runs in this process."""

from __future__ import annotations

import builtins
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from mae_ast.core.io.atomic import atomic_write


@contextmanager
def patched_s3prl(upstream: str) -> Iterator[None]:
    """Patch s3prl's dependencies, and register our hub's entry ``upstream`` with s3prl."""
    from mae_ast.superb import compat

    compat.install()
    import s3prl.hub

    from mae_ast.superb import hub

    setattr(s3prl.hub, upstream, getattr(hub, upstream))
    original = builtins.isinstance  # s3prl replaces it
    try:
        yield
    finally:
        builtins.isinstance = original


@contextmanager
def atomic_saves() -> Iterator[None]:
    """Make ``torch.save`` atomic: a run killed while saving leaves no partial file."""
    save = torch.save

    def save_atomically(state: object, file: Any, *args: Any, **kwargs: Any) -> None:
        if not isinstance(file, (str, os.PathLike)):
            save(state, file, *args, **kwargs)
            return
        with atomic_write(Path(file)) as part:
            try:
                save(state, part, *args, **kwargs)
            except RuntimeError as error:  # raised by torch on a full disk
                raise OSError(" ".join(str(error).split())) from error

    torch.save = save_atomically  # type: ignore[assignment]
    try:
        yield
    finally:
        torch.save = save


@contextmanager
def command_line(arguments: list[str]) -> Iterator[None]:
    """Set ``sys.argv`` to the command line of s3prl's ``run_downstream``."""
    original = sys.argv
    sys.argv = ["run_downstream.py", *arguments]
    try:
        yield
    finally:
        sys.argv = original
