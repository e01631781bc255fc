"""Read clips of a manifest; log and skip unreadable ones."""

from __future__ import annotations

import logging

from torch import Tensor

from mae_ast.core.io.audio import AudioError, read_long_audio
from mae_ast.core.io.manifest import Manifest

logger = logging.getLogger(__name__)


def read_or_skip(manifest: Manifest, row: int, min_samples: int) -> Tensor | None:
    """Read a whole clip, (L,) int16 at 16 kHz.

    Returns:
        The samples; ``None`` if the clip cannot be decoded or is shorter than ``min_samples`` (one
        patch), and the reason is logged.
    """
    path = manifest.audio_path(row)
    try:
        samples = read_long_audio(path)
        check_length(samples, min_samples, path)
    except (AudioError, OSError) as error:
        logger.warning("%s: skipped: %s", manifest.where(row), error)
        return None
    return samples


def check_length(samples: Tensor, min_samples: int, path: object) -> None:
    """Raise an error for a clip shorter than one patch.

    Raises:
        AudioError: ``samples`` has fewer than ``min_samples``.
    """
    if len(samples) < min_samples:
        raise AudioError(
            f"{path}: {len(samples)} samples at 16 kHz are shorter than one patch ({min_samples})"
        )
