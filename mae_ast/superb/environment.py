"""What s3prl's program finds around it while it runs in this process."""

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
def bridged(upstream: str) -> Iterator[None]:
    """Make s3prl run here, with the entry ``upstream`` of our hub among its upstreams."""
    from mae_ast.superb import compat

    compat.install()
    import s3prl.hub

    from mae_ast.superb import hub

    setattr(s3prl.hub, upstream, getattr(hub, upstream))
    usual = builtins.isinstance  # s3prl puts its own in its place
    try:
        yield
    finally:
        builtins.isinstance = usual


@contextmanager
def whole_files() -> Iterator[None]:
    """With a ``torch.save`` that leaves no half file to a run that is killed while it saves."""
    save = torch.save

    def save_whole(state: object, file: Any, *args: Any, **kwargs: Any) -> None:
        if not isinstance(file, (str, os.PathLike)):
            save(state, file, *args, **kwargs)
            return
        with atomic_write(Path(file)) as part:
            try:
                save(state, part, *args, **kwargs)
            except RuntimeError as error:  # as torch calls a full disk
                raise OSError(" ".join(str(error).split())) from error

    torch.save = save_whole  # type: ignore[assignment]
    try:
        yield
    finally:
        torch.save = save


@contextmanager
def command_line(arguments: list[str]) -> Iterator[None]:
    """With ``sys.argv`` as s3prl is to see it."""
    usual = sys.argv
    sys.argv = ["run_downstream.py", *arguments]
    try:
        yield
    finally:
        sys.argv = usual
