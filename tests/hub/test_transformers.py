"""Folders exported for transformers: they compute what this package computes, without it."""

from __future__ import annotations

import dataclasses
import json
import math
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from torch.testing import assert_close

import mae_ast
from mae_ast.core.checkpoints.classifier import ClassifierSpec
from mae_ast.core.checkpoints.reader import CheckpointError
from mae_ast.core.frontend.fbank import num_samples_of_frames
from mae_ast.core.io.labels import Labels
from mae_ast.core.models import registry
from mae_ast.core.models.classifier import Classifier, HeadConfig
from mae_ast.core.models.registry import build_encoder, system_name
from mae_ast.finetune.checkpoint import FineTuned, load_finetuned
from mae_ast.finetune.initialize import finetuning_config
from mae_ast.hub.export_transformers import to_transformers
from mae_ast.hub.load import hub_class
from mae_ast.hub.transformers_files.modeling_spectrogram_transformer import (
    SpectrogramTransformerForAudioClassification,
    SpectrogramTransformerModel,
)
from tests.core.vits import FRAME_TOKENS, with_random_weights
from tests.sounds import speech_like
from tests.systems.cases import CASES, FIRST, names_without_gradient

pytestmark = pytest.mark.slow

WAVES = [speech_like(length, seed) for seed, length in enumerate((40_000, 16_000, 2_800))]
LABELS = Labels(("/m/a", "/m/b", "/m/c"), ("Animal", "Bird, singing", "Rain"))
SYSTEMS = ("mae_ast", "ssast", "audio_mae", "ast")
FIXED = {"input_frames": 128}
NATIVE = FIXED | {"prefix_tokens": 2}
ENCODERS = {
    **{name: FIRST[name].config() for name in (*SYSTEMS, "vit")},
    **{f"{name}: frames": FIRST[name].config(**FRAME_TOKENS) for name in SYSTEMS},
    **{name: CASES[name].config() for name in ("mae_ast: pre-norm", "ssast: CLS only")},
    **{name: CASES[name].config() for name in ("mae_ast: fixed length", "ast: tokens")},
    **{
        f"{name}: overlap": finetuning_config(FIRST[name].config(), overlap=True)
        for name in ("mae_ast", "audio_mae")
    },
    "mae_ast: frames overlap": finetuning_config(FIRST["mae_ast"].config(**FRAME_TOKENS), True),
}
# System, fields of its encoder, head, sigmoid.
CLASSIFIERS = {
    **{
        f"{name} {tokens}": (name, fields, HeadConfig(3), name == "ssast")
        for name in SYSTEMS
        for tokens, fields in (("patch", {}), ("frame", FRAME_TOKENS))
    },
    "mlp": ("mae_ast", {}, HeadConfig(3, "mlp", "tokens", layer_norm_eps=0.1), True),
    "fixed length": ("audio_mae", FIXED, HeadConfig(3, pool="encoder"), False),
    "native": ("ast", NATIVE, HeadConfig(3, pool="encoder"), True),
    "native softmax": ("ast", NATIVE, HeadConfig(3, pool="encoder"), False),
    "ast frame with its head": ("ast", FIXED | FRAME_TOKENS, HeadConfig(3, pool="encoder"), True),
    "ast of any length": ("ast", {}, HeadConfig(3, pool="encoder"), False),
}


def encoder(config: Any) -> Any:
    model = with_random_weights(hub_class(system_name(config))(config, None, encoder_only=True))
    model.batch_norm.running_mean.fill_(-7.3)
    return model.eval()


def classifier(system: str, fields: dict[str, Any], head: HeadConfig, sigmoid: bool) -> FineTuned:
    config = FIRST[system].config(**fields)
    model = with_random_weights(Classifier(build_encoder(config), head))
    model.encoder.batch_norm.running_mean.fill_(-7.3)
    spec = ClassifierSpec(config, head, LABELS, sigmoid, sigmoid, clip_samples=16_000)
    return FineTuned(model, spec)


def padded(waves: list[Tensor]) -> tuple[Tensor, Tensor]:
    return pad_sequence(waves, batch_first=True), torch.tensor([len(wave) for wave in waves])


@pytest.fixture(scope="module")
def found(tmp_path_factory) -> dict[str, Any]:
    """Outputs of all models, computed in a process that cannot import this package."""
    root = tmp_path_factory.mktemp("exported")
    for number, config in enumerate(ENCODERS.values()):
        assert to_transformers(encoder(config), root / f"encoder_{number}") == "AutoModel"
    for number, (name, values) in enumerate(CLASSIFIERS.items()):
        loader = to_transformers(classifier(*values), root / f"classifier_{number}")
        native = name.startswith("native")
        assert loader == f"{'AST' if native else 'AutoModel'}ForAudioClassification"
    torch.save(WAVES, root / "inputs.pt")
    script = Path(__file__).with_name("load_with_transformers.py")
    home = {"HF_HOME": str(root / ".home"), "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(
        [sys.executable, str(script), str(root)],
        cwd=root,
        env=dict(os.environ) | home,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    return torch.load(root / "outputs.pt")


@pytest.mark.parametrize("name", ENCODERS)
def test_encoder_computes_our_states(found, name):
    model = encoder(ENCODERS[name])
    there = found[f"encoder_{list(ENCODERS).index(name)}"]
    source, lengths = padded(WAVES)
    with torch.no_grad():
        encoded = model.encode(source, lengths)
        states = model.hidden_states(source, lengths)
        alone = model.encode(source[:1]).patches
        pooled = model.pooled(source, lengths)
    valid = slice(None) if encoded.valid is None else encoded.valid
    num_prefix = model.config.prefix_tokens
    assert len(there["states"]) == len(states) + 1
    for theirs, ours in zip(there["states"], (*states, encoded.patches), strict=True):
        assert_close(theirs[:, num_prefix:][valid], ours[valid], rtol=0, atol=1e-5)
    assert_close(there["states"][-1][:, :num_prefix], encoded.prefix, rtol=0, atol=1e-5)
    assert_close(there["alone"][:, num_prefix:], alone, rtol=0, atol=1e-5)
    assert_close(there["pooled"], pooled, rtol=0, atol=1e-5)
    assert (there["mask"] is None) == (encoded.valid is None)
    assert there["mask"] is None or torch.equal(there["mask"], encoded.valid)


@pytest.mark.parametrize("name", CLASSIFIERS)
def test_classifier_and_pipeline_give_our_scores(found, name):
    model = classifier(*CLASSIFIERS[name])
    there = found[f"classifier_{list(CLASSIFIERS).index(name)}"]
    # The extractor of transformers' AST crops clips.
    end = num_samples_of_frames(128) if name.startswith("native") else None
    expected = model.scores(*padded([wave[:end] for wave in WAVES]))
    to_scores = torch.sigmoid if model.description.independent else lambda x: x.softmax(1)
    assert_close(to_scores(there["logits"]), expected, rtol=0, atol=1e-5)
    for row, scores in enumerate(there["scores"]):
        ours = dict(zip(LABELS.names, expected[row].tolist(), strict=True))
        assert scores == pytest.approx(ours, abs=1e-5)


# In this process


def in_transformers(model: Any, folder: Path, **options: Any) -> Any:
    """Export a model, and load it with transformers."""
    is_classifier = to_transformers(model, folder).endswith("Classification")
    kind = (
        SpectrogramTransformerForAudioClassification
        if is_classifier
        else SpectrogramTransformerModel
    )
    return kind.from_pretrained(folder, **options)


def test_encoder_of_a_classifier_is_loaded_without_a_report_on_its_head(tmp_path):
    to_transformers(classifier("mae_ast", {}, HeadConfig(3), False), tmp_path / "a")
    _, report = SpectrogramTransformerModel.from_pretrained(
        tmp_path / "a", output_loading_info=True
    )
    assert not report["unexpected_keys"]
    assert not report["missing_keys"]


@pytest.mark.parametrize("sigmoid", [False, True], ids=["softmax", "sigmoid"])
def test_clips_of_more_than_30_s_are_scored_in_windows(tmp_path, sigmoid):
    ours = classifier("mae_ast", {}, HeadConfig(3), sigmoid)
    model = in_transformers(ours, tmp_path / "a")
    source, lengths = padded([speech_like(62 * 16_000), WAVES[1]])
    mask = torch.arange(source.shape[1]) < lengths[:, None]
    with torch.no_grad():
        out = model(source, mask, output_hidden_states=True)
    scores = out.logits.sigmoid() if sigmoid else out.logits.softmax(1)
    assert_close(scores, ours.scores(source, lengths), rtol=0, atol=1e-5)
    assert out.hidden_states is None


def test_encoder_of_its_own_is_refused(tmp_path, monkeypatch):
    monkeypatch.setitem(registry.SYSTEMS, "toy", CASES["toy: patches"].system)
    model = hub_class("toy")(CASES["toy: patches"].config(), "random_mask")
    with pytest.raises(ValueError, match="a model of kind 'toy' has an encoder of its own"):
        to_transformers(model, tmp_path / "a")
    assert os.listdir(tmp_path) == []


def test_clip_shorter_than_one_patch_is_refused(tmp_path):
    model = in_transformers(encoder(ENCODERS["mae_ast"]), tmp_path / "a")
    with pytest.raises(ValueError, match=r"2799 samples at 16 kHz are shorter .* \(2800\)$"):
        model(torch.zeros(1, 2_799))


def test_a_head_is_added_to_an_encoder_and_trained(tmp_path):
    """Replace the task of a pretrained model, as transformers' Trainer does."""
    to_transformers(encoder(ENCODERS["ssast"]), tmp_path / "a")
    model = SpectrogramTransformerForAudioClassification.from_pretrained(
        tmp_path / "a", num_labels=4, problem_type="single_label_classification"
    )
    assert float(model.head[-1].weight.detach().std()) == pytest.approx(0.02, rel=0.2)
    own = load_file(tmp_path / "a/model.safetensors")
    state = model.state_dict()
    assert all(torch.equal(state[f"model.{name}"], value) for name, value in own.items())

    model.gradient_checkpointing_enable()
    model.train()
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    source, labels = torch.stack([WAVES[0], -WAVES[0].flip(0)]), torch.tensor([1, 3])
    losses = []
    for _ in range(5):
        loss = model(source, labels=labels).loss
        optimizer.zero_grad()
        loss.backward()
        losses.append(float(loss.detach()))
        assert not names_without_gradient(model)
        optimizer.step()
    assert losses[0] == pytest.approx(math.log(4), rel=0.2)
    assert losses[-1] < losses[0]
    model.eval().save_pretrained(tmp_path / "b")
    again = SpectrogramTransformerForAudioClassification.from_pretrained(tmp_path / "b")
    with torch.no_grad():
        expected = model(source).logits
        assert torch.equal(again(source).logits, expected)
    found = load_finetuned(tmp_path / "b")
    assert_close(found.scores(source), expected.softmax(1), rtol=0, atol=1e-5)


def test_loss_of_several_labels(tmp_path):
    model = in_transformers(classifier("mae_ast", {}, HeadConfig(3), True), tmp_path / "a")
    labels = torch.tensor([[1, 0, 1], [0, 0, 1]])
    out = model(torch.stack([WAVES[1], WAVES[1].flip(0)]), labels=labels)
    p = out.logits.sigmoid()
    expected = -torch.where(labels == 1, p, 1 - p).log().mean()
    assert_close(out.loss, expected)


@pytest.mark.parametrize("kind", ["multi", "single"])
def test_problem_type_follows_from_the_labels_unless_set(tmp_path, kind):
    to_transformers(encoder(ENCODERS["mae_ast"]), tmp_path / "a")
    model = SpectrogramTransformerForAudioClassification.from_pretrained(tmp_path / "a")
    assert model.config.problem_type is None
    labels = torch.tensor([[1.0, 1.0], [0.0, 1.0]]) if kind == "multi" else torch.tensor([0, 1])
    out = model(torch.stack([WAVES[1], WAVES[1].flip(0)]), labels=labels)
    p = out.logits.sigmoid() if kind == "multi" else out.logits.softmax(1)
    right = torch.where(labels == 1, p, 1 - p) if kind == "multi" else p.diagonal()
    assert_close(out.loss, -right.log().mean())
    assert model.config.problem_type == f"{kind}_label_classification"


def test_bfloat16_keeps_the_filterbank_in_float32(tmp_path):
    ours = classifier("audio_mae", {}, HeadConfig(3), False)
    model = in_transformers(ours, tmp_path / "a", dtype=torch.bfloat16)
    assert model.head[-1].weight.dtype == torch.bfloat16
    source = WAVES[0][None]
    with torch.no_grad():
        logits = model(source).logits
        patches, _ = model.model.patches(source, None)
        expected = ours.model(source)
    assert_close(patches, ours.model.encoder.patches(source), rtol=0, atol=1e-5)
    assert_close(logits, expected, rtol=0, atol=0.1)
    integers = (source * 32767).round().to(torch.int16)
    assert_close(model(integers).logits.detach(), logits, rtol=0, atol=0.05)


@pytest.mark.parametrize("name", ["mae_ast patch", "ssast frame", "mlp", "ast frame with its head"])
def test_exported_classifier_is_read_back(tmp_path, mae_ast_command, name):
    ours = classifier(*CLASSIFIERS[name])
    to_transformers(ours, tmp_path / "a")
    found = load_finetuned(tmp_path / "a")
    assert found.description == dataclasses.replace(
        ours.description, encoder=found.description.encoder
    )
    waves = padded(WAVES[:2])
    assert_close(found.scores(*waves), ours.scores(*waves), rtol=0, atol=1e-6)
    loaded = mae_ast.load(tmp_path / "a")
    assert loaded.encoder_only
    states = ours.model.encoder.hidden_states(WAVES[0][None])
    assert_close(loaded.hidden_states(WAVES[0][None]), states, rtol=0, atol=0)
    _, message = mae_ast_command("convert", tmp_path / "a", tmp_path / "b", "--to", "transformers")
    assert not message
    weights = load_file(tmp_path / "a/model.safetensors")
    again = load_file(tmp_path / "b/model.safetensors")
    assert weights.keys() == again.keys()
    assert all(torch.equal(again[name], value) for name, value in weights.items())
    fields = [json.loads((tmp_path / each / "config.json").read_text()) for each in "ab"]
    assert fields[0] == fields[1]


def test_class_ids_are_kept_when_transformers_saves_the_folder(tmp_path):
    """It sorts the keys of config.json."""
    ours = classifier(*CLASSIFIERS["mae_ast patch"])
    ours.description = dataclasses.replace(
        ours.description, labels=Labels(("/m/c", "/m/a", "/m/b"), LABELS.names), multi_label=True
    )
    in_transformers(ours, tmp_path / "a").save_pretrained(tmp_path / "b")
    found = load_finetuned(tmp_path / "b").description
    assert found.labels == ours.description.labels
    assert found.multi_label


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"positions": "grid"}, "positions='grid'; 'mae_ast' has 'sinusoidal'"),
        ({"encoder_embed_dim": 25}, "encoder_embed_dim=25"),
        ({"system": "other"}, "unknown system 'other'"),
        ({"encoder_layers": None}, "encoder_layers"),
    ],
)
def test_invalid_field_of_an_exported_folder_is_named(tmp_path, change, words):
    to_transformers(encoder(ENCODERS["mae_ast"]), tmp_path / "a")
    path = tmp_path / "a/config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(CheckpointError, match=words) as refusal:
        mae_ast.load(tmp_path / "a")
    assert str(refusal.value).startswith(str(path))
