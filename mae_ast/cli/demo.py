"""``mae-ast demo``: the main job on real audio in minutes."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def demo(
    out: Annotated[Path, typer.Option(help="Folder for corpus, runs and results.")] = Path("demo"),
    updates: Annotated[int, typer.Option(min=1, help="Steps of pretraining.")] = 1500,
    takes: Annotated[int, typer.Option(min=1, help="Times each voice says each word.")] = 3,
) -> None:
    """Speak a corpus of words, pretrain a small MAE-AST on it, probe and fine-tune it.

    The same command again makes only what is missing.
    """
    from mae_ast.demo.run import run_demo

    run_demo(out, updates, takes)
