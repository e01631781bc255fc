"""Check quickly whether the Hugging Face hub can be reached; its client retries for a long time."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager

from mae_ast.core.io.first_line import first_line

TIMEOUT_S = 3.0


@contextmanager
def cache_if_unreachable() -> Iterator[str | None]:
    """Limit ``huggingface_hub`` to its cache within the context if the hub cannot be reached.

    Yields:
        The reason why the hub cannot be reached; ``None`` if it can.
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
    """Return advice on using a model of the hub without network access."""
    from huggingface_hub import constants

    return (
        f"without a network, copy its folder in {constants.HF_HUB_CACHE} (HF_HOME) from a machine "
        "that has downloaded it"
    )


def _try_once(url: str) -> str | None:
    """Return why a URL did not answer within ``TIMEOUT_S``; ``None`` after any answer."""
    from huggingface_hub import get_session

    reasons = [f"{url} cannot be reached: no answer within {TIMEOUT_S:g} s"]

    def request() -> None:
        try:
            get_session().head(url, timeout=TIMEOUT_S)
        except Exception as error:  # depends on the HTTP client of huggingface_hub
            reason = first_line(error)
            reasons[0] = f"{url} cannot be reached: {reason}"
        else:
            reasons.clear()

    # DNS look-ups have no timeout, hence a thread, which may run for longer.
    thread = threading.Thread(target=request, daemon=True)
    thread.start()
    thread.join(TIMEOUT_S)
    return next(iter(reasons), None)
