"""``python -m mae_ast.bench``: the command where ``mae-ast`` is not installed."""

from __future__ import annotations

import sys

import typer

from mae_ast.cli.bench import bench

if __name__ == "__main__":
    app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
    app.command(context_settings={"allow_extra_args": True})(bench)
    try:
        app()
    except (ValueError, OSError) as error:
        sys.exit(f"mae-ast: error: {error}")
