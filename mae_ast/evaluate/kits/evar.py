"""EVAR's audio representation: waveforms (B, L) -> (B, D), and (B, D, T) of the time steps.

EVAR finds a representation by its name in a module ``evar.ar_*``: its folder needs a file
``evar/ar_mae_ast.py`` with ``from mae_ast.evaluate.kits.evar import AR_MaeAst``.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from mae_ast.evaluate.kits.embedder import Embedder


class _WithoutEvar(nn.Module):
    """Stand-in for EVAR's base class, which is importable in EVAR's folder only."""

    def __init__(self, cfg: Any) -> None:
        super().__init__()
        self.cfg = cfg


def _base_class() -> Any:
    try:
        from evar.ar_base import BaseAudioRepr
    except ImportError:
        return _WithoutEvar
    return BaseAudioRepr


class AR_MaeAst(_base_class()):  # type: ignore[misc]  # noqa: N801  # named as EVAR names them
    """Frozen encoder, for EVAR's linear evaluation.

    Args:
        cfg: EVAR's configuration. ``weight_file`` and, optionally, ``layers`` are the arguments of
            :class:`Embedder`; ``feature_d`` is the width of the embeddings.

    Raises:
        ValueError: ``sample_rate`` or ``feature_d`` do not suit the model.
    """

    def __init__(self, cfg: Any) -> None:
        super().__init__(cfg)
        self.embedder = Embedder(cfg.get("weight_file"), cfg.get("layers"))
        for key, ours in (
            ("sample_rate", self.embedder.sample_rate),
            ("feature_d", self.embedder.width),
        ):
            if cfg.get(key, ours) != ours:
                raise ValueError(f"{key}: {cfg[key]} in EVAR's configuration; must be {ours}")

    def precompute(self, device: Any, data_loader: Any) -> None:
        """Compute nothing: the model contains its own statistics of the input."""

    def encode_frames(self, batch_audio: Tensor) -> Tensor:
        """Return the embeddings of all time steps: (B, L) -> (B, D, T)."""
        embeddings, _ = self.embedder.time_steps(batch_audio)
        return embeddings.transpose(1, 2)

    def forward(self, batch_audio: Tensor) -> Tensor:
        """Return one embedding per clip: (B, L) -> (B, D)."""
        return self.embedder.clips(batch_audio).to(batch_audio.device)
