"""The Hugging Face hub, reached or not."""

from __future__ import annotations

import socket

from huggingface_hub import constants

from mae_ast.fetch.hub import cache_if_unreachable
from tests.web_server import WebServer, gives


def test_without_the_hub_only_the_cache_is_used(monkeypatch):
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{unused.getsockname()[1]}"
        monkeypatch.setattr(constants, "ENDPOINT", url)
        with cache_if_unreachable() as reason:
            assert reason is not None
            assert reason.startswith(f"{url} cannot be reached: ")
            assert "\n" not in reason
            assert constants.is_offline_mode()
    assert not constants.is_offline_mode()


def test_any_answer_of_the_hub_is_enough(monkeypatch):
    with WebServer() as server:
        server.scripts["/"] = [gives(b"")]  # HEAD is answered with 501
        monkeypatch.setattr(constants, "ENDPOINT", server.url("/"))
        with cache_if_unreachable() as reason:
            assert reason is None
            assert not constants.is_offline_mode()


def test_offline_mode_stays_as_the_user_set_it(monkeypatch):
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with cache_if_unreachable() as reason:
        assert reason == "HF_HUB_OFFLINE is set"
    assert constants.is_offline_mode()
