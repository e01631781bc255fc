"""Joining fairseq."""

from __future__ import annotations


def register() -> None:
    """Add this project's tasks, models and criterions to fairseq's registries.

    ``common.user_dir`` does the same, but not in a program that imported ``mae_ast`` before:
    fairseq then takes it for registered. Calling this more than once is harmless.
    """
    import mae_ast.models.ast
    import mae_ast.models.audio_mae
    import mae_ast.models.classifier
    import mae_ast.models.mae_ast
    import mae_ast.models.ssast
    import mae_ast.tasks.mae_ast_classification
    import mae_ast.tasks.mae_ast_pretraining  # noqa: F401
