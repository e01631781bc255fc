"""SSAST and AST through the generic interface: load, features, convert, predict."""

from __future__ import annotations

import dataclasses
import json
import math
import re
from functools import partial
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
import soundfile
import torch
from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError
from safetensors.torch import load_file
from torch.testing import assert_close

import mae_ast
from mae_ast.core.checkpoints.ast_release import write_ast, write_ssast
from mae_ast.core.checkpoints.reader import CheckpointError
from mae_ast.core.io.labels import Labels, write_clip_labels
from mae_ast.core.io.manifest import write_manifest
from mae_ast.core.models.config import AstConfig, SsastConfig, VitConfig
from mae_ast.core.models.encoder import Encoder
from mae_ast.core.models.registry import SYSTEMS, System
from mae_ast.evaluate.report import evaluate
from mae_ast.finetune.checkpoint import load_finetuned
from mae_ast.hub import load as pretrained
from mae_ast.hub import offline as hub
from mae_ast.hub.export_transformers import to_transformers
from mae_ast.hub.load import PretrainedAst, PretrainedSsast, PretrainedVit, hub_class
from tests.core.vits import FRAME_TOKENS, SMALL, with_random_weights
from tests.sounds import speech_like

# D / 64 heads and the usual strides, which the published layouts do not store.
PUBLISHED = SMALL | {"encoder_attention_heads": 1, "input_frames": 128}
NAMES = ("a bird, singing", "rain", "siren")


def ssast(**fields: Any) -> PretrainedSsast:
    config = SsastConfig(**(PUBLISHED | fields))
    mask_type = "chunk_mask" if config.patch_shape.per_column > 1 else "random_mask"
    return with_random_weights(PretrainedSsast(config, mask_type)).eval()


def ast(**fields: Any) -> PretrainedAst:
    config = AstConfig(**(PUBLISHED | {"num_classes": len(NAMES)} | fields))
    return with_random_weights(PretrainedAst(config, labels=NAMES)).eval()


def vit() -> PretrainedVit:
    return with_random_weights(PretrainedVit(VitConfig(**SMALL))).eval()


def assert_same(found: Any, model: Any) -> None:
    assert type(found) is type(model)
    assert found.config == model.config
    assert found.mask_type == model.mask_type
    assert not found.training
    for name, value in model.state_dict().items():
        assert torch.equal(found.state_dict()[name], value), name


def test_published_ast_round_trip_and_prediction(mae_ast_command, tmp_path):
    model = ast()
    path, again, sound = tmp_path / "ast.pth", tmp_path / "again.pth", tmp_path / "a.wav"
    torch.save(write_ast(model.config, model.state_dict()), path)
    assert_same(mae_ast.load(path), model)
    _, message = mae_ast_command("convert", path, again, "--to", "released")
    assert not message, message
    assert_same(mae_ast.load(again), model)

    soundfile.write(sound, speech_like(16_000).numpy(), 16_000)
    out, message = mae_ast_command("predict", path, sound)
    assert not message, message
    assert "class_0" in out  # the layout does not store class names


def test_transformers_folder_round_trip(mae_ast_command, tmp_path):
    transformers = pytest.importorskip("transformers", reason="needs transformers")
    fields = {
        "hidden_size": 24,
        "num_hidden_layers": 2,
        "num_attention_heads": 3,
        "intermediate_size": 40,
        "max_length": 128,
        "id2label": dict(enumerate(NAMES)),
        "label2id": {name: n for n, name in enumerate(NAMES)},
    }
    theirs = transformers.ASTForAudioClassification(transformers.ASTConfig(**fields))
    theirs = with_random_weights(theirs).eval()
    theirs.save_pretrained(tmp_path / "theirs")
    (tmp_path / "theirs/preprocessor_config.json").write_text('{"mean": -6.5, "std": 3.0}')

    model = mae_ast.load(tmp_path / "theirs")
    assert isinstance(model, PretrainedAst)
    assert model.labels == NAMES
    waveform = speech_like(16_000).unsqueeze(0)
    expected = theirs(model.spectrogram(waveform)).logits
    assert model.config.input_mean == -6.5
    assert_close(model.logits(waveform), expected, rtol=0, atol=1e-4)

    _, message = mae_ast_command(
        "convert", tmp_path / "theirs", tmp_path / "ours", "--to", "transformers"
    )
    assert not message, message
    back = transformers.ASTForAudioClassification.from_pretrained(tmp_path / "ours").eval()
    assert_close(back(model.spectrogram(waveform)).logits, expected, rtol=0, atol=1e-6)
    assert list(back.config.id2label.values()) == list(NAMES)
    extractor = transformers.ASTFeatureExtractor.from_pretrained(tmp_path / "ours")
    assert (extractor.mean, extractor.std) == (-6.5, 3.0)

    soundfile.write(tmp_path / "a.wav", speech_like(16_000).numpy(), 16_000)
    out, message = mae_ast_command("predict", tmp_path / "theirs", tmp_path / "a.wav")
    assert not message, message
    assert NAMES[0] in out


@pytest.mark.parametrize(
    ("problem_type", "function"),
    [
        ("multi_label_classification", torch.sigmoid),
        ("single_label_classification", partial(torch.softmax, dim=1)),
        (None, partial(torch.softmax, dim=1)),
    ],
    ids=["multi-label", "single-label", "not set"],
)
def test_scores_equal_those_of_the_transformers_pipeline(
    mae_ast_command, tmp_path, caplog, problem_type, function
):
    transformers = pytest.importorskip("transformers", reason="needs transformers")
    model = ast()
    model.save_pretrained(tmp_path / "own")
    folder, wave = tmp_path / "theirs", speech_like(16_000)
    mae_ast_command("convert", tmp_path / "own", folder, "--to", "transformers")
    path = folder / "config.json"
    fields = json.loads(path.read_text())
    assert fields["problem_type"] == "multi_label_classification"  # as in our model
    path.write_text(json.dumps(fields | {"problem_type": problem_type}))

    pipeline = transformers.pipeline("audio-classification", model=str(folder), top_k=None)
    # Given explicitly, as pipelines before 5.23 ignore problem_type and use softmax.
    name = "sigmoid" if function is torch.sigmoid else "softmax"
    found_here = pipeline(wave.numpy(), function_to_apply=name)
    expected = {found["label"]: found["score"] for found in found_here}
    classifier = load_finetuned(folder)
    scores = classifier.scores(wave[None])[0]
    assert dict(zip(classifier.labels.names, scores.tolist(), strict=True)) == pytest.approx(
        expected, abs=1e-4
    )
    assert_close(scores[None], function(model.logits(wave[None])), rtol=0, atol=1e-4)
    messages = [record.getMessage() for record in caplog.records]
    assert [f"{path}: problem_type is not set" in text for text in messages] == [True] * (
        problem_type is None
    )

    _, message = mae_ast_command("convert", folder, tmp_path / "again", "--to", "transformers")
    assert not message
    again = json.loads((tmp_path / "again/config.json").read_text())
    assert again["problem_type"] == (problem_type or "single_label_classification")
    assert again["id2label"] == fields["id2label"]


def test_multi_label_clips_have_no_accuracy(tmp_path):
    """Accuracy depends on the labels of the clips, not on softmax or sigmoid."""
    model = ast()
    PretrainedAst(model.config, None, NAMES, independent=False).save_pretrained(tmp_path / "model")
    soundfile.write(tmp_path / "a.wav", speech_like(16_000).numpy(), 16_000)
    write_manifest(tmp_path / "valid.tsv", ".", [("a.wav", 16_000, 16_000)] * 3)
    Labels(("a", "b", "c"), NAMES).write(tmp_path / "labels.csv")
    for first, several in ((["a"], False), (["a", "b"], True)):
        write_clip_labels(tmp_path / "valid.lbl", [first, ["b"], ["c"]])
        found = evaluate(load_finetuned(tmp_path / "model"), tmp_path, "valid")
        assert math.isnan(found.summary.accuracy) == several
        assert (found.confusion is None) == several


def test_scores_of_a_published_classifier_equal_the_model_s(tmp_path):
    model = ast(head_layer_norm_eps=0.1)
    model.save_pretrained(tmp_path)
    classifier = load_finetuned(tmp_path)
    waveform = speech_like(16_000).unsqueeze(0)
    with torch.no_grad():
        expected = model.logits(waveform).sigmoid()
    assert_close(classifier.scores(waveform), expected, rtol=0, atol=1e-6)
    assert classifier.labels.names == NAMES


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"hidden_act": "relu"}, "hidden_act is 'relu'"),
        ({"id2label": {"0": "a", "2": "b"}}, "id2label has no class '1'"),
        ({"patch_size": [16, 16]}, "patch_size"),
        ({"num_hidden_layers": 3}, "missing: "),
    ],
)
def test_invalid_transformers_config_is_named(mae_ast_command, tmp_path, change, words):
    ast().save_pretrained(tmp_path / "a")
    _, message = mae_ast_command("convert", tmp_path / "a", tmp_path / "b", "--to", "transformers")
    assert not message, message
    path = tmp_path / "b/config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(CheckpointError, match=words) as refusal:
        mae_ast.load(tmp_path / "b")
    assert str(refusal.value).startswith(str(tmp_path / "b"))
    assert "\n" not in str(refusal.value)


def test_missing_weight_of_a_published_file_is_named(tmp_path):
    model = ssast()
    state = write_ssast(model.config, model.state_dict())
    del state["module.v.blocks.1.attn.qkv.weight"]
    torch.save(state, tmp_path / "a.pth")
    with pytest.raises(CheckpointError, match=r"a\.pth: .*missing: v\.blocks\.1\.attn"):
        mae_ast.load(tmp_path / "a.pth")


def test_unsupported_operations_name_the_system(mae_ast_command, tmp_path):
    ast().save_pretrained(tmp_path / "ast")
    vit().save_pretrained(tmp_path / "vit")
    soundfile.write(tmp_path / "a.wav", speech_like(16_000).numpy(), 16_000)
    _, message = mae_ast_command("reconstruct", tmp_path / "ast", tmp_path / "a.wav")
    assert "a model of kind 'ast' cannot reconstruct" in message
    assert "'mae_ast', 'ssast', 'audio_mae'" in message
    _, message = mae_ast_command("convert", tmp_path / "vit", tmp_path / "out", "--to", "released")
    assert message.endswith("a model of kind 'vit' has no released layout")
    assert not (tmp_path / "out").exists()


def test_reconstruct_with_ssast(mae_ast_command, tmp_path):
    ssast().save_pretrained(tmp_path / "ssast")
    sound: Path = tmp_path / "a.wav"
    soundfile.write(sound, speech_like(9_000).numpy(), 16_000)  # shorter than input_frames
    image = tmp_path / "a.png"
    out, message = mae_ast_command(
        "reconstruct", tmp_path / "ssast", sound, "-o", image, "--mask-type", "random_mask"
    )
    assert not message, message
    assert "78% masked" in out or "77% masked" in out or "79% masked" in out, out
    assert image.stat().st_size > 5_000


def test_settings_not_stored_in_the_published_layout_are_printed(mae_ast_command, tmp_path):
    model = ssast(input_mean=-2.5, input_std=3.25)
    model.save_pretrained(tmp_path / "own")
    out, message = mae_ast_command(
        "convert", tmp_path / "own", tmp_path / "a.pt", "--to", "released"
    )
    assert not message
    assert "cannot store input_mean=-2.5, input_std=3.25" in out
    ssast().save_pretrained(tmp_path / "usual")
    out, _ = mae_ast_command("convert", tmp_path / "usual", tmp_path / "b.pt", "--to", "released")
    assert "cannot store" not in out


@pytest.mark.parametrize("build", [ssast, ast])
def test_settings_assumed_by_the_published_layout_are_required(mae_ast_command, tmp_path, build):
    build(encoder_attention_heads=3).save_pretrained(tmp_path / "own")
    _, message = mae_ast_command("convert", tmp_path / "own", tmp_path / "a.pt", "--to", "released")
    assert message.endswith("encoder_attention_heads=3: the released layout supports 1 only")
    assert not (tmp_path / "a.pt").exists()


def test_head_epsilon_that_the_published_layout_cannot_store_is_refused(mae_ast_command, tmp_path):
    ast(head_layer_norm_eps=0.1).save_pretrained(tmp_path / "own")
    _, message = mae_ast_command("convert", tmp_path / "own", tmp_path / "a.pt", "--to", "released")
    assert message.endswith("head_layer_norm_eps=0.1: the released layout supports 1e-05 only")


@pytest.mark.parametrize(
    ("fields", "unstored"),
    [
        ({"ast_kernel_stride_time": 16, "ast_kernel_stride_chan": 16}, "time=16, .*chan=16"),
        (FRAME_TOKENS | {"pool": "tokens"}, "time=2"),
        (FRAME_TOKENS | {"pool": "tokens", "ast_kernel_stride_time": 1}, None),
    ],
    ids=["patches", "frames", "published frames"],
)
def test_strides_not_stored_in_the_published_layout_are_printed(
    mae_ast_command, tmp_path, fields, unstored
):
    model = ast(**fields)
    model.save_pretrained(tmp_path / "own")
    path = tmp_path / "a.pth"
    out, message = mae_ast_command("convert", tmp_path / "own", path, "--to", "released")
    assert not message
    printed = re.search("cannot store ast_kernel_stride_(.*): set", out)
    assert bool(printed) == bool(unstored)
    if printed:
        assert re.fullmatch(unstored.replace(".*", ".*stride_"), printed[1])
    else:
        assert_same(mae_ast.load(path), model)


def test_system_that_is_registered_later_is_saved_and_loaded(tmp_path, monkeypatch):
    """A system without a foreign layout needs its row in ``SYSTEMS`` only."""

    class Toy(Encoder):
        pass

    @dataclasses.dataclass
    class ToyConfig(VitConfig):
        pass

    monkeypatch.setitem(SYSTEMS, "toy_system", System(ToyConfig, Toy))
    model = with_random_weights(hub_class("toy_system")(ToyConfig(**SMALL))).eval()
    model.save_pretrained(tmp_path / "folder")
    assert_same(mae_ast.load(tmp_path / "folder"), model)
    cfg = {"model": {"_name": "toy_system", **SMALL}, "task": {"mask_type": "random_mask"}}
    torch.save({"cfg": cfg, "model": model.state_dict()}, tmp_path / "checkpoint_last.pt")
    found = mae_ast.load(tmp_path / "checkpoint_last.pt")
    assert type(found) is pretrained.PretrainedToySystem
    assert found.mask_type == "random_mask"
    card = (tmp_path / "folder/README.md").read_text(encoding="utf-8")
    assert "# toy_system" in card


# Hugging Face's own models


def hugging_face_folder(folder: Path) -> PretrainedAst:
    """Write the files of a transformers AST, with weights in PyTorch's format."""
    model = ast(input_mean=-6.5, input_std=3.0)
    model.save_pretrained(folder / "own")
    to_transformers(mae_ast.load(folder / "own"), folder / "hub")
    torch.save(load_file(folder / "hub/model.safetensors"), folder / "hub/pytorch_model.bin")
    (folder / "hub/model.safetensors").unlink()
    return model


def test_transformers_folder_with_pytorch_weights(tmp_path):
    model = hugging_face_folder(tmp_path)
    for source in (tmp_path / "hub", tmp_path / "hub/pytorch_model.bin"):
        found = mae_ast.load(source)
        waveform = speech_like(16_000)[None]
        assert_close(found.logits(waveform), model.logits(waveform), rtol=0, atol=1e-3)
        assert (found.config.input_mean, found.labels) == (-6.5, NAMES)
    (tmp_path / "hub/config.json").unlink()
    with pytest.raises(FileNotFoundError, match=r"config\.json: no such file; .* pytorch_model"):
        mae_ast.load(tmp_path / "hub/pytorch_model.bin")


class Hub:
    """Stand-in for huggingface_hub's client; ``offline`` names files that it cannot fetch."""

    def __init__(self, folder: Path, *offline: str) -> None:
        self.folder, self.offline = folder, offline

    def download(self, repo_id: str, filename: str, **_: Any) -> str:
        if filename in self.offline:
            raise LocalEntryNotFoundError("no network")
        if not (self.folder / filename).is_file():
            raise EntryNotFoundError(f"404 for {repo_id}/{filename}")
        return str(self.folder / filename)


def test_transformers_model_on_the_hub(tmp_path, monkeypatch):
    hugging_face_folder(tmp_path)
    monkeypatch.setattr(hub, "_try_once", lambda url: None)
    monkeypatch.setattr(pretrained, "hf_hub_download", Hub(tmp_path / "hub").download)
    monkeypatch.setattr(huggingface_hub.hub_mixin, "hf_hub_download", pretrained.hf_hub_download)
    assert mae_ast.load("someone/ast").config.input_mean == -6.5

    # Not read without preprocessor_config.json, as AudioSet's statistics would be wrong.
    without = Hub(tmp_path / "hub", "preprocessor_config.json")
    monkeypatch.setattr(pretrained, "hf_hub_download", without.download)
    with pytest.raises(FileNotFoundError, match=r"someone/ast: no such file, .* \(no network\)"):
        mae_ast.load("someone/ast")

    (tmp_path / "hub/pytorch_model.bin").unlink()
    monkeypatch.setattr(pretrained, "hf_hub_download", Hub(tmp_path / "hub").download)
    with pytest.raises(FileNotFoundError, match=r"someone/ast: has no model\.safetensors"):
        mae_ast.load("someone/ast")


def test_finetuned_ssast_pools_the_patch_tokens(mae_ast_command, tmp_path):
    """Read the layout of the authors' code, in which the image classifier is untrained."""
    model = ast(pool="tokens")
    state = write_ast(model.config, model.state_dict())
    state |= {"module.v.head.weight": torch.ones(10, 24), "module.v.head.bias": torch.zeros(10)}
    torch.save({"state_dict": state, "epoch": 3}, tmp_path / "ssast.ckpt")
    waveform = speech_like(16_000)[None]
    with torch.no_grad():
        expected = model.head(model.encode(waveform).patches.mean(1)).sigmoid()
    scores = load_finetuned(tmp_path / "ssast.ckpt").scores(waveform)
    assert_close(scores, expected, rtol=0, atol=1e-6)

    out, message = mae_ast_command(
        "convert", tmp_path / "ssast.ckpt", tmp_path / "a", "--to", "safetensors"
    )
    assert not message
    assert json.loads((tmp_path / "a/config.json").read_text())["pool"] == "tokens"
    assert_close(load_finetuned(tmp_path / "a").scores(waveform), expected, rtol=0, atol=1e-6)
    out, _ = mae_ast_command("convert", tmp_path / "a", tmp_path / "b.pth", "--to", "released")
    assert "cannot store pool=tokens" in out
