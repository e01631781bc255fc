"""A short check that the Hugging Face hub can be reached; its client would retry for a minute."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager

TIMEOUT_S = 3.0


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


def offline_advice() -> str:
    """Return how to use a model of the hub where there is no network."""
    from huggingface_hub import constants

    return (
        f"without a network, copy its folder in {constants.HF_HUB_CACHE} (HF_HOME) from a machine "
        "that has downloaded it"
    )


def _try_once(url: str) -> str | None:
    """Return why there is no answer from a URL within ``TIMEOUT_S``; any answer will do."""
    from huggingface_hub import get_session

    reasons = [f"{url} cannot be reached: no answer within {TIMEOUT_S:g} s"]

    def ask() -> None:
        try:
            get_session().head(url, timeout=TIMEOUT_S)
        except Exception as error:  # of whichever HTTP client the library stands on
            words = (str(error).strip().splitlines() or [type(error).__name__])[0]
            reasons[0] = f"{url} cannot be reached: {words}"
        else:
            reasons.clear()

    # The name look-up has no time limit, hence a thread that may outlast it.
    asking = threading.Thread(target=ask, daemon=True)
    asking.start()
    asking.join(TIMEOUT_S)
    return next(iter(reasons), None)
