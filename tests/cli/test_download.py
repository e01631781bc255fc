"""``mae-ast download`` and ``mae-ast models``."""

import hashlib
import os
import re
from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner

from mae_ast.cli.download import download
from mae_ast.cli.models import models
from mae_ast.hub import registry
from tests.web_server import WebServer, fails, gives

app = typer.Typer()
app.command("download")(download)
app.command("models")(models)

DATA = b"weights" * 1000


@pytest.fixture
def server():
    with WebServer() as running:
        yield running


@pytest.fixture(autouse=True)
def cache(monkeypatch, tmp_path):
    monkeypatch.setenv("NO_PROXY", "*")
    monkeypatch.setenv("MAE_AST_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def run(*arguments):
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def test_a_released_model_is_downloaded_by_name(server, cache, monkeypatch):
    model = registry.ReleasedModel(
        "tiny",
        (server.url("/a/m.pt", fails(404)), server.url("/b/m.pt", gives(DATA))),
        None,
        "",
        {},
    )
    monkeypatch.setitem(registry.RELEASED, "tiny", model)
    assert "tiny: \n  not cached\n" in run("models").output
    done = run("download", "tiny")
    assert done.exit_code == 0
    assert done.output == f"{cache / 'm.pt'}\n"
    assert (cache / "m.pt").read_bytes() == DATA
    assert f"tiny: \n  cached: {cache / 'm.pt'}\n" in run("models").output


def test_a_url_is_downloaded_into_a_given_folder(server, tmp_path):
    url = server.url("/path/model.pt", gives(DATA))
    done = run(
        "download", url, "--to", tmp_path / "to", "--sha256", hashlib.sha256(DATA).hexdigest()
    )
    assert done.exit_code == 0
    path = next((tmp_path / "to").glob("model-*.pt"))
    assert done.output == f"{path}\n"
    assert path.read_bytes() == DATA


def test_a_cached_file_is_verified_on_request(server, cache):
    url = server.url("/m.pt", gives(DATA))
    path = Path(run("download", url).output.strip())
    os.utime(path, (0, 0))
    run("download", url)  # hashes it, and records its time
    path.write_bytes(DATA[:-1] + b"?")
    os.utime(path, (0, 0))
    assert run("download", url).output == f"{path}\n"
    assert path.read_bytes() != DATA
    assert run("download", url, "--verify").output == f"{path}\n"
    assert path.read_bytes() == DATA


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ("huge",),
            "huge: not a released model; the released models are mae_ast_patch, mae_ast_frame",
        ),
        (("ftp://host/file",), "ftp://host/file: not a URL of the form https://host/path/file"),
        (("mae_ast_patch", "--sha256", "1"), "sha256 '1': expected 64 hexadecimal digits"),
    ],
)
def test_invalid_input_ends_in_one_line(arguments, message):
    error = run("download", *arguments).exception
    assert isinstance(error, ValueError)
    assert str(error) == message


def test_a_wrong_checksum_is_one_line(server, cache):
    done = run("download", server.url("/m.pt", gives(DATA)), "--sha256", "0" * 64)
    assert isinstance(done.exception, OSError)
    assert "\n" not in str(done.exception)
    assert f"expected sha256 {'0' * 64}, got {hashlib.sha256(DATA).hexdigest()}" in str(
        done.exception
    )
    assert list(cache.iterdir()) == []


def test_models_prints_each_score_below_its_task(cache):
    done = run("models")
    assert done.exit_code == 0
    heads, patch, frame = done.output.splitlines()[:3]
    rows = [re.split(r"\s{2,}", line.strip()) for line in (heads, patch, frame)]
    assert rows[0] == [
        *("model", "AS-20K (mAP)", "ESC-50 (accuracy)", "KS2 (accuracy)", "KS1 (accuracy)"),
        *("SID (accuracy)", "ER (accuracy)", "(in %)"),
    ]
    assert rows[1] == ["mae_ast_patch", "30.6", "90.0", "97.9", "95.8", "-", "59.8"]
    assert rows[2] == ["mae_ast_frame", "23.0", "88.9", "98.0", "97.3", "63.3", "62.1"]
    for model in registry.RELEASED.values():
        for url in model.urls:
            assert f"  {url}\n" in done.output
    assert not cache.exists()


def test_released_files_have_two_mirrors_in_order():
    for name, file in {
        "mae_ast_patch": "chunk_patch_75_12LayerEncoder.pt",
        "mae_ast_frame": "random_frame_75_12LayerEncoder.pt",
    }.items():
        model = registry.find(name)
        assert model.name == name
        assert model.file_name == file
        assert model.urls == (
            f"https://saltlab.cs.utexas.edu/downloads/model_checkpoints/mae_ast/{file}",
            f"https://www.cs.utexas.edu/~harwath/model_checkpoints/mae_ast/{file}",
        )
        assert model.sha256 is None
