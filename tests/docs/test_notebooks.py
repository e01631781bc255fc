"""The notebooks of the documentation run, and their stored output is shown."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import torch

from mae_ast.core.models.config import MaeAstConfig
from mae_ast.hub.load import PretrainedMaeAst
from scripts.docs import notebooks

REPOSITORY = notebooks.FOLDER.parents[1]
NAMES = sorted(path.stem for path in notebooks.FOLDER.glob("*.ipynb"))
MAX_BYTES = 400_000  # of a notebook with its output
# Parameters of a small execution, and the number of images that it draws.
SMALL = {
    "use-a-model": (('MODEL = "model"',), 2),
    "reconstruction": (('MODEL = "model"', "SECONDS = 1.0"), 1),
    "own-data": (
        (
            *('MODEL = "model"', 'DATA = "my sounds"'),
            'SETTINGS = "optimization.max_update=2 common.cpu=true"',
        ),
        3,
    ),
}


def read(name: str) -> dict[str, Any]:
    notebook: dict[str, Any] = json.loads(
        (notebooks.FOLDER / f"{name}.ipynb").read_text(encoding="utf-8")
    )
    return notebook


def code(notebook: dict[str, Any]) -> list[dict[str, Any]]:
    return [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Working folder with a small model."""
    torch.manual_seed(0)
    sizes = {"embed_dim": 32, "ffn_embed_dim": 64, "attention_heads": 4, "layers": 2}
    config = MaeAstConfig(
        **{f"{part}_{key}": size for part in ("encoder", "decoder") for key, size in sizes.items()},
    )
    PretrainedMaeAst(config, "chunk_mask").save_pretrained(tmp_path / "model")
    return tmp_path


def write_own_sounds(folder: Path) -> None:
    """Write stereo FLAC files at 44.1 kHz in class folders, beside a file without a class."""
    noise = np.random.default_rng(0).standard_normal((10, 3, 44_100, 2)) * 0.1
    folder.mkdir()
    (folder / "notes.txt").write_text("recorded in May")
    for number, clips in enumerate(noise):
        for name, clip in zip(("a bird", "rain", "wind"), clips, strict=True):
            (folder / name).mkdir(exist_ok=True)
            soundfile.write(folder / name / f"{number}.flac", clip, 44_100)


@pytest.mark.slow
@pytest.mark.parametrize("name", SMALL)
def test_notebook_runs_at_small_size(name: str, folder: Path) -> None:
    pytest.importorskip("IPython")
    parameters, num_images = SMALL[name]
    write_own_sounds(folder / "my sounds")
    source = notebooks.FOLDER / f"{name}.ipynb"
    done = subprocess.run(
        [sys.executable, "-m", "scripts.docs.notebooks", source, "out.ipynb", *parameters],
        cwd=folder,
        env={
            **os.environ,
            "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
            "PYTHONPATH": os.pathsep.join([str(REPOSITORY), *filter(None, sys.path)]),
            "CUDA_VISIBLE_DEVICES": "",
        },
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    text, images = notebooks.page(json.loads((folder / "out.ipynb").read_text()), name)
    assert len(images) == num_images
    assert str(folder) not in text
    for image in images.values():
        assert image.startswith(b"\x89PNG")


def test_without_own_sounds_three_classes_are_made(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    _, _, example, *_ = ("".join(cell["source"]) for cell in code(read("own-data")))
    values: dict[str, Any] = {"DATA": ""}
    exec(example, values)
    classes = {path.parent.name for path in Path(values["DATA"]).rglob("*.wav")}
    assert classes == {"chirps", "engine", "rain"}


def test_all_notebooks_are_run() -> None:
    assert set(NAMES) == set(SMALL)


@pytest.mark.parametrize("name", NAMES)
def test_stored_output_is_complete_and_small(name: str) -> None:
    path = notebooks.FOLDER / f"{name}.ipynb"
    assert path.stat().st_size < MAX_BYTES
    install, *others = code(read(name))
    assert notebooks.INSTALL in notebooks.tags(install)
    assert install["source"][0].startswith("%pip install")
    assert install["outputs"] == []
    assert [cell["execution_count"] for cell in others] == list(range(1, len(others) + 1))
    text, images = notebooks.page(read(name), name)
    assert images
    assert all(f"]({file})" in text for file in images)
    assert "Error" not in text
    for place in ("/tmp/", "/root/", "/home/", "site-packages"):
        assert place not in path.read_text(encoding="utf-8")


def test_page_of_a_notebook() -> None:
    stream = {"output_type": "stream", "name": "stdout", "text": ["1\n", "2\n"]}
    png = {"output_type": "display_data", "data": {"image/png": "iVBORw==", "text/plain": ["F"]}}
    value = {"output_type": "execute_result", "data": {"text/plain": ["(1,", " 2)"]}}
    html = {"output_type": "display_data", "data": {"text/html": ["\n  <audio>\n\n  x</audio>"]}}
    notebook = {
        "cells": [
            {"cell_type": "markdown", "source": ["# Title"]},
            {"cell_type": "code", "source": ["a\n", "b"], "outputs": [stream, png, value, html]},
        ]
    }
    text, images = notebooks.page(notebook, "one")
    assert text.split("\n\n") == [
        "# Title",
        "[Download this notebook](one.ipynb)",
        "```python\na\nb\n```",
        "```text\n1\n2\n```",
        "![Plot](one_1.png)",
        "```text\n(1, 2)\n```",
        "<div>\n<audio>\nx</audio>\n</div>\n",
    ]
    assert images == {"one_1.png": b"\x89PNG"}
