"""Cache of the sample rates that a manifest does not give: ``train.tsv.rates.npz`` beside it."""

from __future__ import annotations

import zipfile
from contextlib import suppress
from pathlib import Path

import numpy as np

from mae_ast.core.io.atomic import atomic_write


def read_cache(cache: Path, digest: str, rows: int) -> np.ndarray | None:
    """Return the cached sample rates, (rows,) int32; ``None`` if the cache is of no use.

    Args:
        cache: path of the cache.
        digest: SHA-256 of the manifest, as hexadecimal digits.
        rows: number of its rows.
    """
    try:
        with np.load(cache, allow_pickle=False) as stored:
            if str(stored["digest"]) != digest or len(stored["sample_rates"]) != rows:
                return None
            rates: np.ndarray = stored["sample_rates"].astype(np.int32)
            return rates
    except (OSError, EOFError, TypeError, ValueError, KeyError, zipfile.BadZipFile, AttributeError):
        return None


def write_cache(cache: Path, digest: str, rates: np.ndarray) -> None:
    """Write sample rates, unless the folder is read-only or the disk full."""
    # In a read-only folder nothing is cached, and the rates are probed again next time.
    with suppress(OSError), atomic_write(cache) as part, part.open("wb") as file:
        np.savez(file, digest=np.array(digest), sample_rates=rates)
