"""Models get the weights of a file without random ones being drawn first."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

import mae_ast
from mae_ast.core.checkpoints.reader import build_with_weights
from mae_ast.core.models.registry import SYSTEMS
from mae_ast.hub.load import hub_class
from tests.core.vits import with_random_weights
from tests.sounds import speech_like
from tests.systems.cases import FIRST


@pytest.fixture(params=SYSTEMS)
def model(request) -> Any:
    config = FIRST[request.param].config()
    return with_random_weights(hub_class(request.param)(config, "random_mask")).eval()


def trainers_file(model: Any, path: Path, dtype: torch.dtype = torch.float32) -> Path:
    name = next(name for name, system in SYSTEMS.items() if system.config is type(model.config))
    cfg = {"model": {"_name": name, **vars(model.config)}, "task": {"mask_type": "random_mask"}}
    weights = {
        name: value.to(dtype) if value.is_floating_point() else value
        for name, value in model.state_dict().items()
    }
    torch.save({"cfg": cfg, "model": weights}, path)
    return path


def test_no_random_number_is_drawn(model, tmp_path):
    path = trainers_file(model, tmp_path / "a.pt")
    before = torch.get_rng_state()
    mae_ast.load(path)
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_loaded_model_is_complete(model, tmp_path, dtype):
    found = mae_ast.load(trainers_file(model, tmp_path / "a.pt", dtype))
    fresh = type(model)(model.config)
    for name, value in fresh.state_dict(keep_vars=True).items():
        loaded = found.state_dict(keep_vars=True)[name]
        assert type(loaded) is type(value), name
        assert loaded.dtype == value.dtype, name
        assert loaded.requires_grad == value.requires_grad, name
        assert loaded.is_contiguous(), name
        assert torch.equal(loaded, model.state_dict()[name].to(dtype).to(value.dtype)), name
    assert dict(found.named_buffers()).keys() == dict(fresh.named_buffers()).keys()
    assert not any(tensor.is_meta for tensor in (*found.parameters(), *found.buffers()))
    if dtype == torch.float32:
        wave = speech_like(16_000)[None]
        for ours, theirs in zip(found.hidden_states(wave), model.hidden_states(wave), strict=True):
            assert torch.equal(ours, theirs)


@pytest.mark.parametrize("kind", ["checkpoint", "safetensors"])
def test_weights_do_not_follow_a_file_that_is_overwritten(tmp_path, small_config, kind):
    model = with_random_weights(hub_class("mae_ast")(small_config(), "random_mask"))
    if kind == "checkpoint":
        path = trainers_file(model, tmp_path / "a.pt")
    else:
        model.save_pretrained(tmp_path)
        path = tmp_path / "model.safetensors"
    found = mae_ast.load(path)
    with path.open("r+b") as file:  # in place
        file.write(b"\xff" * path.stat().st_size)
    for name, value in model.state_dict().items():
        assert torch.equal(found.state_dict()[name], value), name


class Window(torch.nn.Module):
    """A module with a buffer that is neither in the state dict nor computed on request."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = torch.nn.Parameter(torch.rand(4))
        self.register_buffer("window", torch.hann_window(4), persistent=False)


def test_other_buffers_are_those_of_a_new_model():
    before = torch.get_rng_state()
    found = build_with_weights(Window, {"scale": torch.arange(4)}, "a.pt")
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(found.window, torch.hann_window(4))
    assert torch.equal(found.scale, torch.arange(4.0))
    assert not found.training
