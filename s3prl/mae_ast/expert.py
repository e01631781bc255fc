"""s3prl upstream: the class that s3prl imports from ``upstream/mae_ast/expert.py``."""

from mae_ast.superb.expert import UpstreamExpert

__all__ = ["UpstreamExpert"]
