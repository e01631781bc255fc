"""``mae-ast demo``: pretrain on synthesised speech within minutes; needs a checkout."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path
from typing import Annotated

import typer


def demo(
    out: Annotated[Path, typer.Option(help="Folder for corpus, runs and results.")] = Path("demo"),
    updates: Annotated[int, typer.Option(min=1, help="Number of pretraining updates.")] = 1500,
    takes: Annotated[
        int, typer.Option(min=1, help="Number of times each voice says each word.")
    ] = 3,
    corpus_only: Annotated[
        bool, typer.Option("--corpus-only", help="Synthesise the corpus, OUT/corpus, only.")
    ] = False,
) -> None:
    """Synthesise a corpus of words, pretrain a small MAE-AST on it, probe and fine-tune it.

    The same command again runs only what is missing. It needs a checkout of the repository, whose
    folder scripts/demo is not part of an installed package.
    """
    import mae_ast
    from mae_ast.console import TRAINING, require

    checkout = Path(mae_ast.__file__).resolve().parents[1]
    if not (checkout / "scripts" / "demo" / "run.py").is_file():
        raise ValueError(
            f"the demo needs a checkout of the repository, and {checkout} has no scripts/demo; "
            "clone the repository and run 'make demo' there"
        )
    require(*TRAINING, "matplotlib")
    sys.path.insert(0, str(checkout))
    run = importlib.import_module("scripts.demo.run")
    if corpus_only:
        run.write_corpus(out, takes)
    else:
        run.run_demo(out, updates, takes)
