"""A short check that the Hugging Face hub can be reached; its client would retry for a minute."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

TIMEOUT_S = 5.0


@contextmanager
def cache_if_unreachable() -> Iterator[str | None]:
    """Limit ``huggingface_hub`` to its cache within the context if the hub cannot be reached.

    Yields:
        Why the hub cannot be reached; ``None`` if it can.
    """
    from huggingface_hub import constants

    earlier = constants.HF_HUB_OFFLINE
    reason = "HF_HUB_OFFLINE is set" if earlier else _try_once(constants.ENDPOINT)
    constants.HF_HUB_OFFLINE = earlier or reason is not None
    try:
        yield reason
    finally:
        constants.HF_HUB_OFFLINE = earlier


def _try_once(url: str) -> str | None:
    """Return why there is no answer from a URL; any answer will do."""
    from huggingface_hub import get_session

    try:
        get_session().head(url, timeout=TIMEOUT_S)
    except Exception as error:  # of whichever HTTP client the library stands on
        words = (str(error).strip().splitlines() or [type(error).__name__])[0]
        return f"{url} cannot be reached: {words}"
    return None
