"""Pretraining from given weights: released files, exports, and checkpoints of other runs."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

import mae_ast
from mae_ast.core.models.config import MaeAstConfig
from mae_ast.hub import export
from mae_ast.hub import load as pretrained
from mae_ast.hub.load import PretrainedMaeAst

from .conftest import write_clips

Train = Callable[..., list[dict[str, str]]]
# With a learning rate of 0 a step keeps the weights as loaded.
ONE_IDLE_STEP = (
    "optimization.max_update=1",
    "optimization.lr=[0.0]",
    "dataset.num_workers=0",
    "dataset.disable_validation=true",
)


@pytest.fixture(scope="module")
def few_clips(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("few")
    write_clips(folder, "train", [1.0, 1.1, 1.2])
    return folder


@pytest.fixture
def source() -> PretrainedMaeAst:
    torch.manual_seed(5)
    config = MaeAstConfig(
        encoder_layers=2,
        encoder_embed_dim=64,
        encoder_ffn_embed_dim=128,
        encoder_attention_heads=4,
        decoder_layers=1,
        decoder_embed_dim=64,
    )
    return PretrainedMaeAst(config, "chunk_mask")


def write(source: PretrainedMaeAst, kind: str, folder: Path) -> Path:
    """Export a model as a file or folder of this kind; return its path."""
    if kind in ("safetensors", "folder"):
        export.to_safetensors(source, folder / "hub")
        return folder / "hub" / ("model.safetensors" if kind == "safetensors" else "")
    export.to_released_file(source, folder / "released.pt")
    if kind == "released in half precision":
        state = torch.load(folder / "released.pt", weights_only=True)
        state["model"] = {
            name: value.half() if value.is_floating_point() else value
            for name, value in state["model"].items()
        }
        torch.save(state, folder / "released.pt")
    return folder / "released.pt"


@pytest.mark.parametrize(
    "kind", ["released", "released in half precision", "safetensors", "folder"]
)
def test_starts_from_weights(
    train_here: Train, few_clips: Path, source: PretrainedMaeAst, tmp_path: Path, kind: str
) -> None:
    path = write(source, kind, tmp_path)
    train_here(few_clips, *ONE_IDLE_STEP, f"checkpoint.finetune_from_model={path}")
    trained = mae_ast.load(tmp_path / "checkpoints" / "checkpoint_last.pt").state_dict()
    for name, value in source.state_dict().items():
        if not name.startswith("batch_norm"):
            expected = value.half().float() if "half" in kind else value
            assert torch.equal(trained[name], expected), name
    assert trained["batch_norm.num_batches_tracked"] == 1


def test_starts_from_a_released_model_by_name(
    train_here: Train,
    few_clips: Path,
    source: PretrainedMaeAst,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    path = write(source, "released", tmp_path)
    monkeypatch.setattr(pretrained, "download", lambda *_: path)
    train_here(few_clips, *ONE_IDLE_STEP, "checkpoint.finetune_from_model=mae_ast_patch")
    trained = mae_ast.load(tmp_path)
    for name, value in source.named_parameters():
        assert torch.equal(trained.state_dict()[name], value), name


def test_fixed_input_statistics_are_those_of_the_settings(
    train_here: Train, few_clips: Path, source: PretrainedMaeAst, tmp_path: Path
) -> None:
    path = write(source, "released", tmp_path)
    fixed = ("model.input_stats=fixed", "model.input_mean=-6", "model.input_std=4")
    start = f"checkpoint.finetune_from_model={path}"
    for updates in (1, 2):  # the second time it resumes from its own checkpoint
        limit = f"optimization.max_update={updates}"
        train_here(few_clips, *ONE_IDLE_STEP, limit, *fixed, start)
        trained = mae_ast.load(tmp_path / "checkpoints" / "checkpoint_last.pt")
        assert trained.batch_norm.running_mean.item() == -6
        assert trained.batch_norm.running_var.item() == 16


def test_starts_at_update_0_from_the_weights_of_a_run(
    train_here: Train, few_clips: Path, tmp_path: Path
) -> None:
    train_here(few_clips, *ONE_IDLE_STEP, "optimization.lr=[0.01]", "lr_scheduler.warmup_updates=0")
    first = tmp_path / "first"  # folder of the first run
    first.mkdir()
    (tmp_path / "checkpoints").rename(first / "checkpoints")
    updates = train_here(few_clips, *ONE_IDLE_STEP, f"checkpoint.finetune_from_model={first}")
    assert [int(update["num_updates"]) for update in updates] == [1]
    trained = mae_ast.load(tmp_path / "checkpoints" / "checkpoint_last.pt")
    weights = mae_ast.load(first).state_dict()
    for name, value in trained.named_parameters():
        assert torch.equal(value, weights[name]), name


def test_mismatched_weights_give_a_one_line_error(
    train_here: Train, few_clips: Path, source: PretrainedMaeAst, tmp_path: Path
) -> None:
    path = write(source, "released", tmp_path)
    with pytest.raises(SystemExit) as refusal:
        train_here(
            few_clips,
            *ONE_IDLE_STEP,
            f"checkpoint.finetune_from_model={path}",
            "model.encoder_layers=3",
        )
    text = str(refusal.value.code)
    assert text.startswith("mae-ast: error: ")
    assert f"{path}: the weights do not match the model; missing: encoder.layers.2." in text
    assert "\n" not in text


@pytest.mark.parametrize("content", [None, b"no checkpoint", b""])
def test_a_missing_or_invalid_file_gives_a_one_line_error(
    train_here: Train, few_clips: Path, tmp_path: Path, content: bytes | None
) -> None:
    path = tmp_path / "weights.pt"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(SystemExit) as refusal:
        train_here(few_clips, *ONE_IDLE_STEP, f"checkpoint.finetune_from_model={path}")
    text = str(refusal.value.code)
    assert text.startswith("mae-ast: error: ")
    assert "weights.pt" in text
    assert "\n" not in text
