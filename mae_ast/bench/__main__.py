"""``python -m mae_ast.bench``: ``mae-ast bench`` where the command is not installed."""

from __future__ import annotations

import sys

import typer

from mae_ast.cli.bench import bench
from mae_ast.console import describe, named_extras

if __name__ == "__main__":
    app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
    app.command()(bench)
    try:
        with named_extras():
            app()
    except (ValueError, OSError) as error:
        sys.exit(f"mae-ast: error: {describe(error)}")
