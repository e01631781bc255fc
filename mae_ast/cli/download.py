"""``mae-ast download NAME``: a released model, or a file from any address, into the cache."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from mae_ast.fetch import registry
from mae_ast.fetch.cache import download as fetch
from mae_ast.fetch.cache import name_from_url


def download(
    name: Annotated[str, typer.Argument(help="As in `mae-ast models`, or an http(s) address.")],
    to: Annotated[
        Path | None, typer.Option(help="Folder; default: $MAE_AST_CACHE or the user's cache.")
    ] = None,
    sha256: Annotated[str | None, typer.Option(help="The checksum that it must have.")] = None,
) -> None:
    """Download a checkpoint, unless it is there, and print its path.

    What broke off goes on where it was; what is there is checked against its checksum.
    """
    if "://" in name:
        path = fetch([name], name_from_url(name), sha256, to)
    else:
        model = registry.find(name)
        path = fetch(model.urls, model.file_name, sha256 or model.sha256, to)
    typer.echo(path)
