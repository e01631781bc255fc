"""Fine-tuning of AST and SSAST: initial weights, training and loading of the result."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import huggingface_hub
import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor
from torch.testing import assert_close

from mae_ast.core.checkpoints.timm import from_timm
from mae_ast.core.io.audio import read_audio
from mae_ast.core.models.ast import Ast
from mae_ast.core.models.config import AUDIOSET_MEAN, AUDIOSET_STD, AstConfig, SsastConfig
from mae_ast.core.models.encoder import PARTS, Encoder
from mae_ast.finetune.checkpoint import FineTuned, load_finetuned
from mae_ast.finetune.initialize import finetuning_config, fitted
from mae_ast.hub.load import read_encoder
from mae_ast.trainer.command import train_command
from tests.core.vits import with_random_weights
from tests.web_server import WebServer

from .classification import (
    TINY_AST,
    Log,
    finetune_here,
    tiny_ssast,
    write_corpus,
    write_pretrained,
    write_tiny_ssast,
)

Finetune = Callable[..., Log]
IDLE = (
    *("optimization.max_update=1", "optimization.lr=[0.0]", "optimizer.weight_decay=0"),
    "dataset.disable_validation=true",
)
NAME = "deit_tiny_distilled_patch16_224"


def start_from(model: Encoder, pretrained: Encoder) -> None:
    """Copy the encoder weights of a model into one with other strides, frames or prefix tokens."""
    names = [name for name in pretrained.state_dict() if name.split(".")[0] in PARTS[1:]]
    weights = {name: pretrained.state_dict()[name] for name in names}
    model.load_state_dict(
        {**model.state_dict(), **fitted(weights, pretrained.config, model.config)}
    )


@pytest.fixture(scope="module")
def tones(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_corpus(tmp_path_factory.mktemp("tones"))


@pytest.fixture(scope="module")
def ssast(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_ssast(tmp_path_factory.mktemp("ssast") / "tiny.pth")


@pytest.fixture
def finetune(train_here: Any, caplog: pytest.LogCaptureFixture, tones: Path) -> Finetune:
    """``finetune(overrides)``: AST's ESC-50 preset at tiny size, by default from random weights."""

    def run(*overrides: str) -> Log:
        return finetune_here(caplog, "ast_esc50", tones, *TINY_AST, *overrides)

    return run


@pytest.fixture
def finetune_ssast(
    train_here: Any, caplog: pytest.LogCaptureFixture, tones: Path, ssast: Path
) -> Finetune:
    """``finetune_ssast(overrides)``: SSAST's ESC-50 preset, from a tiny released file."""

    def run(*overrides: str) -> Log:
        given = (f"model.checkpoint={ssast}", "model.input_frames=100", *overrides)
        return finetune_here(caplog, "ssast_esc50", tones, *given)

    return run


@pytest.fixture
def clips(tones: Path) -> tuple[Tensor, Tensor]:
    """Return two waveforms, zero-padded to a batch, and their lengths."""
    waves = [read_audio(tones / f"valid_0{number}.flac") for number in range(2)]
    lengths = torch.tensor([len(wave) for wave in waves])
    return torch.nn.utils.rnn.pad_sequence(waves, batch_first=True), lengths


def refusal(start: Finetune, *overrides: str) -> str:
    """Return the one-line error of a training that must not start."""
    with pytest.raises(SystemExit) as error:
        start("checkpoint.no_save=true", *overrides)
    text = str(error.value.code)
    assert text.startswith("mae-ast: error: ")
    assert "\n" not in text
    return text


def image_net(heads: int = 1, distilled: bool = True) -> Any:
    """Build a timm ViT for RGB images of 64 x 64, as small as ``TINY_AST``."""
    pytest.importorskip("timm")
    from timm.models.deit import VisionTransformerDistilled
    from timm.models.vision_transformer import VisionTransformer

    kind = VisionTransformerDistilled if distilled else VisionTransformer
    sizes = {"embed_dim": 64, "depth": 2, "num_heads": heads, "mlp_ratio": 1.5}
    return with_random_weights(kind(img_size=64, num_classes=10, **sizes))


@pytest.fixture
def timm_has(monkeypatch: pytest.MonkeyPatch) -> Callable[[Any], list[Any]]:
    """``timm_has(found)``: make timm return this model, or raise this error, for any name.

    Returns the list of requests, to which each call of ``timm.create_model`` is added.
    """
    timm = pytest.importorskip("timm")

    def has(found: Any) -> list[Any]:
        asked = []

        def create_model(name: str, pretrained: bool) -> Any:
            asked.append((name, pretrained))
            if isinstance(found, Exception):
                raise found
            return found

        monkeypatch.setattr(timm, "create_model", create_model)
        return asked

    return has


def tiny_ast(**fields: Any) -> Ast:
    """Build the model that ``TINY_AST`` describes."""
    sizes = {
        "encoder_layers": 2,
        "encoder_embed_dim": 64,
        "encoder_ffn_embed_dim": 96,
        "encoder_attention_heads": 1,
        "position_frames": 64,
        "input_frames": 64,
        "num_classes": 3,
    }
    return Ast(AstConfig(**(sizes | fields))).eval()


def assert_logits_are_those_of(
    found: FineTuned, encoder: Encoder, clips: tuple[Tensor, Tensor]
) -> None:
    """Compare with the logits of the classifier's head on an encoder built by the test."""
    layer_norm, _, linear = found.model.head
    with torch.no_grad():
        expected = linear(layer_norm(encoder.pooled(*clips)))
        assert_close(found.model(*clips), expected, rtol=0, atol=1e-5)
    assert expected.std() > 1e-3


# --- AST ----------------------------------------------------------------------------------------


def test_learns_tones_from_random_weights(
    finetune: Finetune, tmp_path: Path, clips: tuple[Tensor, Tensor]
) -> None:
    short = ("optimization.max_update=40", "optimization.lr=[0.003]", "optimizer.weight_decay=0")
    plain = ("task.freq_mask=0", "task.time_mask=0", "task.shift_samples=0")
    given = ("model.head_dropout=0.1", "model.input_mean=-9", "model.input_std=5")
    log = finetune(*short, *plain, *given, "dataset.disable_validation=true")
    losses = [float(update["loss"]) for update in log["train_inner"]]
    assert np.mean(losses[-6:]) < 0.7 * losses[0]
    found = load_finetuned(tmp_path)
    description = found.description
    assert (type(description.encoder), description.head.pool) == (AstConfig, "encoder")
    assert type(found.model.encoder) is Encoder
    assert found.model.encoder.config.num_classes == 3
    assert found.model.encoder.batch_norm.running_mean.item() == -9
    by_hand = tiny_ast(input_mean=-9, input_std=5)
    weights = {
        name.removeprefix("encoder."): value
        for name, value in found.model.state_dict().items()
        if name.startswith("encoder.")
    }
    by_hand.load_state_dict(weights, strict=False)
    assert_logits_are_those_of(found, by_hand, clips)


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_initialises_from_a_timm_file(
    finetune: Finetune, tmp_path: Path, clips: tuple[Tensor, Tensor], suffix: str
) -> None:
    network = image_net()
    path = tmp_path / f"images{suffix}"
    if suffix == ".pth":
        torch.save({"model": network.state_dict()}, path)  # as DeiT's authors publish theirs
    else:
        save_file(network.state_dict(), path)
    finetune(*IDLE, f"model.checkpoint={path}", "model.input_mean=null", "model.input_std=null")
    by_hand = tiny_ast()
    by_hand.load_state_dict(from_timm(by_hand.config, network.state_dict()), strict=False)
    found = load_finetuned(tmp_path)
    assert_logits_are_those_of(found, by_hand, clips)
    statistics = found.model.encoder.batch_norm
    assert statistics.running_mean.item() == pytest.approx(AUDIOSET_MEAN)
    assert statistics.running_var.item() == pytest.approx(AUDIOSET_STD**2)


def test_initialises_from_a_timm_name(
    finetune: Finetune, tmp_path: Path, clips: tuple[Tensor, Tensor], timm_has: Any
) -> None:
    network = image_net(distilled=False)
    asked = timm_has(network)
    given = (f"model.checkpoint=timm:{NAME}", "model.prefix_tokens=1")
    finetune("optimization.max_update=3", *given, "checkpoint.no_save=true")
    finetune(*IDLE, *given)
    assert asked == [(NAME, True), (NAME, True)]
    mean, std = -6.6268077, 5.358466  # as in the preset
    by_hand = tiny_ast(prefix_tokens=1, input_mean=mean, input_std=std)
    by_hand.load_state_dict(from_timm(by_hand.config, network.state_dict()), strict=False)
    assert_logits_are_those_of(load_finetuned(tmp_path), by_hand, clips)


def test_initialises_from_ssast_and_from_the_fine_tuned_ast(
    finetune: Finetune, tmp_path: Path, clips: tuple[Tensor, Tensor], ssast: Path
) -> None:
    kept = ("model.input_mean=null", "model.input_std=null")
    finetune(*IDLE, *kept, f"model.checkpoint={ssast}", "checkpoint.save_dir=first")
    by_hand = tiny_ast()
    start_from(by_hand, tiny_ssast())
    found = load_finetuned(tmp_path / "first" / "checkpoint_last.pt")
    assert_logits_are_those_of(found, by_hand, clips)

    # A longer AST from that checkpoint, which also keeps its input statistics.
    first = tmp_path / "first" / "checkpoint_last.pt"
    again = (f"model.checkpoint={first}", "model.position_frames=100", "model.input_frames=null")
    finetune(*IDLE, *kept, *again, "checkpoint.save_dir=second")
    longer = tiny_ast(position_frames=100, input_frames=None)
    start_from(longer, by_hand)
    found = load_finetuned(tmp_path / "second" / "checkpoint_last.pt")
    assert_logits_are_those_of(found, longer, clips)


def test_architecture_of_copies_input_statistics_but_no_weights(
    finetune: Finetune, tmp_path: Path, timm_has: Any
) -> None:
    own = tmp_path / "own"
    finetune(*IDLE, "model.input_mean=-7", f"checkpoint.save_dir={own}")
    given = ("model.checkpoint=null", "model.input_mean=null", "model.input_std=null")
    start = own / "checkpoint_last.pt"
    finetune(*IDLE, *given, f"model.architecture_of={start}", "common.seed=2")
    found, before = load_finetuned(tmp_path).model.encoder, load_finetuned(start).model.encoder
    assert found.batch_norm.running_mean.item() == before.batch_norm.running_mean.item() == -7
    assert not torch.equal(found.post_extract_proj.weight, before.post_extract_proj.weight)

    asked = timm_has(image_net())
    finetune(*IDLE, *given, f"model.architecture_of=timm:{NAME}", "checkpoint.no_save=true")
    assert asked == [(NAME, False)]


def test_command_quotes_a_timm_name(tmp_path: Path) -> None:
    command = train_command(
        tmp_path, "ast_esc50", tmp_path, [f"model.checkpoint=timm:{NAME}"], "finetune"
    )
    assert command[-1] == f"model.checkpoint='timm:{NAME}'"


# --- SSAST --------------------------------------------------------------------------------------


def test_ssast_fine_tunes_with_overlapping_patches(
    finetune_ssast: Finetune, tmp_path: Path, clips: tuple[Tensor, Tensor]
) -> None:
    log = finetune_ssast("optimization.max_update=3", "checkpoint.no_save=true")
    assert len(log["train_inner"]) == 3
    finetune_ssast(*IDLE, "model.input_mean=null", "model.input_std=null")
    pretrained = tiny_ssast()
    by_hand = Encoder(finetuning_config(pretrained.config, overlap=True, frames=100)).eval()
    assert by_hand.config.position_grid == (9, 12)
    start_from(by_hand, pretrained)
    found = load_finetuned(tmp_path)
    assert type(found.description.encoder) is SsastConfig
    assert_logits_are_those_of(found, by_hand, clips)


def test_ssast_keeps_its_patches_and_length(
    finetune_ssast: Finetune, tmp_path: Path, clips: tuple[Tensor, Tensor]
) -> None:
    unchanged = ("model.overlap=false", "model.input_frames=null")
    finetune_ssast(*IDLE, *unchanged, "model.input_mean=null", "model.input_std=null")
    found = load_finetuned(tmp_path)
    assert type(found.model.encoder.config) is SsastConfig
    assert_logits_are_those_of(found, tiny_ssast(), clips)


def test_ast_stays_ast_at_another_input_length(
    finetune: Finetune, finetune_ssast: Finetune, tmp_path: Path, clips: tuple[Tensor, Tensor]
) -> None:
    finetune(*IDLE, "checkpoint.save_dir=ast")
    start = tmp_path / "ast" / "checkpoint_last.pt"
    kept = ("model.input_mean=null", "model.input_std=null", "model.pool=encoder")
    finetune_ssast(*IDLE, *kept, f"model.checkpoint={start}")
    before, found = load_finetuned(start), load_finetuned(tmp_path)
    assert type(found.description.encoder) is AstConfig
    mean, std = (before.model.encoder.config.input_mean, before.model.encoder.config.input_std)
    by_hand = tiny_ast(position_frames=100, input_frames=100, input_mean=mean, input_std=std)
    start_from(by_hand, before.model.encoder)
    assert_logits_are_those_of(found, by_hand, clips)


# --- errors -------------------------------------------------------------------------------------


def test_mismatched_sizes_are_named(
    finetune: Finetune, tmp_path: Path, ssast: Path, timm_has: Any
) -> None:
    path = tmp_path / "images.pth"
    torch.save(image_net().state_dict(), path)
    wrong = ("model.encoder_layers=3", "model.encoder_ffn_embed_dim=128")
    words = (
        "encoder_layers=3 differs from the pretrained model's 2; "
        "encoder_ffn_embed_dim=128 differs from the pretrained model's 96"
    )
    assert f"{path}: {words}" in refusal(finetune, f"model.checkpoint={path}", *wrong)
    assert f"{ssast}: {words}" in refusal(finetune, f"model.checkpoint={ssast}", *wrong)
    patches = ("model.ast_kernel_size_time=8", "model.ast_kernel_stride_time=8")
    text = refusal(finetune, f"model.checkpoint={path}", *patches)
    assert "ast_kernel_size_time=8 differs from the pretrained model's 16" in text

    timm_has(image_net(heads=2))
    text = refusal(finetune, f"model.checkpoint=timm:{NAME}")
    assert f"timm:{NAME}: encoder_attention_heads=1 differs from the pretrained model's 2" in text
    timm_has(image_net(distilled=False))
    text = refusal(finetune, f"model.checkpoint=timm:{NAME}")
    assert "missing: dist_token; use prefix_tokens=1" in text
    timm_has(torch.nn.Linear(3, 3))
    text = refusal(finetune, f"model.checkpoint=timm:{NAME}")
    assert "missing: patch_embed.proj.weight" in text


def test_unknown_timm_name_gets_a_suggestion(finetune: Finetune, timm_has: Any) -> None:
    text = refusal(finetune, "model.checkpoint=timm:deit_tiny_destilled_patch16_224")
    assert (
        "has no model 'deit_tiny_destilled_patch16_224'; did you mean deit_tiny_distilled" in text
    )


@pytest.mark.parametrize("is_online", [True, False])
def test_timm_weights_that_cannot_be_downloaded(
    is_online: bool, finetune: Finetune, timm_has: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    with WebServer() as server:
        if not is_online:
            server.server_close()
        hub = server.url("")
        monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", hub)
        asked = timm_has(ConnectionError("no such file\nmore of it"))
        text = refusal(finetune, f"model.checkpoint=timm:{NAME}")
    assert asked == [(NAME, True)]
    reason = "(no such file)" if is_online else f"(not in the cache, and {hub} cannot be reached: "
    assert f"timm:{NAME}: cannot load its weights {reason}" in text


def test_missing_timm_package_says_how_to_install_it(
    finetune: Finetune, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "timm", None)
    text = refusal(finetune, f"model.checkpoint=timm:{NAME}")
    assert "needs the package timm" in text
    assert "pip install 'mae-ast[timm]'" in text


def test_mae_ast_does_not_initialise_ast(finetune: Finetune, tmp_path: Path) -> None:
    start = f"model.checkpoint={write_pretrained(tmp_path / 'mae_ast.pt')}"
    text = refusal(finetune, start)
    assert "is of kind 'mae_ast'; AST " in text
    assert "model._name=mae_ast_classifier" in text


def test_mae_ast_fine_tunes_with_overlapping_patches(
    finetune_ssast: Finetune, tmp_path: Path
) -> None:
    start = write_pretrained(tmp_path / "mae_ast.pt")
    finetune_ssast(
        *IDLE, f"model.checkpoint={start}", "model.input_mean=null", "model.input_std=null"
    )
    found = load_finetuned(tmp_path).model.encoder
    assert (found.config.input_frames, found.config.ast_kernel_stride_time) == (100, 10)
    assert found.encode(torch.zeros(1, 16_000)).patches.shape[1] == 9 * 12
    before, _ = read_encoder(str(start))
    assert found.config.input_mean == pytest.approx(before.input_mean)


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("model.checkpoint=nowhere.pth", "nowhere.pth: no such checkpoint"),
        ("model.encoder_attention_heads=5", "(encoder_attention_heads=5)"),
        ("model.head_dropout=1", "model.head_dropout=1.0"),
        ("model.precision=double", "model.precision='double'"),
        ("model.architecture_of=a", "model.checkpoint=b and model.architecture_of=a"),
    ],
)
def test_invalid_settings(finetune: Finetune, override: str, words: str) -> None:
    given = ("model.checkpoint=b", override) if "architecture_of" in override else (override,)
    assert words in refusal(finetune, *given)
