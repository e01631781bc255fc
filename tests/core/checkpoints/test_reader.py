"""Checkpoints: round trips, errors, and no code execution."""

from __future__ import annotations

import dataclasses
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch

from mae_ast.core.checkpoints.reader import (
    CheckpointError,
    build_with_weights,
    read_checkpoint,
)
from mae_ast.core.frontend.masking import MaskIds, random_mask
from mae_ast.core.models.mae_ast import MaeAst
from tests.sounds import speech_like


@pytest.fixture
def state(small_config) -> dict[str, Any]:
    """Return the content of a trainer's checkpoint, with the trainer's own keys."""
    config = small_config(
        (8, 32), decoder_embed_dim=48, layer_norm_first=True, dropout=0.2, random_mask_prob=0.6
    )
    model = MaeAst(config)
    model.train()(speech_like(8_000).unsqueeze(0), None, _mask(config))
    return {
        "cfg": {
            "model": {"_name": "mae_ast", **dataclasses.asdict(config)},
            "task": {"_name": "mae_ast_pretraining", "data": "/data", "mask_type": "chunk_mask"},
        },
        "model": model.state_dict(),
        "optimizer_history": [{"num_updates": 3}],
    }


def _mask(config) -> MaskIds:
    return random_mask(1, config.patch_shape.grid(48), 0.5)


def load(path: Path | str) -> MaeAst:
    found = read_checkpoint(path)
    return build_with_weights(lambda: MaeAst(found.config), found.weights, path)


def saved(path: Path, state: Any) -> Path:
    torch.save(state, path)
    return path


def test_round_trip(tmp_path, state):
    path = saved(tmp_path / "a.pt", state)
    loaded, model = read_checkpoint(path), load(path)
    fields = {k: v for k, v in state["cfg"]["model"].items() if k != "_name"}
    assert dataclasses.asdict(loaded.config) == fields
    assert loaded.mask_type == "chunk_mask"
    assert not model.training
    for name, value in model.state_dict().items():
        assert torch.equal(value, state["model"][name]), name
    assert model.batch_norm.num_batches_tracked == 1

    original = MaeAst(loaded.config).eval()
    original.load_state_dict(state["model"])
    wave = speech_like(8_000, seed=1).unsqueeze(0)
    for ours, theirs in zip(model.hidden_states(wave), original.hidden_states(wave), strict=True):
        assert torch.equal(ours, theirs)


def test_half_precision_weights_become_float32(tmp_path, state):
    state["model"] = {
        name: value.half() if value.is_floating_point() else value
        for name, value in state["model"].items()
    }
    model = load(str(saved(tmp_path / "a.pt", state)))
    for name, value in model.state_dict().items():
        assert value.dtype in (torch.float32, torch.int64), name
        assert torch.equal(value, state["model"][name].to(value.dtype)), name


class Payload:
    """An object that would create a file when unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.path,)


@pytest.mark.parametrize("is_zip", [True, False])
def test_file_that_would_run_code_is_refused(tmp_path, state, is_zip):
    touched = tmp_path / "touched"
    state["extra_state"] = Payload(touched)
    path = tmp_path / "evil.pt"
    torch.save(state, path, _use_new_zipfile_serialization=is_zip)
    with pytest.raises(CheckpointError, match=r"evil\.pt: not read, because .*run code"):
        load(path)
    assert not touched.exists()
    torch.load(path, weights_only=False)
    assert touched.exists(), "the payload would have worked"


def test_bare_pickle_is_refused(tmp_path):
    touched = tmp_path / "touched"
    path = tmp_path / "evil.pt"
    path.write_bytes(pickle.dumps({"cfg": Payload(touched)}, protocol=2))
    with pytest.raises(CheckpointError, match=r"evil\.pt"):
        load(path)
    assert not touched.exists()


@pytest.mark.parametrize("fraction", [0.1, 0.5, 0.99])
def test_truncated_file_is_named(tmp_path, state, fraction):
    path = saved(tmp_path / "cut.pt", state)
    whole = path.read_bytes()
    path.write_bytes(whole[: int(fraction * len(whole))])
    with pytest.raises(CheckpointError, match=r"cut\.pt: damaged or incomplete"):
        load(path)


@pytest.mark.parametrize("content", [b"text\n" * 50, bytes(500), b"PK\x03\x04" + bytes(90)])
def test_random_content_is_named(tmp_path, content):
    path = tmp_path / "garbage.pt"
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match=r"garbage\.pt: (not a checkpoint but|damaged)"):
        load(path)


@pytest.mark.parametrize("content", [b"", b"\x80\x02"], ids=["empty", "a pickle's first bytes"])
def test_file_of_a_few_bytes_is_named(tmp_path, content):
    path = tmp_path / "empty.pt"
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match=r"empty\.pt"):
        load(path)


def test_missing_file_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"missing\.pt: no such checkpoint"):
        load(tmp_path / "missing.pt")


def test_missing_weight_is_named(tmp_path, state):
    del state["model"]["encoder.layers.1.fc1.bias"]
    with pytest.raises(CheckpointError, match=r"a\.pt: .* missing: encoder\.layers\.1\.fc1\.bias$"):
        load(saved(tmp_path / "a.pt", state))


def test_unknown_weight_is_named(tmp_path, state):
    state["model"]["encoder.layers.9.fc1.bias"] = torch.zeros(3)
    with pytest.raises(CheckpointError, match=r"a\.pt: .* unknown: encoder\.layers\.9\.fc1\.bias$"):
        load(saved(tmp_path / "a.pt", state))


def test_wrong_shape_is_named(tmp_path, state):
    state["cfg"]["model"]["decoder_ffn_embed_dim"] = 10
    with pytest.raises(
        CheckpointError,
        match=r"decoder\.layers\.0\.fc1\.weight is \(64, 48\) in the file and \(10, 48\) in ",
    ):
        load(saved(tmp_path / "a.pt", state))


@pytest.mark.parametrize(
    ("keys", "named"),
    [
        (("model",), "'model'"),
        (("cfg",), "'cfg'"),
        (("cfg", "model"), "'model'"),
        (("cfg", "task"), "'task'"),
        (("cfg", "task", "mask_type"), "'mask_type'"),
    ],
)
def test_missing_entry_is_named(tmp_path, state, keys, named):
    part = state
    for key in keys[:-1]:
        part = part[key]
    del part[keys[-1]]
    with pytest.raises(CheckpointError, match=rf"a\.pt: has no {named}"):
        load(saved(tmp_path / "a.pt", state))


@pytest.mark.parametrize("content", [[1, 2], {"a": 1}, {"cfg": None, "model": {}}])
def test_other_content_is_named(tmp_path, content):
    with pytest.raises(CheckpointError, match=r"a\.pt"):
        load(saved(tmp_path / "a.pt", content))


@pytest.mark.parametrize(
    ("part", "value"),
    [
        (("cfg", "model"), None),
        (("cfg", "model"), {"encoder_embed_dim": 33}),
        (("cfg", "model"), {"encoder_layers": "2"}),
        (("model",), [1, 2]),
    ],
)
def test_invalid_entries_are_refused(tmp_path, state, part, value):
    holder = state
    for key in part[:-1]:
        holder = holder[key]
    holder[part[-1]] = value
    with pytest.raises(CheckpointError, match=r"a\.pt"):
        load(saved(tmp_path / "a.pt", state))


@pytest.mark.filterwarnings("ignore:Using a non-tuple sequence")
def test_bare_tensor_is_refused(tmp_path):
    with pytest.raises(CheckpointError, match=r"a\.pt"):
        load(saved(tmp_path / "a.pt", torch.zeros(3)))


def test_weight_that_is_not_a_tensor_is_named(tmp_path, state):
    state["model"]["decoder_mask_emb"] = "text"
    with pytest.raises(CheckpointError, match=r"decoder_mask_emb is a str in the file"):
        load(saved(tmp_path / "a.pt", state))


def test_many_missing_keys_are_counted(tmp_path, state):
    state["model"] = {}
    with pytest.raises(CheckpointError, match=r"missing: \S+, \S+, \S+ and \d\d more$"):
        load(saved(tmp_path / "a.pt", state))
