"""Entry points of the upstream for s3prl and ``torch.hub``.

They are called as ``entry(ckpt=..., model_config=..., refresh=...)``; other arguments are passed to
s3prl's base class. Each accepts ``layout="tokens"``, see :mod:`mae_ast.superb.expert`; s3prl, which
does not pass this argument, uses ``mae_ast_local_tokens`` instead.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mae_ast.superb.expert import UpstreamExpert


def mae_ast_local(ckpt: str | os.PathLike[str], **kwargs: Any) -> UpstreamExpert:
    """Load the upstream from a checkpoint ``ckpt``."""
    from mae_ast.superb.expert import UpstreamExpert

    return UpstreamExpert(ckpt, **kwargs)


def mae_ast_local_tokens(ckpt: str | os.PathLike[str], **kwargs: Any) -> UpstreamExpert:
    """Load the upstream from a checkpoint ``ckpt``, with one vector per token."""
    return mae_ast_local(ckpt, **{**kwargs, "layout": "tokens"})


def mae_ast_url(ckpt: str, refresh: bool = False, **kwargs: Any) -> UpstreamExpert:
    """Load the upstream from a checkpoint at a URL; ``refresh`` downloads it again."""
    from mae_ast.hub.download import name_from_url

    return mae_ast_local(_fetch([ckpt], name_from_url(ckpt), None, refresh), **kwargs)


def mae_ast_patch(refresh: bool = False, **kwargs: Any) -> UpstreamExpert:
    """Load the released model with 16 x 16 patches, 12 layers, chunk masks."""
    return _released("mae_ast_patch", refresh, **kwargs)


def mae_ast_frame(refresh: bool = False, **kwargs: Any) -> UpstreamExpert:
    """Load the released model with 2 x 128 frames, 12 layers, random masks."""
    return _released("mae_ast_frame", refresh, **kwargs)


def _released(name: str, refresh: bool, ckpt: object = None, **kwargs: Any) -> UpstreamExpert:
    from mae_ast.hub.registry import find

    model = find(name)  # s3prl passes ckpt=None, from its option -k
    return mae_ast_local(_fetch(model.urls, model.file_name, model.sha256, refresh), **kwargs)


def _fetch(
    urls: Sequence[str], name: str, sha256: str | None, refresh: bool
) -> str | os.PathLike[str]:
    from mae_ast.hub import download as cache

    if refresh:  # the cached file is only replaced after a complete download
        folder = cache.cache_folder()
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder) as fresh:
            new = cache.download(urls, name, sha256, Path(fresh))
            for file in (f"{name}.sha256", name):
                if new.with_name(file).exists():
                    os.replace(new.with_name(file), folder / file)
    return cache.download(urls, name, sha256)
