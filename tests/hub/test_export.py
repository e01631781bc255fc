"""Exported files compute the same outputs."""

from __future__ import annotations

import os

import pytest
import torch
from torch.testing import assert_close

import mae_ast
from mae_ast.hub import export
from mae_ast.hub.load import PretrainedMaeAst
from tests.sounds import speech_like

pytestmark = pytest.mark.slow


@pytest.fixture(params=[(16, 16), (2, 128)], ids=["patch", "frame"], scope="module")
def kernel(request):
    return request.param


@pytest.fixture
def model(small_config, kernel) -> PretrainedMaeAst:
    model = PretrainedMaeAst(small_config(kernel, layer_norm_first=kernel[1] == 128), "chunk_mask")
    model.batch_norm.running_mean.fill_(-7.0)
    model.batch_norm.running_var.fill_(14.0)
    return model.eval()


def states(model: PretrainedMaeAst) -> list[torch.Tensor]:
    return model.hidden_states(speech_like(20_000).unsqueeze(0))


def test_released_and_safetensors_round_trip(model, tmp_path):
    export.to_released_file(model, tmp_path / "new" / "a.pt")
    export.to_safetensors(model, tmp_path / "folder")
    for path in (tmp_path / "new" / "a.pt", tmp_path / "folder"):
        assert_close(states(mae_ast.load(path)), states(model), rtol=0, atol=0)
    assert os.listdir(tmp_path / "new") == ["a.pt"]


@pytest.mark.parametrize("kind", ["to_released_file", "to_safetensors"])
def test_full_disk_leaves_no_files(model, small_disk, kind):
    with pytest.raises(OSError, match=r"disk/a: could not be written, with \d\.\d MB free \(.*\)$"):
        getattr(export, kind)(model, small_disk / "a")
    assert os.listdir(small_disk) == []


def test_existing_files_are_not_overwritten(model, tmp_path):
    for kind, write in (("file", export.to_released_file), ("folder", export.to_safetensors)):
        path = tmp_path / kind
        write(model, path)
        with pytest.raises(FileExistsError, match=f"{kind}: exists already; --force overwrites it"):
            write(model, path)
        with torch.no_grad():
            model.encoder.layers[0].fc1.bias += 1
        write(model, path, overwrite=True)
        assert_close(states(mae_ast.load(path)), states(model), rtol=0, atol=0)
    (tmp_path / "folder" / "checkpoints").mkdir()
    with pytest.raises(FileExistsError, match=r"folder: .*not a model's"):
        export.to_safetensors(model, tmp_path / "folder", overwrite=True)
    with pytest.raises(FileExistsError, match=r"folder: is a folder, .* a file"):
        export.to_released_file(model, tmp_path / "folder", overwrite=True)
    with pytest.raises(FileExistsError, match=r"file: is a file, .* a folder"):
        export.to_safetensors(model, tmp_path / "file", overwrite=True)
    assert sorted(os.listdir(tmp_path)) == ["file", "folder"]
    (tmp_path / "empty").mkdir()
    export.to_safetensors(model, tmp_path / "empty")
