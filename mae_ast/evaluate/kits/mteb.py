"""mteb's encoder protocol for audio: batches of recordings -> (N, W).

``mteb.evaluate(MaeAstEncoder("runs/patch"), tasks)`` evaluates a model.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from mae_ast.core.io.recordings import read_recording
from mae_ast.core.models.registry import SYSTEMS, system_name
from mae_ast.evaluate.kits.embedder import Embedder


class MaeAstEncoder:
    """Frozen encoder with mteb's ``EncoderProtocol``; embeddings are compared by their cosine.

    Args:
        model_name: model, as in :func:`mae_ast.load`.
        revision: of the results; default: a hash of configuration, weights and layers.
        device: PyTorch device; default: cuda if available.
        layers: as in :class:`Embedder`.
        options: ignored; mteb passes its own.
    """

    def __init__(
        self,
        model_name: str | None = None,
        revision: str | None = None,
        *,
        device: str | None = None,
        layers: int | str | Sequence[int] | None = None,
        **options: Any,
    ) -> None:
        self.embedder = Embedder(model_name, layers)
        self.revision = revision or fingerprint(self.embedder)
        self.embedder.to(device or ("cuda" if torch.cuda.is_available() else "cpu"))

    def encode(
        self, inputs: Iterable[Mapping[str, Any]], *, task_metadata: Any = None, **options: Any
    ) -> np.ndarray:
        """Return one embedding per recording, (N, W) float32.

        Args:
            inputs: data loader of batches; ``batch["audio"]`` is a list of recordings in any form
                that ``extract_features`` accepts, with their sample rates.
            task_metadata, options: ignored; mteb passes its own.

        Raises:
            ValueError: a batch has no audio.
        """
        if hasattr(inputs, "collate_fn"):
            inputs.collate_fn = _collate  # mteb's default cannot stack clips of different lengths
        found = []
        for batch in inputs:
            if "audio" not in batch:
                raise ValueError(f"a batch of {', '.join(batch)}; only audio can be embedded")
            clips = [read_recording(item, None, "recording") for item in batch["audio"]]
            found.append(self.embedder.clips(clips).numpy())
        return np.concatenate(found)

    def similarity(self, embeddings1: Any, embeddings2: Any) -> Tensor:
        """Return the cosine of all pairs: (N, W) and (M, W) -> (N, M)."""
        one, other = (_unit(each) for each in (embeddings1, embeddings2))
        return one @ other.T

    def similarity_pairwise(self, embeddings1: Any, embeddings2: Any) -> Tensor:
        """Return the cosine of corresponding rows: twice (N, W) -> (N,)."""
        return (_unit(embeddings1) * _unit(embeddings2)).sum(-1)

    @property
    def mteb_model_meta(self) -> Any:
        """Return mteb's description of the model."""
        from mteb.models import ModelMeta

        model = self.embedder.model
        required = [name for name, field in ModelMeta.model_fields.items() if field.is_required()]
        return ModelMeta(
            **dict.fromkeys(required)
            | {
                "name": f"mae-ast/{Path(self.embedder.source).name}",
                "revision": self.revision,
                "n_parameters": sum(value.numel() for value in model.parameters()),
                "embed_dim": self.embedder.width,
                "framework": ["PyTorch"],
                "similarity_fn_name": "cosine",
                "use_instructions": False,
                "modalities": ["audio"],
                "reference": SYSTEMS[system_name(model.config)].paper_url,
            }
        )


def fingerprint(embedder: Embedder) -> str:
    """Return a hash of configuration, weights and layers, which mteb files results under."""
    digest = hashlib.sha256(repr((embedder.model.config, embedder.layers)).encode())
    for value in embedder.model.state_dict().values():
        digest.update(value.cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()[:12]


def _collate(rows: list[dict[str, Any]]) -> dict[str, list[Any]]:
    return {key: [row[key] for row in rows] for key in rows[0]}


def _unit(embeddings: Any) -> Tensor:
    return F.normalize(torch.as_tensor(embeddings).float(), dim=-1)
