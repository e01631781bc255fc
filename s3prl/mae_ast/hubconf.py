"""Entry points for s3prl (copy to ``upstream/mae_ast``) and ``torch.hub`` (source="local")."""

from mae_ast.superb.hub import (
    mae_ast_frame,
    mae_ast_local,
    mae_ast_local_tokens,
    mae_ast_patch,
    mae_ast_url,
)

__all__ = [
    "mae_ast_frame",
    "mae_ast_local",
    "mae_ast_local_tokens",
    "mae_ast_patch",
    "mae_ast_url",
]
