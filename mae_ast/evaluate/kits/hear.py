"""HEAR's common API: waveforms (n_sounds, n_samples) -> scene and timestamp embeddings.

``hear-validator mae_ast.evaluate.kits.hear --model runs/patch`` validates this module, and
``heareval`` evaluates it. The API is that of HEAR 2021 (Turian et al. 2022, arXiv 2203.03022).
"""

from __future__ import annotations

from torch import Tensor

from mae_ast.evaluate.kits.embedder import Embedder


class HearModel(Embedder):
    """A model with the attributes that HEAR asks for; arguments as :class:`Embedder`."""

    @property
    def scene_embedding_size(self) -> int:
        """Width of an embedding of a clip."""
        return self.width

    @property
    def timestamp_embedding_size(self) -> int:
        """Width of an embedding of a time step."""
        return self.width


def load_model(model_file_path: str = "") -> HearModel:
    """Load a model.

    Args:
        model_file_path: as in :func:`mae_ast.load`; "": the environment variable
            ``MAE_AST_MODEL``, or else ``mae_ast_patch``. ``MAE_AST_LAYERS`` chooses the layers.
    """
    return HearModel(model_file_path)


def get_scene_embeddings(audio: Tensor, model: HearModel) -> Tensor:
    """Return one embedding per sound, (n_sounds, scene_embedding_size) float32.

    Args:
        audio: (n_sounds, n_samples) float in [-1, 1], at the model's ``sample_rate``.
        model: of :func:`load_model`.
    """
    return model.clips(audio).to(audio.device)


def get_timestamp_embeddings(audio: Tensor, model: HearModel) -> tuple[Tensor, Tensor]:
    """Return the embeddings of all time steps.

    Args:
        audio: (n_sounds, n_samples) float in [-1, 1], at the model's ``sample_rate``.
        model: of :func:`load_model`.

    Returns:
        (n_sounds, n_timestamps, timestamp_embedding_size) float32, and the centres of the time
        steps in milliseconds, (n_sounds, n_timestamps) float32.
    """
    embeddings, times_s = model.time_steps(audio)
    timestamps = (times_s * 1000).float().to(audio.device)
    return embeddings, timestamps.expand(len(embeddings), -1)
