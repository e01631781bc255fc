"""Weights with NaN or infinity are refused when a checkpoint is loaded."""

from __future__ import annotations

from pathlib import Path

import pytest
import soundfile
import torch
from torch import Tensor

import mae_ast
from mae_ast.core.checkpoints.classifier import ClassifierSpec
from mae_ast.core.checkpoints.reader import FINETUNING, CheckpointError
from mae_ast.core.checkpoints.state_dict import first_not_finite
from mae_ast.core.checkpoints.timm import to_timm
from mae_ast.core.io.labels import Labels
from mae_ast.core.io.manifest import write_manifest
from mae_ast.core.models.classifier import Classifier, HeadConfig
from mae_ast.core.models.config import AstConfig
from mae_ast.core.models.encoder import encoder_only
from mae_ast.core.models.registry import SYSTEMS
from mae_ast.finetune.checkpoint import load_finetuned
from mae_ast.finetune.initialize import start_ast
from mae_ast.hub.load import hub_class
from tests.core.vits import SMALL
from tests.sounds import speech_like
from tests.systems.cases import FIRST

WEIGHT = "encoder.layers.1.fc1.weight"


def spoil(state: dict[str, Tensor], name: str, value: float) -> dict[str, Tensor]:
    """Replace one value of a weight."""
    state[name] = state[name].clone()
    state[name].view(-1)[-1] = value
    return state


@pytest.fixture(params=sorted(SYSTEMS))
def folder(request, tmp_path) -> Path:
    """Save a model in the hub's layout, with NaN in one weight."""
    model = hub_class(request.param)(FIRST[request.param].config(), "random_mask")
    model.load_state_dict(spoil(model.state_dict(), WEIGHT, torch.nan))
    model.save_pretrained(tmp_path / "model")
    return tmp_path / "model"


def expected(path: Path, name: str = WEIGHT) -> str:
    return f"{path}: {name} holds NaN or infinity; its training has diverged"


def test_loading_is_refused_for_every_system(folder):
    with pytest.raises(CheckpointError) as refusal:
        mae_ast.load(folder)
    assert str(refusal.value) == expected(folder)


@pytest.mark.parametrize("folder", ["mae_ast"], indirect=True)
def test_commands_refuse_and_write_nothing(mae_ast_command, folder, tmp_path):
    pytest.importorskip("matplotlib", reason="reconstruct needs matplotlib")
    soundfile.write(tmp_path / "a.wav", speech_like(16_000).numpy(), 16_000)
    write_manifest(tmp_path / "train.tsv", ".", [("a.wav", 16_000, 16_000)])
    out = tmp_path / "out"
    for arguments in (
        ("extract", folder, tmp_path / "train.tsv", out),
        ("reconstruct", folder, tmp_path / "a.wav", "-o", out),
        ("convert", folder, out, "--to", "released"),
    ):
        printed, message = mae_ast_command(*arguments)
        assert message == f"mae-ast: error: {expected(folder)}"
        assert not printed
        assert not out.exists()


@pytest.mark.parametrize("folder", ["ast"], indirect=True)
def test_prediction_is_refused(mae_ast_command, folder, tmp_path):
    soundfile.write(tmp_path / "a.wav", speech_like(16_000).numpy(), 16_000)
    printed, message = mae_ast_command("predict", folder, tmp_path / "a.wav")
    assert message == f"mae-ast: error: {expected(folder, f'encoder.{WEIGHT}')}"
    assert not printed


def test_non_finite_features_of_finite_weights_are_refused(mae_ast_command, small_config, tmp_path):
    pytest.importorskip("matplotlib", reason="reconstruct needs matplotlib")
    model = hub_class("mae_ast")(small_config(), "random_mask")
    model.encoder.layers[1].fc1.weight.data.fill_(1e30)
    model.save_pretrained(tmp_path / "model")
    soundfile.write(tmp_path / "a.wav", speech_like(16_000).numpy(), 16_000)
    write_manifest(tmp_path / "train.tsv", ".", [("a.wav", 16_000, 16_000)])
    source = tmp_path / "model"
    for subject, arguments in (
        ("features are", ("extract", source, tmp_path / "train.tsv", tmp_path / "out")),
        ("prediction is", ("reconstruct", source, tmp_path / "a.wav", "-o", tmp_path / "a.png")),
    ):
        _, message = mae_ast_command(*arguments)
        assert message.endswith(f"the model's {subject} not finite; its training has diverged")
    assert not (tmp_path / "out" / "train_0_1.npy").exists()
    assert not (tmp_path / "a.png").exists()


@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
def test_finetuned_classifier_is_refused(small_config, tmp_path, value):
    encoder = encoder_only(SYSTEMS["mae_ast"].network(small_config()))
    head = HeadConfig(2)
    labels = Labels(("a", "b"), ("a", "b"))
    spec = ClassifierSpec(encoder.config, head, labels, False, False, 16_000)
    state = Classifier(encoder, head).state_dict()
    for epoch in (1, 2):
        weights = spoil(dict(state), "head.2.bias", value) if epoch == 1 else state
        content = {"model": weights, "task_state": {FINETUNING: spec.to_dict()}}
        torch.save(content, tmp_path / f"checkpoint{epoch}.pt")
    first = tmp_path / "checkpoint1.pt"
    for source, num_averaged in ((first, 1), (tmp_path, 2)):
        with pytest.raises(CheckpointError) as refusal:
            load_finetuned(source, num_averaged)
        assert str(refusal.value) == expected(first, "head.2.bias")


def test_training_refuses_to_load_it(small_config):
    models = pytest.importorskip("fairseq.models", reason="needs fairseq")
    from mae_ast.models import pretraining  # noqa: F401  (registers the models)

    model = models.MODEL_REGISTRY["mae_ast"](small_config())
    model.weights_are_from = "runs/a/checkpoints/checkpoint_last.pt"
    state = spoil(dict(model.state_dict()), WEIGHT, torch.nan)
    with pytest.raises(CheckpointError) as error:
        model.load_state_dict(state)
    assert str(error.value) == expected(Path(model.weights_are_from))


def test_timm_vit_is_refused_for_initialisation(tmp_path):
    settings = pytest.importorskip("mae_ast.models.ast", reason="needs fairseq").AstModelConfig
    config = AstConfig(**SMALL)
    state = to_timm(config, SYSTEMS["ast"].network(config).state_dict())
    path = tmp_path / "vit.pth"
    torch.save({"state_dict": spoil(state, "blocks.1.attn.qkv.bias", torch.nan)}, path)
    message = rf"model\.checkpoint={path}: blocks\.1\.attn\.qkv\.bias holds NaN"
    with pytest.raises(ValueError, match=message):
        start_ast(settings(**SMALL, checkpoint=str(path)), 527)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_large_finite_weights_are_accepted(dtype):
    """Accept weights whose sum overflows."""
    large = torch.full((100,), torch.finfo(dtype).max, dtype=dtype)
    assert first_not_finite({"count": torch.tensor(3), "large": large}) is None
    large[3] = torch.inf
    assert first_not_finite({"count": torch.tensor(3), "large": large}) == "large"
