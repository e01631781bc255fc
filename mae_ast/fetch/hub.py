"""Ask the Hugging Face hub once whether it answers, and use its cache alone if not.

Its client tries each file six times, for half a minute where there is no network.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager

from huggingface_hub import constants, get_session

TRY_SECONDS = 3.0


def is_reachable() -> bool:
    """Return whether the hub answers a request within ``TRY_SECONDS``, whatever it answers."""
    answered = threading.Event()

    def ask() -> None:
        try:
            get_session().head(constants.ENDPOINT, timeout=TRY_SECONDS, follow_redirects=False)
        except Exception:  # of many classes: no network, no name, no route, a proxy
            return
        answered.set()

    # The name look-up knows no time limit, hence a thread that may outlast it.
    asking = threading.Thread(target=ask, daemon=True)
    asking.start()
    asking.join(TRY_SECONDS)
    return answered.is_set()


@contextmanager
def hub_or_cache() -> Iterator[str]:
    """Let the hub's client use its cache alone, if the hub does not answer or must not be asked.

    Yields:
        Why the hub is not asked, for messages, and how to work without it; empty if it is asked.
    """
    copy = (
        f"without a network, copy its folder in {constants.HF_HUB_CACHE} (HF_HOME) from a machine "
        "that has downloaded it"
    )
    if constants.HF_HUB_OFFLINE:
        yield f"HF_HUB_OFFLINE is set; {copy}"
    elif is_reachable():
        yield ""
    else:
        constants.HF_HUB_OFFLINE = True
        try:
            yield f"{constants.ENDPOINT} does not answer; {copy}"
        finally:
            constants.HF_HUB_OFFLINE = False
