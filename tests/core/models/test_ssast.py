"""SSAST equals timm's and s3prl's encoders; one pass of its encoder equals two."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.testing import assert_close
from torchaudio.compliance import kaldi

from mae_ast.core.checkpoints.ast_release import write_ssast
from mae_ast.core.checkpoints.timm import to_timm
from mae_ast.core.frontend.fbank import fbank, fit_frames
from mae_ast.core.frontend.masking import chunk_mask
from mae_ast.core.models.config import SsastConfig
from mae_ast.core.models.encoder import Encoder, encoder_only
from mae_ast.core.models.ssast import Ssast
from mae_ast.finetune.initialize import finetuning_config, fitted
from tests.core.vits import (
    FRAME_TOKENS,
    SMALL,
    Clips,
    log_mel_like,
    loss_of,
    mel_first,
    with_random_weights,
)
from tests.sounds import speech_like

AUDIOSET = (-4.2677393, 4.5689974)  # mean and std


def build(**fields: Any) -> Ssast:
    return with_random_weights(Ssast(SsastConfig(**(SMALL | fields))))


def finetuned(pretrained: Ssast, frames: int) -> Encoder:
    """Build the encoder for fine-tuning, with overlapping patches and pretrained weights."""
    config = finetuning_config(pretrained.config, overlap=True, frames=frames)
    model = Encoder(config).eval()
    weights = encoder_only(pretrained).state_dict()
    model.load_state_dict(fitted(weights, pretrained.config, config))
    return model


# The filterbank.


@pytest.mark.parametrize("offset", [0.0, 0.3])
def test_hanning_filterbank_equals_torchaudio_on_mean_free_clips(offset):
    wave = speech_like(32_000).unsqueeze(0) * 0.5 + offset
    expected = kaldi.fbank(
        wave - wave.mean(),
        htk_compat=True,
        sample_frequency=16_000,
        use_energy=False,
        window_type="hanning",
        num_mel_bins=128,
        dither=0.0,
        frame_shift=10,
    )
    assert_close(fbank(wave, "hanning")[0], expected, rtol=0, atol=1e-3)
    assert not torch.allclose(fbank(wave)[0], expected, atol=0.1)


def test_unknown_window_is_refused():
    with pytest.raises(ValueError, match="window 'hamming'; must be one of povey, hanning"):
        fbank(torch.zeros(1, 400), "hamming")


def test_log_mel_is_cropped_or_zero_padded_before_normalisation():
    x = log_mel_like(2, 50, 128)
    assert torch.equal(fit_frames(x, None, 40), x[:, :40])
    longer = fit_frames(x, torch.tensor([50, 30]), 64)
    assert torch.equal(longer[0, :50], x[0])
    assert torch.equal(longer[1, :30], x[1, :30])
    assert not longer[0, 50:].any()
    assert not longer[1, 30:].any()

    mean, std = AUDIOSET
    model = build(input_frames=64)
    normalised = model.spectrogram(x, torch.tensor([50, 30]))
    assert_close(normalised, (longer - mean) / (2 * std), rtol=0, atol=1e-5)
    assert normalised[1, 40, 7].item() == pytest.approx(0.467, abs=1e-3)


# Equality with other implementations.


def timm_vit(config: SsastConfig, distilled: bool = True) -> nn.Module:
    """Build timm's model in the size of ``config``, for a spectrogram (B, 1, mel, time)."""
    pytest.importorskip("timm")
    from timm.models.deit import VisionTransformerDistilled
    from timm.models.vision_transformer import VisionTransformer

    shape = config.patch_shape
    return (VisionTransformerDistilled if distilled else VisionTransformer)(
        img_size=(128, config.position_frames),
        patch_size=(shape.mel, shape.time),
        in_chans=1,
        num_classes=0,
        embed_dim=config.encoder_embed_dim,
        depth=config.encoder_layers,
        num_heads=config.encoder_attention_heads,
        mlp_ratio=config.encoder_ffn_embed_dim / config.encoder_embed_dim,
    ).eval()


@pytest.mark.parametrize("prefix_tokens", [1, 2])
@pytest.mark.parametrize("kernel", [{}, FRAME_TOKENS], ids=["patches", "frames"])
def test_encoder_equals_timm_distilled_deit(kernel, prefix_tokens):
    model = build(**kernel, prefix_tokens=prefix_tokens, encoder_ffn_embed_dim=96).eval()
    theirs = timm_vit(model.config, distilled=prefix_tokens == 2)
    theirs.load_state_dict(to_timm(model.config, model.state_dict()))
    source = log_mel_like(2, 128, 128)
    ours = model.encode(source)
    image = model.spectrogram(source).transpose(1, 2).unsqueeze(1)
    with torch.no_grad():
        expected = theirs.forward_features(image)
    assert_close(ours.prefix, expected[:, :prefix_tokens], rtol=0, atol=1e-4)
    grid = model.config.position_grid
    assert_close(mel_first(ours.patches, grid), expected[:, prefix_tokens:], rtol=0, atol=1e-4)
    assert expected.std() > 0.3


def test_default_layer_norm_epsilon_is_that_of_timm():
    norms = [m for m in build().modules() if isinstance(m, nn.LayerNorm)]
    assert {norm.eps for norm in norms} == {1e-6}
    assert len(norms) == 5


@pytest.mark.parametrize("kind", ["p", "f"])
def test_features_equal_s3prl(tmp_path: Path, monkeypatch, kind):
    """Compare the smallest published size on one of s3prl's 1-second windows.

    s3prl's code is for timm 0.4.5, in which model names have no prefix and the patch embedding
    accepts images of any size.
    """
    timm = pytest.importorskip("timm")
    create = timm.create_model

    def old_create(name: str, **options: Any) -> nn.Module:
        model = create(name.removeprefix("vit_"), **options)
        model.patch_embed.img_size = None  # any size
        return model

    monkeypatch.setattr(timm, "__version__", "0.4.5")
    monkeypatch.setattr(timm, "create_model", old_create)
    expert_module = pytest.importorskip("s3prl.upstream.ssast.expert", reason="needs s3prl")

    kernel = FRAME_TOKENS if kind == "f" else {}
    config = SsastConfig(
        encoder_embed_dim=192, encoder_ffn_embed_dim=768, encoder_attention_heads=3, **kernel
    )
    pretrained = with_random_weights(Ssast(config))
    path = tmp_path / "for_s3prl.pth"
    torch.save(write_ssast(config, pretrained.state_dict()), path)
    expert = expert_module.UpstreamExpert(str(path), f"tiny_{kind}", window_secs=1.0).eval()
    path.unlink()

    model = finetuned(pretrained, frames=100)
    wave = speech_like(16_000)
    with torch.no_grad():
        expected = expert([wave])["hidden_states"]
        # s3prl pads after normalisation (that is, with the mean), the original before it.
        log_mel = model.log_mel(wave.unsqueeze(0))
        padding = log_mel.new_full((1, 100 - log_mel.shape[1], 128), config.input_mean)
        states = model.hidden_states(torch.cat((log_mel, padding), dim=1))
    assert len(states) == len(expected) == 12
    columns = {"p": 9, "f": 99}[kind]
    for ours, theirs in zip(states, expected, strict=True):
        assert theirs.shape[1] == columns
        assert_close(ours.reshape(1, columns, -1), theirs, rtol=0, atol=1e-4)
        assert theirs.std() > 0.3


# Pretraining.


def test_one_pass_gives_the_losses_and_gradients_of_two():
    one, two = build().train(), build(two_pass=True).train()
    two.load_state_dict(one.state_dict())
    clips = Clips(one, 16_000, 9_000)
    losses, passes = [], []
    for model in (one, two):
        handle = model.encoder.register_forward_hook(lambda *_: passes.append(1))
        losses.append(loss_of(clips.predict(model)))
        losses[-1].backward()
        handle.remove()
    assert len(passes) == 1 + 2
    assert losses[0].item() == pytest.approx(losses[1].item(), rel=1e-6)
    for (name, ours), theirs in zip(one.named_parameters(), two.parameters(), strict=True):
        assert_close(ours.grad, theirs.grad, rtol=1e-3, atol=1e-3, msg=lambda m, n=name: f"{n} {m}")


def test_two_passes_draw_independent_dropout():
    model = build(two_pass=True, dropout=0.3).train()
    clips = Clips(model, 16_000)
    caught: list[Tensor] = []
    model.encoder.register_forward_hook(lambda *args: caught.append(args[2]))
    clips.predict(model)
    assert not torch.equal(*caught)


def test_head_that_is_not_trained_is_not_computed():
    for reconstruction in (True, False):
        model = build(two_pass=True).train()
        model.train_heads(reconstruction, not reconstruction)
        passes: list[int] = []
        model.encoder.register_forward_hook(lambda *_, passes=passes: passes.append(1))
        prediction = Clips(model, 8_000).predict(model)
        assert (prediction.reconstruction is not None) == reconstruction
        assert (prediction.classification is not None) != reconstruction
        assert len(passes) == 1


def test_masked_patches_differ_by_their_positions_only():
    model = build().eval()
    mask = chunk_mask(2, model.patch_shape.grid(64), 0.75, torch.Generator().manual_seed(0))
    source = log_mel_like(2, 64, 128)
    before = model(source, None, mask).reconstruction
    assert not torch.allclose(before[:, 0], before[:, 1], atol=1e-2)
    with torch.no_grad():
        model.positions.table[:, 2:] = 0
        alike = model(source, None, mask).reconstruction
    assert_close(alike, alike[:, :1].expand_as(alike), rtol=0, atol=1e-4)


def test_padding_is_excluded_from_batch_statistics():
    model = build(input_frames=128, input_stats="batch").train()
    x = log_mel_like(2, 70, 128)
    for lengths in (None, torch.tensor([70, 70])):
        normalised = model.spectrogram(x, lengths)
        assert normalised[:, :70].mean().item() == pytest.approx(0, abs=1e-5)
        assert normalised[:, :70].std().item() == pytest.approx(0.5, abs=1e-4)
