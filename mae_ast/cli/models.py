"""``mae-ast models``: list the released models."""

from __future__ import annotations

from typing import TYPE_CHECKING

import typer

if TYPE_CHECKING:
    from mae_ast.hub.registry import ReleasedModel


def models() -> None:
    """List the released models and their scores.

    Shows scores after fine-tuning, URLs, and whether a model is in the cache.
    """
    from mae_ast.hub.registry import RELEASED, TASKS

    width = max(map(len, RELEASED))
    tasks = [f"{task} ({measure})" for task, measure in TASKS.items()]
    typer.echo("  ".join(["model".ljust(width), *tasks]) + "   (in %)")
    for model in RELEASED.values():
        scores = [
            f"{model.scores.get(task, '-'):>{len(head)}}"
            for task, head in zip(TASKS, tasks, strict=True)
        ]
        typer.echo("  ".join([model.name.ljust(width), *scores]))
    for model in RELEASED.values():
        typer.echo(f"\n{model.name}: {model.description}\n  {_where(model)}")
        for url in model.urls:
            typer.echo(f"  {url}")


def _where(model: ReleasedModel) -> str:
    from mae_ast.hub.download import cache_folder

    path = cache_folder() / model.file_name
    return f"cached: {path}" if path.is_file() else "not cached"
