"""The Hugging Face hub is queried for hub ids only, and only once if it cannot be reached."""

from __future__ import annotations

import socket
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from huggingface_hub import constants

import mae_ast
from mae_ast.finetune import initialize
from mae_ast.hub import load as pretrained
from mae_ast.hub import offline as hub
from mae_ast.hub.offline import cache_if_unreachable
from mae_ast.hub.sources import is_path
from mae_ast.models.ast import AstModelConfig
from mae_ast.trainer.command import train_command
from tests.web_server import WebServer, gives


@pytest.fixture
def offline(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Set a hub URL without a server, and an empty cache."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    monkeypatch.setattr(constants, "ENDPOINT", f"http://127.0.0.1:{port}")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))


@pytest.mark.parametrize(
    "source",
    [
        *("model.pt", "owner/model.ckpt", "a/b/c", "./a", "../a/b", "/a", "~/a", "runs/"),
        "tests/none",
    ],
)
def test_paths_are_recognised(source: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The last source begins with a folder that exists."""
    monkeypatch.chdir(Path(__file__).parents[2])
    assert is_path(source)


@pytest.mark.parametrize(
    "source", ["owner/name", "mae_ast_patch", "", "timm:a/b/c", "https://host/a/model.pt"]
)
def test_names_are_not_paths(source: str) -> None:
    assert not is_path(source)


def test_mistyped_path_is_not_looked_up_on_the_hub(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "runs/patch").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    monkeypatch.delattr(pretrained, "_from_hub")
    with pytest.raises(FileNotFoundError, match=r"^runs/ptch: no such checkpoint; runs has patch$"):
        mae_ast.load("runs/ptch")


def test_mistyped_path_is_resolved_from_the_working_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The training process runs in another folder, where ``runs`` does not exist."""
    (tmp_path / "runs").mkdir()
    monkeypatch.chdir(tmp_path)
    for source, expected in {
        "runs/ptch": f"'{tmp_path}/runs/ptch'",
        "owner/name": "'owner/name'",
        "https://host/a/model.pt": "'https://host/a/model.pt'",
    }.items():
        given = [f"model.checkpoint={source}"]
        command = train_command(tmp_path, "esc50", tmp_path, given, "finetune")
        assert f"model.checkpoint={expected}" in command


def test_unreachable_hub_is_queried_once(
    offline: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The hub's client alone would retry for more than 23 s."""
    connect, attempts = socket.create_connection, []

    def connect_and_count(address: Any, *args: Any, **kwargs: Any) -> socket.socket:
        attempts.append(address)
        return connect(address, *args, **kwargs)

    monkeypatch.setattr(socket, "create_connection", connect_and_count)
    with pytest.raises(FileNotFoundError) as error:
        mae_ast.load("owner/name")
    assert len(attempts) == 1
    text = str(error.value)
    assert text.startswith("owner/name: no such file")
    assert f"{constants.ENDPOINT} cannot be reached" in text
    assert f"copy its folder in {tmp_path / 'cache'} (HF_HOME)" in text
    assert "\n" not in text
    assert constants.HF_HUB_OFFLINE is False  # for others in this process


def test_unreachable_hub_is_queried_once_for_timm(
    offline: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []

    def create_model(name: str, pretrained: bool) -> None:
        asked.append(constants.HF_HUB_OFFLINE)
        raise OSError("off line")

    timm = SimpleNamespace(is_model=lambda name: True, create_model=create_model)
    monkeypatch.setitem(sys.modules, "timm", timm)
    with pytest.raises(
        FileNotFoundError, match=r"weights \(not in the cache, .* cannot be reached"
    ):
        initialize.start_ast(AstModelConfig(checkpoint="timm:vit_tiny_patch16_224"), 2)
    assert asked == [True]


def test_only_the_cache_is_used_without_the_hub(monkeypatch: pytest.MonkeyPatch) -> None:
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


def test_any_answer_means_the_hub_is_reachable(monkeypatch: pytest.MonkeyPatch) -> None:
    with WebServer() as server:
        server.scripts["/"] = [gives(b"")]  # HEAD is answered with 501
        monkeypatch.setattr(constants, "ENDPOINT", server.url("/"))
        with cache_if_unreachable() as reason:
            assert reason is None
            assert not constants.is_offline_mode()


def test_offline_mode_set_by_the_user_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with cache_if_unreachable() as reason:
        assert reason == "HF_HUB_OFFLINE is set"
    assert constants.is_offline_mode()


def test_silent_server_is_unreachable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hub, "TIMEOUT_S", 0.2)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        url = f"http://127.0.0.1:{silent.getsockname()[1]}"
        monkeypatch.setattr(constants, "ENDPOINT", url)
        with cache_if_unreachable() as reason:
            assert str(reason).startswith(f"{url} cannot be reached: ")
