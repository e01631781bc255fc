"""``mae-ast convert`` and ``mae-ast extract``."""

from __future__ import annotations

import pickle
from pathlib import Path

import numpy as np
import pytest
import soundfile

import mae_ast
from mae_ast.core.io.manifest import write_manifest
from mae_ast.hub import export
from mae_ast.hub.load import PretrainedMaeAst
from tests.sounds import speech_like


@pytest.fixture
def checkpoint(small_config, tmp_path) -> Path:
    path = tmp_path / "checkpoint.pt"
    export.to_released_file(PretrainedMaeAst(small_config(), "random_mask"), path)
    return path


@pytest.mark.parametrize("kind", ["released", "safetensors"])
def test_convert_keeps_the_weights(mae_ast_command, checkpoint, tmp_path, kind):
    out, message = mae_ast_command("convert", checkpoint, tmp_path / "out", "--to", kind)
    assert not message
    assert out.startswith(f"{tmp_path / 'out'}: for ")
    there, here = (mae_ast.load(p).state_dict() for p in (tmp_path / "out", checkpoint))
    assert all((there[name] == value).all() for name, value in here.items())


@pytest.mark.parametrize("kind", ["released", "safetensors", "transformers", "onnx"])
def test_convert_refuses_an_existing_target_before_reading(mae_ast_command, tmp_path, kind):
    is_folder = kind in ("safetensors", "transformers")
    path = tmp_path / "out"
    if is_folder:
        path.mkdir()
    taken = path / "config.json" if is_folder else path
    taken.write_text("{}")
    _, message = mae_ast_command("convert", "none.pt", path, "--to", kind)
    assert message == f"mae-ast: error: {path}: exists already; --force overwrites it"
    _, message = mae_ast_command("convert", "none.pt", path, "--to", kind, "--force")
    assert message == "mae-ast: error: none.pt: no such checkpoint"
    assert taken.read_text() == "{}"


def test_convert_overwrites_with_force(mae_ast_command, checkpoint, tmp_path):
    expected = mae_ast.load(checkpoint).state_dict()
    for name, kind in (("out", "safetensors"), ("checkpoint.pt", "released")):
        for _ in range(2):
            arguments = ("convert", checkpoint, tmp_path / name, "--to", kind, "--force")
            out, message = mae_ast_command(*arguments)
            assert not message
            assert out.startswith(f"{tmp_path / name}: for ")
        found = mae_ast.load(tmp_path / name).state_dict()
        assert all((found[key] == value).all() for key, value in expected.items())


class Payload:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


def test_convert_refuses_a_pickle_that_runs_code(mae_ast_command, tmp_path):
    path = tmp_path / "evil.pt"
    path.write_bytes(pickle.dumps({"cfg": Payload(tmp_path / "touched")}, protocol=2))
    _, message = mae_ast_command("convert", path, tmp_path / "out", "--to", "released")
    assert message.startswith(f"mae-ast: error: {path}: not read, because it holds objects")
    assert not (tmp_path / "touched").exists()
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("source", "words"),
    [("mae_ast_pach", "mae_ast_patch, mae_ast_frame"), ("none.pt", "no such checkpoint")],
)
def test_convert_refuses_an_unknown_source(mae_ast_command, tmp_path, source, words):
    _, message = mae_ast_command("convert", source, tmp_path / "out", "--to", "onnx")
    assert words in message


def test_convert_refuses_a_decoder_that_the_released_format_cannot_store(
    mae_ast_command, small_config, tmp_path
):
    model = PretrainedMaeAst(small_config(decoder_attention_heads=2), "random_mask")
    export.to_safetensors(model, tmp_path / "in")
    _, message = mae_ast_command("convert", tmp_path / "in", tmp_path / "out", "--to", "released")
    assert "decoder_attention_heads=2 differs" in message


def test_extract_writes_the_features_of_a_shard(mae_ast_command, checkpoint, tmp_path):
    wave = speech_like(16_000)
    soundfile.write(tmp_path / "a.wav", wave.numpy(), 16_000, subtype="FLOAT")
    write_manifest(tmp_path / "train.tsv", ".", [("a.wav", 16_000, 16_000)] * 3)
    arguments = ("extract", checkpoint, tmp_path / "train.tsv", tmp_path / "out")
    out, message = mae_ast_command(*arguments, "--layer", 1, "--pool", "--shard", "1/2")
    assert not message
    npy = tmp_path / "out" / "train_1_2.npy"
    assert out == f"{npy} and train_1_2.len\n"
    found = mae_ast.load(checkpoint).extract_features(tmp_path / "a.wav", layers=[1]).pooled
    assert np.allclose(np.load(npy), found[0].numpy(), atol=1e-5)
    _, message = mae_ast_command(*arguments, "--layer", 3)
    assert message == "mae-ast: error: --layer 3; the model has 1 to 2, -1 is the last"
    _, message = mae_ast_command(*arguments, "--device", "gpu")
    assert message.startswith("mae-ast: error: --device gpu: ")
    _, message = mae_ast_command(*arguments, "--shard", "2/2")
    assert message.startswith("mae-ast: error: --shard 2/2: expected i/n")
