"""Where s3prl looks for an upstream's class."""

from mae_ast.superb.expert import UpstreamExpert

__all__ = ["UpstreamExpert"]
