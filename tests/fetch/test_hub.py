"""The Hugging Face hub is asked for hub ids only, and once where it cannot be reached."""

from __future__ import annotations

import socket
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
from huggingface_hub import constants

import mae_ast
from mae_ast import pretrained, starts
from mae_ast.core.config_ast import AstConfig
from mae_ast.fetch import hub
from mae_ast.fetch.hub import hub_or_cache, is_reachable
from mae_ast.sources import is_path
from mae_ast.train_command import train_command
from tests.web_server import WebServer


@pytest.fixture
def offline(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """No server at the hub's address, and an empty cache."""
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
def test_paths(source: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The last one begins with a folder that exists."""
    monkeypatch.chdir(Path(__file__).parents[2])
    assert is_path(source)


@pytest.mark.parametrize(
    "source", ["owner/name", "mae_ast_patch", "", "timm:a/b/c", "https://host/a/model.pt"]
)
def test_names(source: str) -> None:
    assert not is_path(source)


def test_a_mistyped_path_is_not_looked_for_on_the_hub(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "runs/patch").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    monkeypatch.delattr(pretrained, "_from_hub")
    with pytest.raises(FileNotFoundError, match=r"^runs/ptch: no such checkpoint; runs has patch$"):
        mae_ast.load("runs/ptch")


def test_a_mistyped_path_of_a_training_is_one_from_here(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The training itself works in another folder, where ``runs`` does not exist."""
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


def test_a_hub_that_cannot_be_reached_is_asked_once(offline: None, tmp_path: Path) -> None:
    """Its client would try for 23 s and more."""
    begin = time.monotonic()
    with pytest.raises(FileNotFoundError) as error:
        mae_ast.load("owner/name")
    assert time.monotonic() - begin < 15
    text = str(error.value)
    assert text.startswith("owner/name: no such file, and not to be had from the Hugging Face hub")
    assert f"{constants.ENDPOINT} does not answer" in text
    assert f"copy its folder in {tmp_path / 'cache'} (HF_HOME)" in text
    assert "\n" not in text
    assert constants.HF_HUB_OFFLINE is False  # for others in this process


def test_the_same_of_timm(offline: None, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def create_model(name: str, pretrained: bool) -> None:
        asked.append(constants.HF_HUB_OFFLINE)
        raise OSError("off line")

    timm = SimpleNamespace(is_model=lambda name: True, create_model=create_model)
    monkeypatch.setitem(sys.modules, "timm", timm)
    with pytest.raises(FileNotFoundError, match=r"cannot load its weights .* does not answer"):
        starts.ast_encoder(AstConfig(), "timm:vit_tiny_patch16_224")
    assert asked == [True]


def test_a_hub_that_is_not_to_be_asked(offline: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.delattr(hub, "is_reachable")
    with hub_or_cache() as why_not:
        assert why_not.startswith("HF_HUB_OFFLINE is set; without a network, copy")


def test_any_answer_is_one(offline: None, monkeypatch: pytest.MonkeyPatch) -> None:
    assert not is_reachable()
    with WebServer() as server:  # which knows no HEAD, and says so
        monkeypatch.setattr(constants, "ENDPOINT", server.url("/"))
        assert is_reachable()


def test_a_server_that_says_nothing(offline: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hub, "TRY_SECONDS", 0.2)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        monkeypatch.setattr(constants, "ENDPOINT", f"http://127.0.0.1:{silent.getsockname()[1]}")
        assert not is_reachable()
