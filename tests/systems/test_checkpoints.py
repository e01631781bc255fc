"""Files of every system: each kind that is written is read back, with equal weights."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch

import mae_ast
from mae_ast.core.checkpoints.classifier import FINETUNING, ClassifierSpec
from mae_ast.core.checkpoints.reader import RUN_FILE, CheckpointError, read_checkpoint
from mae_ast.core.io.labels import Labels
from mae_ast.core.models.classifier import Classifier, HeadConfig
from mae_ast.core.models.registry import build_encoder, system_name
from mae_ast.evaluate.probe import with_random_weights as untrained
from mae_ast.finetune.checkpoint import load_finetuned
from mae_ast.hub.export import to_released_file, to_safetensors
from mae_ast.hub.load import hub_class, load_masked
from tests.core.vits import with_random_weights
from tests.sounds import speech_like
from tests.systems.cases import FIRST, MASKED, Case, one_of_each, system_of

LABELS = Labels(("/m/a", "/m/b"), ("Animal", "Bird, singing"))
# What the published layouts assume: D / 64 attention heads, and the usual length of clips.
PUBLISHED: dict[str, dict[str, Any]] = {
    "mae_ast": {
        **{"decoder_ffn_embed_dim": None, "decoder_attention_heads": None},
        "decoder_embed_dim": 48,
    },
    "ssast": {"encoder_attention_heads": 1, "input_frames": 128},
    "ast": {"encoder_attention_heads": 1, "input_frames": 128},
    "audio_mae": {
        **{"encoder_attention_heads": 1, "decoder_attention_heads": 16},
        **{"decoder_attention": "global", "input_frames": 1024, "position_frames": 1024},
    },
}
STATISTICS = {f"batch_norm.{name}" for name in ("running_mean", "running_var")}
masked_of_each = pytest.mark.parametrize(
    "case", [case for case in FIRST.values() if case.predict], ids=system_of
)


def pretrained(case: Case, **fields: Any) -> Any:
    """Build a model as :func:`mae_ast.load` returns it."""
    config = case.config(**fields)
    mask_type = "random_mask" if case.predict else None
    return with_random_weights(hub_class(system_name(config))(config, mask_type)).eval()


def assert_same(found: Any, model: Any) -> None:
    assert type(found) is type(model)
    assert (found.config, found.mask_type) == (model.config, model.mask_type)
    assert not found.training
    assert found.state_dict().keys() == model.state_dict().keys()
    for name, value in model.state_dict().items():
        assert torch.equal(found.state_dict()[name], value), name


def trainers_file(model: Any, path: Path) -> Path:
    """Write the checkpoint of a run in the trainer's layout."""
    fields = {"_name": system_name(model.config), **dataclasses.asdict(model.config)}
    cfg = {"model": fields, "task": {"mask_type": model.mask_type}}
    (path / RUN_FILE).parent.mkdir(parents=True)
    torch.save({"cfg": cfg, "model": model.state_dict()}, path / RUN_FILE)
    return path


def finetuned_file(case: Case, path: Path, head: HeadConfig) -> Classifier:
    """Write the checkpoint of a fine-tuned classifier, and return the classifier."""
    encoder = build_encoder(case.config(input_stats="fixed", encoder_layerdrop=0.5))
    classifier = with_random_weights(Classifier(encoder, head)).eval()
    spec = ClassifierSpec(encoder.config, head, LABELS, False, False, clip_samples=16_000)
    (path / RUN_FILE).parent.mkdir(parents=True)
    state = {"model": classifier.state_dict(), "task_state": {FINETUNING: spec.to_dict()}}
    torch.save(state, path / RUN_FILE)
    return classifier


@one_of_each
def test_folder_of_safetensors_round_trip(case: Case, tmp_path: Path) -> None:
    model = pretrained(case)
    to_safetensors(model, tmp_path / "a")
    for source in (tmp_path / "a", tmp_path / "a" / "model.safetensors"):
        assert_same(mae_ast.load(source), model)


@masked_of_each
def test_checkpoint_of_a_run_round_trip(case: Case, tmp_path: Path) -> None:
    model = pretrained(case)
    run = trainers_file(model, tmp_path / "run")
    for source in (run, run / RUN_FILE):
        assert_same(mae_ast.load(source), model)
    assert load_masked(run).mask_type == "random_mask"


@one_of_each
def test_released_layout_round_trip(case: Case, tmp_path: Path) -> None:
    name = system_name(case.config())
    if name not in PUBLISHED:
        with pytest.raises(ValueError, match=f"a model of kind '{name}' has no released layout"):
            to_released_file(pretrained(case), tmp_path / "a.pt")
        return
    model = pretrained(case, **PUBLISHED[name])
    unstored = to_released_file(model, tmp_path / "a.pt")
    statistics = {key: getattr(model.config, key) for key in ("input_mean", "input_std")}
    assert unstored == ({} if name == "mae_ast" else pytest.approx(statistics))
    found = mae_ast.load(tmp_path / "a.pt")
    stored = {key: value for key, value in model.state_dict().items() if key not in STATISTICS}
    assert stored.keys() == found.state_dict().keys() - STATISTICS
    for key, value in stored.items():
        assert torch.equal(found.state_dict()[key], value), key
    for norm, own in zip(found.batch_norm.buffers(), model.batch_norm.buffers(), strict=True):
        norm.copy_(own)
    wave = speech_like(16_000)[None]
    for ours, theirs in zip(found.hidden_states(wave), model.hidden_states(wave), strict=True):
        assert torch.equal(ours, theirs)
    assert to_released_file(found, tmp_path / "again.pt") == unstored
    first, second = (mae_ast.load(tmp_path / name) for name in ("a.pt", "again.pt"))
    assert_same(second, first)


@one_of_each
@pytest.mark.parametrize("pool", ["time_steps", "encoder"])
def test_fine_tuned_checkpoint_round_trip(case: Case, pool: str, tmp_path: Path) -> None:
    classifier = finetuned_file(case, tmp_path / "run", HeadConfig(2, "mlp", pool))
    wave = speech_like(12_000)[None]
    with torch.no_grad():
        expected = classifier(wave).softmax(1)
        states = classifier.encoder.hidden_states(wave)
    found = load_finetuned(tmp_path / "run")
    assert torch.equal(found.scores(wave), expected)
    assert found.labels == LABELS
    assert found.description.encoder == classifier.encoder.config
    assert found.model.head_config == classifier.head_config

    encoder = mae_ast.load(tmp_path / "run")  # the encoder alone
    assert type(encoder) is hub_class(system_name(case.config()))
    assert encoder.encoder_only
    to_safetensors(encoder, tmp_path / "hub")
    for model in (encoder, mae_ast.load(tmp_path / "hub")):
        assert not model.training
        for ours, theirs in zip(model.hidden_states(wave), states, strict=True):
            assert torch.equal(ours, theirs)


@one_of_each
def test_damaged_files_are_named(case: Case, tmp_path: Path) -> None:
    model = pretrained(case)
    run = trainers_file(model, tmp_path / "run")
    state = torch.load(run / RUN_FILE, weights_only=True)
    removed = next(name for name in state["model"] if "self_attn.q_proj.weight" in name)
    weights = {name: value for name, value in state["model"].items() if name != removed}
    torch.save({**state, "model": {**weights, "nonsense": torch.zeros(1)}}, run / RUN_FILE)
    with pytest.raises(CheckpointError) as refusal:
        mae_ast.load(run)
    for words in (str(run), f"missing: {removed}", "unknown: nonsense"):
        assert words in str(refusal.value)
    state["cfg"]["model"]["encoder_layers"] = 0
    torch.save(state, run / RUN_FILE)
    with pytest.raises(CheckpointError, match=r"encoder_layers=0; must be an integer >= 1$"):
        read_checkpoint(run)


@one_of_each
def test_probe_baseline_is_the_same_network_untrained(case: Case) -> None:
    model = pretrained(case)
    fresh = untrained(model)
    assert type(fresh) is type(model)
    assert fresh.config == model.config
    drawn = fresh.encoder.layers[0].fc1.weight
    assert not torch.equal(drawn, model.encoder.layers[0].fc1.weight)
    assert torch.equal(fresh.batch_norm.running_mean, model.batch_norm.running_mean)


def test_all_masked_systems_can_reconstruct(tmp_path: Path) -> None:
    systems = list(dict.fromkeys(case.split(":")[0] for case in MASKED))
    for case in FIRST.values():
        if case.predict is None:
            to_safetensors(pretrained(case), folder := tmp_path / case.system.network.__name__)
            with pytest.raises(ValueError, match="cannot reconstruct masked patches") as refusal:
                load_masked(folder)
            assert f"{', '.join(map(repr, systems))} can" in str(refusal.value)
