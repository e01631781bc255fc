"""Register the project's tasks, models and criterions with fairseq."""

from __future__ import annotations


def register() -> None:
    """Add this project's tasks, models and criterions to fairseq's registries.

    ``common.user_dir`` does the same, except in a program that has already imported ``mae_ast``:
    fairseq then assumes that it is registered. May be called more than once.
    """
    import mae_ast.models.ast
    import mae_ast.models.classifier
    import mae_ast.models.pretraining
    import mae_ast.tasks.mae_ast_classification
    import mae_ast.tasks.mae_ast_pretraining  # noqa: F401
