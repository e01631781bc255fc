"""SSAST equals timm's and s3prl's encoders and a slow implementation; nothing leaks."""

from __future__ import annotations

import dataclasses
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
from mae_ast.core.frontend.masking import MaskIds, chunk_mask, random_mask
from mae_ast.core.frontend.patches import PatchShape
from mae_ast.core.models.config import SsastConfig
from mae_ast.core.models.encoder import Encoder, Prediction, encoder_only
from mae_ast.core.models.losses import info_nce_loss, reconstruction_loss
from mae_ast.core.models.ssast import Ssast
from mae_ast.finetune.initialize import finetuning_config, fitted
from tests.core.vits import (
    FRAME_TOKENS,
    SMALL,
    Clips,
    assert_padding_changes_nothing,
    interpolate_as_published,
    log_mel_like,
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


def loss_of(prediction: Prediction) -> Tensor:
    mse = reconstruction_loss(prediction.reconstruction, prediction.target, prediction.valid)
    nce = info_nce_loss(prediction.classification, prediction.target, prediction.valid)
    return 10 * mse + nce.loss


@torch.no_grad()
def slow_loss(model: Ssast, clips: Clips) -> float:
    """Compute the loss clip by clip and patch by patch with the modules of the model."""
    mean, std = AUDIOSET
    p_t, p_f = model.patch_shape.time, model.patch_shape.mel
    total = 0.0
    for wave, mask in zip(clips.waves, clips.masks, strict=True):
        spectrum = (fbank(wave.unsqueeze(0), "hanning")[0] - mean) / (2 * std)
        patches = [
            spectrum[t : t + p_t, f : f + p_f].flatten()
            for t in range(0, len(spectrum) - p_t + 1, p_t)
            for f in range(0, 128, p_f)
        ]
        masked = mask.masked_ids[0].tolist()
        positions = model.positions((len(patches) // (128 // p_f), 128 // p_f))[0]
        tokens = list(model.prefix_tokens[0])
        tokens += [
            model.mask_emb if n in masked else model.post_extract_proj(patch)
            for n, patch in enumerate(patches)
        ]
        encoded = model.encoder((torch.stack(tokens) + positions).unsqueeze(0))[0][2:]
        for n in masked:
            error = model.final_proj_reconstruction(encoded[n]) - patches[n]
            query = model.final_proj_classification(encoded[n])
            scores = torch.stack([query @ patches[other] for other in masked])
            nce = -scores.log_softmax(dim=0)[masked.index(n)]
            total += float(10 * error.square().mean() + nce)
    return total


@pytest.mark.parametrize("two_pass", [False, True], ids=["one pass", "two passes"])
@pytest.mark.parametrize("kernel", [{}, FRAME_TOKENS], ids=["patches", "frames"])
@pytest.mark.parametrize("lengths", [(16_000, 16_000), (12_000, 3_000, 25_000)], ids=str)
def test_loss_equals_a_slow_implementation(kernel, lengths, two_pass):
    model = build(**kernel, two_pass=two_pass).train()
    clips = Clips(model, *lengths)
    assert clips.mask.padded == (len(lengths) == 3)
    loss = loss_of(clips.predict(model)).item()
    assert loss == pytest.approx(slow_loss(model, clips), rel=1e-5)


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


@pytest.mark.parametrize("lengths", [(8_000, 8_000), (8_000, 3_000)], ids=str)
@pytest.mark.parametrize("fields", [{}, {"two_pass": True}, {"input_stats": "batch"}], ids=str)
def test_every_parameter_gets_a_gradient(fields, lengths):
    model = build(**fields).train()
    loss_of(Clips(model, *lengths).predict(model)).backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert bool(torch.isfinite(parameter.grad).all()), name
        if not name.endswith("k_proj.bias"):  # shifts all scores of a query equally: no effect
            assert bool(parameter.grad.any()), name


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


@pytest.mark.parametrize("kernel", [{}, FRAME_TOKENS], ids=["patches", "frames"])
def test_masked_patches_influence_by_their_position_only(kernel):
    model = build(**kernel).train()
    shape = model.patch_shape
    mask = chunk_mask(2, shape.grid(64), 0.75, torch.Generator().manual_seed(0))
    source = log_mel_like(2, 64, 128)
    hidden = torch.zeros(2, 64 // shape.time * shape.per_column, dtype=torch.bool)
    hidden = hidden.scatter(1, mask.masked_ids, True).view(2, -1, shape.per_column)
    hidden = hidden.repeat_interleave(shape.time, 1).repeat_interleave(shape.mel, 2)

    def predict(x: Tensor, ids: MaskIds = mask) -> Prediction:
        return model(x, None, ids)

    before = predict(source)
    elsewhere = torch.where(hidden, 50 * torch.randn(2, 64, 128), source)
    for name in ("reconstruction", "classification"):
        assert torch.equal(getattr(predict(elsewhere), name), getattr(before, name))
        assert not torch.equal(getattr(predict(source + 1), name), getattr(before, name))
    source.requires_grad_()
    predict(source).reconstruction.square().sum().backward()
    assert not source.grad[hidden].any()
    assert bool((source.grad[~hidden] != 0).all())
    # Masked patches differ by their positions only.
    with torch.no_grad():
        model.positions.table[:, 2:] = 0
        alike = predict(source).reconstruction
    assert_close(alike, alike[:, :1].expand_as(alike), rtol=0, atol=1e-4)
    assert not torch.allclose(before.reconstruction[:, 0], before.reconstruction[:, 1], atol=1e-2)


@pytest.mark.parametrize("kernel", [{}, FRAME_TOKENS], ids=["patches", "frames"])
def test_padded_batch_equals_single_clips(kernel):
    model = build(**kernel).eval()
    clips = Clips(model, 25_000, 9_000, 2_800)
    predicted = ("reconstruction", "classification", "target")
    assert_padding_changes_nothing(model, clips, predicted)


def test_padding_of_input_frames_is_attended_to():
    model = build(input_frames=128).eval()
    clips = Clips(model, 16_000, 9_000)
    together = clips.predict(model)
    states = model.hidden_states(clips.source, clips.lengths)
    for row, (wave, mask) in enumerate(zip(clips.waves, clips.masks, strict=True)):
        alone = model(wave.unsqueeze(0), None, mask)
        count = mask.masked_ids.shape[1]
        assert_close(
            together.reconstruction[row, :count], alone.reconstruction[0], rtol=0, atol=1e-4
        )
        for ours, own in zip(states, model.hidden_states(wave.unsqueeze(0)), strict=True):
            assert own.shape == (1, 64, 24)
            assert_close(ours[row], own[0], rtol=0, atol=1e-4)
    unpadded = build().eval().hidden_states(clips.waves[1].unsqueeze(0))[-1]
    assert not torch.allclose(states[-1][1, : unpadded.shape[1]], unpadded[0], atol=1e-2)


def test_padding_is_excluded_from_batch_statistics():
    model = build(input_frames=128, input_stats="batch").train()
    x = log_mel_like(2, 70, 128)
    for lengths in (None, torch.tensor([70, 70])):
        normalised = model.spectrogram(x, lengths)
        assert normalised[:, :70].mean().item() == pytest.approx(0, abs=1e-5)
        assert normalised[:, :70].std().item() == pytest.approx(0.5, abs=1e-4)


def test_clips_longer_than_input_frames_are_refused():
    model = build(input_frames=64)
    with pytest.raises(ValueError, match="input_frames=64 gives 32 patches, but the mask has 48"):
        Clips(model, 16_000).predict(model)


def test_empty_batch_has_zero_loss_and_finite_gradients():
    model = build().train()
    mask = MaskIds(torch.arange(8).unsqueeze(0), torch.full((1, 1), -1), padded=True)
    source = torch.zeros(1, model.patch_shape.min_samples, dtype=torch.int16)
    loss = loss_of(model(source, torch.tensor([0]), mask))
    loss.backward()
    assert loss.item() == 0
    assert all(bool(torch.isfinite(p.grad).all()) for p in model.parameters())


def test_bfloat16_is_close_to_float32():
    exact = build().train()
    model = Ssast(dataclasses.replace(exact.config, precision="bfloat16")).train()
    model.load_state_dict(exact.state_dict())
    clips = Clips(model, 16_000, 9_000)
    prediction = clips.predict(model)
    assert prediction.reconstruction.dtype == torch.bfloat16
    assert prediction.target.dtype == torch.float32
    expected = loss_of(clips.predict(exact)).item()
    assert loss_of(prediction).item() == pytest.approx(expected, rel=2e-2)


def test_half_precision_model_uses_float32_log_mel():
    exact, model = build().eval(), build().eval().bfloat16()
    clips = Clips(model, 16_000, 9_000)
    prediction = clips.predict(model)
    assert prediction.reconstruction.dtype == torch.bfloat16
    assert torch.equal(prediction.target, clips.predict(exact).target)
    expected = loss_of(clips.predict(exact)).item()
    assert loss_of(prediction).item() == pytest.approx(expected, rel=5e-2)


# Fine-tuning.


def test_finetuning_encoder_has_overlapping_patches_and_pretrained_weights():
    pretrained = build().eval()
    model = finetuned(pretrained, frames=100)
    config = model.config
    assert config.patch_shape == PatchShape(16, 16, 10, 10)
    assert config.position_grid == (9, 12)
    for name, value in model.state_dict().items():
        theirs = pretrained.state_dict()[name]
        assert torch.equal(value, theirs) == (name != "positions.table"), name
    expected = interpolate_as_published(
        mel_first(pretrained.positions.table[:, 2:], (8, 8)), (8, 8), (12, 9)
    )
    assert_close(mel_first(model.positions.table[:, 2:], (9, 12)), expected, rtol=0, atol=1e-6)
    source = torch.stack([speech_like(16_000, seed) for seed in range(2)])
    tokens = model.encode(source).patches
    assert tokens.shape == (2, 108, 24)
    assert_close(model.pooled(source), tokens.mean(1), rtol=0, atol=1e-5)
    assert_close(tokens, model.encoder.layer_norm(model.hidden_states(source)[-1]))


def test_frame_tokens_have_stride_one_in_finetuning():
    config = finetuning_config(SsastConfig(**(SMALL | FRAME_TOKENS)), overlap=True)
    assert config.patch_shape == PatchShape(2, 128, 1, 128)
    assert (config.position_frames, config.input_frames) == (128, None)


def test_encoder_only_keeps_the_hidden_states():
    model = build().eval()
    source = speech_like(16_000).unsqueeze(0)
    before = model.hidden_states(source)
    left = encoder_only(model)
    assert_close(left.hidden_states(source), before)
    assert not any(name.startswith(("mask_emb", "final")) for name in left.state_dict())


def test_pretraining_refuses_patches_that_overlap():
    fields = {"ast_kernel_stride_time": 10, "ast_kernel_stride_chan": 10}
    config = SsastConfig(**(SMALL | fields))
    with pytest.raises(ValueError, match="ast_kernel_stride_chan=10 differs from"):
        config.check_pretraining("chunk_mask")
    model = Ssast(config)
    with pytest.raises(ValueError, match="patches overlap"):
        model(torch.zeros(1, 64, 128), None, random_mask(1, config.patch_shape.grid(64), 0.75))


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"prefix_tokens": 3}, "prefix_tokens=3; must be one of 1, 2"),
        ({"window_type": "hamming"}, "window_type='hamming'; must be one of povey, hanning"),
        ({"input_frames": 0}, "input_frames=0; must be an integer"),
        ({"input_frames": 9}, "input_frames=9; must be at least one patch"),
        ({"encoder_layers": 0}, "encoder_layers=0; must be an integer"),
        ({"ast_kernel_stride_time": 0}, "ast_kernel_stride_time=0; must be an integer >= 1"),
        ({"ast_kernel_stride_time": 20}, "a stride of 20 frames; must be 1 to 16"),
        ({"encoder_attention_heads": 5}, "encoder_embed_dim=24; .*encoder_attention_heads=5"),
        ({"layer_norm_eps": 0.0}, "layer_norm_eps=0.0; must be positive"),
        ({"dropout": 1.0}, "dropout=1.0; must be a probability"),
        ({"precision": "half"}, "precision='half'; must be one of auto"),
        ({"mask_length": 0}, "mask_length=0; must be an integer"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_invalid_configuration_is_refused(fields, message):
    with pytest.raises(ValueError, match=message):
        Ssast(SsastConfig(**(SMALL | fields)))
