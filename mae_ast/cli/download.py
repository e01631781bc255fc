"""``mae-ast download NAME``: a released model, or a file from any address, into the cache."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def download(
    name: Annotated[
        str,
        typer.Argument(help="Name of a released model (see `mae-ast models`), or an http(s) URL."),
    ],
    to: Annotated[
        Path | None,
        typer.Option(help="Target folder; default: $MAE_AST_CACHE or the user's cache."),
    ] = None,
    sha256: Annotated[str | None, typer.Option(help="Expected SHA-256 checksum.")] = None,
) -> None:
    """Download a checkpoint, unless it is in the cache, and print its path.

    An interrupted download resumes; a cached file is verified against its checksum.
    """
    from mae_ast.hub import registry
    from mae_ast.hub.download import download as fetch
    from mae_ast.hub.download import name_from_url

    if "://" in name:
        path = fetch([name], name_from_url(name), sha256, to)
    else:
        model = registry.find(name)
        path = fetch(model.urls, model.file_name, sha256 or model.sha256, to)
    typer.echo(path)
