"""Pretraining and fine-tuning of Audio-MAE with its presets."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from omegaconf import OmegaConf

import mae_ast
from mae_ast.core.checkpoints.timm import to_timm
from mae_ast.core.frontend.collate import Clip, Collater
from mae_ast.core.frontend.fbank import num_samples_of_frames
from mae_ast.core.models.audio_mae import AudioMae
from mae_ast.core.models.classifier import Classifier
from mae_ast.core.models.config import AudioMaeConfig, VitConfig
from mae_ast.core.models.encoder import Encoder
from mae_ast.core.models.registry import parse_config
from mae_ast.finetune.checkpoint import load_finetuned
from mae_ast.tasks.mae_ast_pretraining import MaeAstPretrainingTask
from tests.core.vits import with_random_weights

from .classification import finetune_here, write_corpus, write_tiny_audio_mae
from .conftest import CONFIG_DIR, ONLY_TRAINING, preset

Train = Callable[..., list[dict[str, str]]]
Losses = Callable[..., list[float]]
SMALL_DECODER = (
    *("model.decoder_layers=3", "model.decoder_embed_dim=32", "model.decoder_ffn_embed_dim=64"),
    *("model.decoder_attention_heads=2", "model.precision=float32"),
)


def test_preset_masks_80_percent_and_is_a_vit_b() -> None:
    settings = preset("audio_mae")
    mask_type = settings["task"]["mask_type"]
    config = parse_config(settings["model"])
    assert config == AudioMaeConfig(precision="auto")
    config.check_pretraining(mask_type)
    longest = settings["task"]["max_sample_size"]
    assert longest == num_samples_of_frames(1024)
    silence = torch.zeros(longest, dtype=torch.int16)
    batch = Collater(config, mask_type)([Clip.of(n, silence, 1, 1) for n in range(2)])
    assert (batch.num_visible, batch.num_masked) == (2 * 102, 2 * 410)


@pytest.fixture
def logged(corpus: Path, train_here: Train) -> Train:
    """``logged(overrides)``: train for four updates and return the values that each logged."""

    def logged(*overrides: str, config: str = "audio_mae") -> list[dict[str, str]]:
        return train_here(
            corpus,
            *(
                "optimization.max_update=4",
                "dataset.num_workers=0",
                "lr_scheduler.warmup_updates=2",
            ),
            *SMALL_DECODER,
            *ONLY_TRAINING,
            *overrides,
            config=config,
        )

    return logged


@pytest.mark.usefixtures("fp16_without_a_gpu")
@pytest.mark.parametrize("half", ["common.fp16=true", "common.bf16=true"])
def test_half_precision_of_fairseq(losses: Losses, half: str) -> None:
    """The optimizer has parameter groups, which fairseq would flatten into one vector."""
    exact, rough = losses(), losses(half)
    assert rough != exact
    assert rough == pytest.approx(exact, rel=0.05)


def test_filterbank_in_workers_equals_device(
    losses: Losses, monkeypatch: pytest.MonkeyPatch
) -> None:
    in_workers = losses()
    monkeypatch.setattr(MaeAstPretrainingTask, "_fbank_in_workers", lambda self: False)
    assert losses() == pytest.approx(in_workers, abs=1e-3)


def test_roll_mag_augments_training_deterministically(losses: Losses, logged: Train) -> None:
    augmented = losses()
    assert augmented == losses()
    plain = losses("task.roll_mag=false")
    assert augmented != plain
    both = ("dataset.disable_validation=false", "dataset.validate_interval_updates=1")
    idle = ("optimization.max_update=1", "optimization.lr=[1e-20]", *both)
    assert logged(*idle)  # validation ran


@pytest.mark.parametrize(("size", "width", "layers"), [("S", 384, 12), ("L", 1024, 24)])
def test_other_sizes_named_in_the_preset(size: str, width: int, layers: int) -> None:
    text = (CONFIG_DIR / "audio_mae.yaml").read_text()
    (line,) = re.findall(rf"^#   ViT-{size}: (.*)$", text, re.MULTILINE)
    settings = OmegaConf.merge(preset("audio_mae"), OmegaConf.from_dotlist(line.split()))
    config = parse_config(OmegaConf.to_container(settings.model))
    config.check_pretraining("random_mask")
    assert (config.encoder_embed_dim, config.encoder_layers) == (width, layers)
    assert config.encoder_ffn_embed_dim == 4 * width
    assert config.encoder_attention_heads == width // 64
    assert config.decoder_embed_dim == 512


def test_a_run_resumes_and_loads(corpus: Path, train_here: Train) -> None:
    run = (
        *("optimization.max_update=6", "dataset.num_workers=0", "lr_scheduler.warmup_updates=2"),
        *("checkpoint.save_interval_updates=3", "checkpoint.keep_interval_updates=-1"),
        *("model.encoder_layerdrop=0.3", "common.tensorboard_logdir=tb"),
        *SMALL_DECODER,
        "dataset.validate_interval_updates=6",
    )
    whole = train_here(corpus, *run, config="audio_mae")
    saved = "checkpoint.restore_file=checkpoints/checkpoint_1_3.pt"
    rest = train_here(corpus, *run, saved, config="audio_mae")
    assert [stats["num_updates"] for stats in rest] == ["4", "5", "6"]
    for one, other in zip(rest, whole[3:], strict=True):
        assert {key: one[key] for key in ("loss", "gnorm", "lr")} == {
            key: other[key] for key in ("loss", "gnorm", "lr")
        }
    assert list(Path("tb/pictures").glob("events.out.tfevents.*"))
    model = mae_ast.load(Path("checkpoints/checkpoint_last.pt"))
    assert isinstance(model, AudioMae)
    assert model.mask_type == "random_mask"
    assert (model.config.encoder_embed_dim, model.config.decoder_layers) == (64, 3)


def test_initialises_the_encoder_from_timm(corpus: Path, train_here: Train, tmp_path: Path) -> None:
    config = VitConfig(
        encoder_layers=2,
        encoder_embed_dim=64,
        encoder_ffn_embed_dim=128,
        encoder_attention_heads=4,
        prefix_tokens=1,
    )
    theirs = to_timm(config, with_random_weights(Encoder(config)).state_dict())
    torch.save(theirs, tmp_path / "vit.pth")
    idle = (
        *("optimization.max_update=1", "optimization.lr=[1e-20]", "dataset.num_workers=0"),
        *("lr_scheduler.warmup_updates=0", "optimizer.weight_decay=0", *SMALL_DECODER),
        "dataset.disable_validation=true",
    )
    given = f"model.encoder_weights={tmp_path / 'vit.pth'}"
    train_here(corpus, *idle, given, config="audio_mae")
    model = mae_ast.load(Path("checkpoints/checkpoint_last.pt"))
    assert torch.equal(model.encoder.layer_norm.weight, theirs["norm.weight"])
    assert torch.equal(model.encoder.layers[1].fc1.bias, theirs["blocks.1.mlp.fc1.bias"])


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (
            ["criterion.classification_weight=1"],
            ["criterion.classification_weight=0", "criterion.reconstruction_weight"],
        ),
        (["model.decoder_layers=0"], ["decoder_layers=0; pretraining needs a decoder"]),
        (["model.decoder_attention=swin"], ["decoder_attention='swin'", "global, local, hybrid"]),
        (
            ["model.ast_kernel_stride_time=10"],
            ["ast_kernel_stride_time=10", "ast_kernel_size_time=16"],
        ),
        (["model.encoder_weights=no.pth"], ["model.encoder_weights=no.pth", "timm:NAME"]),
        (["+model.prefix_tokens=2"], ["prefix_tokens"]),
    ],
    ids=lambda value: value[0] if "=" in value[0] else "",
)
def test_invalid_settings_give_a_one_line_error(
    logged: Train, overrides: list[str], words: list[str]
) -> None:
    with pytest.raises(SystemExit) as refusal:
        logged(*overrides)
    text = refusal.value.code
    assert isinstance(text, str)
    assert text.startswith("mae-ast: error: ")
    assert "\n" not in text
    for word in words:
        assert word in text


# --- fine-tuning --------------------------------------------------------------------------------

SHORT = ("optimization.max_update=3", "checkpoint.no_save=true")


@pytest.fixture(scope="module")
def tones(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_corpus(tmp_path_factory.mktemp("tones"))


@pytest.fixture
def finetune(
    train_here: Any, caplog: pytest.LogCaptureFixture, tones: Path, tmp_path: Path
) -> Callable[..., Any]:
    """``finetune(overrides)``: the ESC-50 preset, from a tiny released file."""
    source = write_tiny_audio_mae(tmp_path / "audio_mae.pth")

    def run(*overrides: str) -> Any:
        given = (f"model.checkpoint={source}", "model.input_frames=64", *overrides)
        return finetune_here(caplog, "audio_mae_esc50", tones, *given)

    return run


def test_structured_masks_apply_in_training_only(
    finetune: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[Any] = []
    pooled = Classifier.pooled

    def watch(self: Classifier, *arguments: Any) -> Any:
        seen.append((self.training, arguments[2]))
        return pooled(self, *arguments)

    monkeypatch.setattr(Classifier, "pooled", watch)
    given = (*SHORT, "task.drop_time=0.5", "task.drop_mel=0.25")
    first = finetune(*given)
    trained = [ids for training, ids in seen if training]
    assert [ids.shape for ids in trained] == [(8, 2 * 6)] * 3  # of 4 x 8 patches
    assert not torch.equal(trained[0], trained[1])
    assert all(ids is None for training, ids in seen if not training)

    def losses(log: Any) -> list[str]:
        return [stats["loss"] for stats in log["train_inner"]]

    assert losses(finetune(*given)) == losses(first)
    assert losses(finetune(*SHORT, "task.drop_time=0", "task.drop_mel=0")) != losses(first)


def test_fine_tuned_checkpoint_loads(finetune: Callable[..., Any], tmp_path: Path) -> None:
    finetune("optimization.max_update=3")
    found = load_finetuned(tmp_path)
    assert isinstance(found.model.encoder.config, AudioMaeConfig)
    assert found.model.encoder.config.input_frames == 64
    assert found.scores(torch.zeros(2, 8_000)).shape == (2, 3)


def test_structured_masks_leave_no_whole_time_steps(finetune: Callable[..., Any]) -> None:
    with pytest.raises(SystemExit) as refusal:
        finetune(*SHORT, "model.pool=time_steps")
    for words in ("task.drop_time and task.drop_mel", "model.pool=tokens", "time_steps"):
        assert words in str(refusal.value.code)
