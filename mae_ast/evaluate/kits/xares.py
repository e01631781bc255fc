"""X-ARES encoder: waveforms (B, L) -> (B, T', output_dim).

``python -m xares.run mae_ast/evaluate/kits/xares.py TASK...`` evaluates it: X-ARES imports the
module by this path and constructs its one class that ends with Encoder, without arguments.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from mae_ast.evaluate.kits.embedder import Embedder


class MaeAstEncoder(Embedder):
    """Frozen encoder with the attributes that X-ARES asks for; arguments as :class:`Embedder`."""

    def __init__(
        self, source: str | None = None, layers: int | str | Sequence[int] | None = None
    ) -> None:
        super().__init__(source, layers)
        self.sampling_rate = self.sample_rate
        self.output_dim = self.width
        self.hop_size_in_ms = self.step_ms

    def forward(self, audio: Tensor) -> Tensor:
        """Return the embeddings of all time steps: (B, L) or (L,) -> (B, T', output_dim)."""
        embeddings, _ = self.time_steps(audio[None] if audio.ndim == 1 else audio)
        return embeddings
