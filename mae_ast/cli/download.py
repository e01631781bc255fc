"""``mae-ast download NAME``: download a released model, or a file by its URL."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from mae_ast.cli.options import model_argument


def download(
    name: Annotated[
        str,
        model_argument(
            "NAME", "Name of a released model (see 'mae-ast models'), or an http(s) URL."
        ),
    ],
    to: Annotated[
        Path | None,
        typer.Option(help="Target folder; default: $MAE_AST_CACHE, or the user's cache folder."),
    ] = None,
    sha256: Annotated[
        str | None, typer.Option(help="Expected SHA-256 checksum of the file.")
    ] = None,
    verify: Annotated[
        bool,
        typer.Option(
            "--verify",
            help="Check the SHA-256 of a cached file even if its size and modification time are "
            "those of the last check.",
        ),
    ] = False,
) -> None:
    """Download a checkpoint and print its path.

    A file in the cache is used without a download unless it has changed; an interrupted download
    resumes.
    """
    from mae_ast.hub import registry
    from mae_ast.hub.download import download as fetch
    from mae_ast.hub.download import name_from_url

    if "://" in name:
        path = fetch([name], name_from_url(name), sha256, to, verify)
    else:
        model = registry.find(name)
        path = fetch(model.urls, model.file_name, sha256 or model.sha256, to, verify)
    typer.echo(path)
