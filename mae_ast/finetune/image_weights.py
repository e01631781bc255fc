"""Weights of image ViTs, from the package timm or from files: ``timm:NAME`` -> our state dict."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mae_ast.core.checkpoints.reader import read_state
from mae_ast.core.checkpoints.timm import Weights, from_timm, is_timm
from mae_ast.core.checkpoints.wrappers import MODEL
from mae_ast.core.io.first_line import first_line
from mae_ast.core.models.config import EncoderConfig

TIMM = "timm:"  # prefix of names of timm models
_TORCH_FILES = (".pth", ".pt", ".bin")


def timm_weights(
    config: EncoderConfig, source: str, random_weights: bool = False
) -> Weights | None:
    """Read encoder weights from a timm model or file; ``None`` if the source is neither.

    Args:
        config: configuration of the encoder.
        source: ``timm:NAME``, or a file with the state dict of a timm ViT.
        random_weights: do not download the weights of ``timm:NAME``.

    Raises:
        ValueError, FileNotFoundError: the source does not exist, or is of another size or kind.
    """
    state, heads = None, None
    if source.startswith(TIMM):
        network = _from_timm_package(source.removeprefix(TIMM), pretrained=not random_weights)
        blocks = getattr(network, "blocks", None)
        heads = blocks[0].attn.num_heads if blocks and hasattr(blocks[0], "attn") else None
        state = network.state_dict()
    else:
        state = _timm_state(Path(source))
    return None if state is None else from_timm(config, state, heads)


def _from_timm_package(name: str, pretrained: bool) -> Any:
    """Create a timm model; its weights are downloaded to timm's own cache."""
    try:
        import timm
    except Exception as error:  # timm imports torchvision, which may not match torch
        raise ValueError(
            f"needs the package timm, which cannot be imported ({first_line(error)}); pip install "
            "'mae-ast[timm]'"
        ) from error
    if not timm.is_model(name):
        near = difflib.get_close_matches(name, timm.list_models(), n=3)
        hint = f"; did you mean {', '.join(near)}?" if near else ""
        raise ValueError(f"timm {timm.__version__} has no model {name!r}{hint}")
    if not pretrained:
        return timm.create_model(name, pretrained=False)
    from mae_ast.hub.offline import cache_if_unreachable, offline_advice  # imports the hub's client

    with cache_if_unreachable() as offline:
        try:
            return timm.create_model(name, pretrained=True)
        except Exception as error:  # network, hub or cache errors, of many classes
            reason = first_line(error)
            if offline:
                reason = f"not in the cache, and {offline}; {offline_advice()}"
            raise FileNotFoundError(f"cannot load its weights ({reason})") from error


def _timm_state(path: Path) -> Mapping[str, Any] | None:
    """Read a timm state dict from a file; ``None`` if it does not exist or is of another kind."""
    if not path.is_file():
        return None
    if path.suffix == ".safetensors":
        from safetensors import SafetensorError, safe_open

        try:
            with safe_open(path, "pt") as file:
                names = list(file.keys())
                return {name: file.get_tensor(name) for name in names} if is_timm(names) else None
        except SafetensorError:
            return None  # reported when the file is read as a checkpoint of ours
    if path.suffix not in _TORCH_FILES:
        return None
    state = read_state(path).get(MODEL)
    return state if isinstance(state, Mapping) and is_timm(state) else None
