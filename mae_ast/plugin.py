"""Joining fairseq: registration, and errors that a person can read."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager


def register() -> None:
    """Add this project's tasks, models and criterions to fairseq's registries.

    ``common.user_dir`` does the same, but not in a program that imported ``mae_ast`` before:
    fairseq then takes it for registered. Calling this more than once is harmless.
    """
    import mae_ast.models.mae_ast
    import mae_ast.tasks.mae_ast_pretraining  # noqa: F401


@contextmanager
def user_errors() -> Iterator[None]:
    """End the program with one line where a person's input is wrong.

    The core raises ``ValueError`` or ``FileNotFoundError`` with a message for people; from within
    fairseq it would come out below a traceback of many frames.
    """
    try:
        yield
    except (ValueError, FileNotFoundError) as error:
        raise SystemExit(f"mae-ast: error: {error}") from error
