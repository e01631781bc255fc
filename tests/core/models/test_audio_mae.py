"""Audio-MAE equals timm's blocks; its decoders and targets; the unofficial interface."""

from __future__ import annotations

import dataclasses
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.testing import assert_close

from mae_ast.core.checkpoints.audio_mae_release import write_audio_mae
from mae_ast.core.frontend.masking import random_mask
from mae_ast.core.models.audio_mae import AudioMae
from mae_ast.core.models.classifier import Classifier, HeadConfig
from mae_ast.core.models.config import SHIFTS, AudioMaeConfig
from mae_ast.core.models.encoder import encoder_only
from tests.core.vits import (
    Clips,
    log_mel_like,
    with_random_weights,
)
from tests.sounds import pcm16, speech_like

SMALL: dict[str, Any] = {
    "encoder_layers": 2,
    "encoder_embed_dim": 24,
    "encoder_ffn_embed_dim": 48,
    "encoder_attention_heads": 3,
    "decoder_layers": 3,
    "decoder_embed_dim": 16,
    "decoder_ffn_embed_dim": 32,
    "decoder_attention_heads": 2,
}
DECODERS: list[dict[str, Any]] = [
    {"decoder_attention": "global"},
    {"decoder_attention": "local", "decoder_shift": "none"},
    {"decoder_attention": "local"},
    {"decoder_attention": "local", "decoder_shift": "both"},
    {"decoder_attention": "hybrid", "decoder_global_layers": 1},
]
decoders = pytest.mark.parametrize("decoder", DECODERS, ids=str)


def build(**fields: Any) -> AudioMae:
    return with_random_weights(AudioMae(AudioMaeConfig(**(SMALL | fields))))


# Equality with timm.


def timm_vit(config: AudioMaeConfig, frames: int) -> nn.Module:
    """Build timm's ViT for a spectrogram (B, 1, time, mel)."""
    pytest.importorskip("timm")
    from timm.models.vision_transformer import VisionTransformer

    shape = config.patch_shape
    return VisionTransformer(
        img_size=(frames, 128),
        patch_size=(shape.time, shape.mel),
        in_chans=1,
        num_classes=0,
        embed_dim=config.encoder_embed_dim,
        depth=config.encoder_layers,
        num_heads=config.encoder_attention_heads,
        mlp_ratio=config.encoder_ffn_embed_dim / config.encoder_embed_dim,
    ).eval()


def part(state: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {key.removeprefix(prefix): v for key, v in state.items() if key.startswith(prefix)}


@torch.no_grad()
def test_encoder_equals_timm_on_visible_tokens():
    model = build(decoder_attention="global", input_frames=1024).eval()
    theirs = timm_vit(model.config, 1024)
    state = write_audio_mae(model.config, model.state_dict())["model"]
    missing = theirs.load_state_dict(state, strict=False)
    assert not missing.missing_keys
    assert all("decoder" in key or key == "mask_token" for key in missing.unexpected_keys)

    source = log_mel_like(2, 1024, 128)
    mask = random_mask(2, (64, 8), 0.8, torch.Generator().manual_seed(0))
    ours = model.encode_visible(model.patches(source), mask)
    tokens = theirs.patch_embed(model.spectrogram(source).unsqueeze(1)) + theirs.pos_embed[:, 1:]
    seen = tokens.gather(1, mask.visible_ids.unsqueeze(2).expand(-1, -1, 24))
    cls = (theirs.cls_token + theirs.pos_embed[:, :1]).expand(2, -1, -1)
    expected = theirs.norm(theirs.blocks(torch.cat((cls, seen), dim=1)))
    assert ours.shape == (2, 1 + 102, 24)
    assert_close(ours, expected, rtol=0, atol=1e-4)
    assert expected.std() > 0.3

    # All patches, as in feature extraction.
    whole = theirs.forward_features(model.spectrogram(source).unsqueeze(1))
    encoded = model.encode(source)
    assert_close(torch.cat((encoded.prefix, encoded.patches), dim=1), whole, rtol=0, atol=1e-4)
    last = model.encoder.layer_norm(model.hidden_states(source)[-1])
    assert_close(last, whole[:, 1:], rtol=0, atol=1e-4)


@torch.no_grad()
def test_global_decoder_equals_timm_blocks():
    pytest.importorskip("timm")
    from timm.models.vision_transformer import Block

    model = build(decoder_attention="global").eval()
    state = write_audio_mae(model.config, model.state_dict())["model"]
    blocks = nn.Sequential(
        *(Block(16, 2, mlp_ratio=2, qkv_bias=True, norm_layer=partial(nn.LayerNorm, eps=1e-6))
          for _ in range(3))
    ).eval()  # fmt: skip
    blocks.load_state_dict(part(state, "decoder_blocks."))
    mask = random_mask(2, (64, 8), 0.8, torch.Generator().manual_seed(0))
    encoded = torch.randn(2, 1 + 102, 24)
    found = model.decode(encoded, mask, 512)

    x = nn.functional.linear(encoded, state["decoder_embed.weight"], state["decoder_embed.bias"])
    tokens = state["mask_token"].repeat(2, 512, 1)
    for row, ids in enumerate(mask.visible_ids):
        tokens[row, ids] = x[row, 1:]
    x = torch.cat((x[:, :1], tokens), dim=1) + state["decoder_pos_embed"]
    expected = nn.functional.layer_norm(
        blocks(x), (16,), state["decoder_norm.weight"], state["decoder_norm.bias"], 1e-6
    )
    assert_close(found, expected[:, 1:], rtol=0, atol=1e-4)
    some = model.decode(encoded, mask, 512, mask.masked_ids)
    assert_close(some[1], expected[1, 1:][mask.masked_ids[1]], rtol=0, atol=1e-4)


# Pretraining.


def test_targets_are_normalised_per_patch():
    model = build().eval()
    source = log_mel_like(1, 96, 128)
    mask = random_mask(1, (6, 8), 0.8, torch.Generator().manual_seed(0))
    prediction = model(source, None, mask)
    assert_close(prediction.target.mean(2), torch.zeros(1, 39), rtol=0, atol=1e-4)
    assert_close(prediction.target.std(2), torch.ones(1, 39), rtol=0, atol=1e-2)
    perfect = dataclasses.replace(prediction, reconstruction=prediction.target)
    patches = model.patches(source)
    wanted = patches[0, mask.masked_ids[0]]
    assert_close(perfect.rebuilt()[0], wanted, rtol=0, atol=1e-4)
    plain = build(normalise_targets=False).eval()
    assert_close(plain(source, None, mask).target[0], wanted)


def test_padding_of_input_frames_is_neither_visible_nor_predicted():
    padding, plain = build(input_frames=128).eval(), build().eval()
    for lengths in ((9_000, 9_000), (9_000, 6_000)):
        clips = Clips(plain, *lengths)
        expected = clips.predict(plain).reconstruction
        found = clips.predict(padding).reconstruction
        own = clips.mask.masked_ids >= 0
        assert_close(found[own], expected[own], rtol=0, atol=1e-4)


@decoders
def test_clips_longer_than_1024_frames(decoder):
    """Positions and windows extend to longer clips."""
    model = build(**decoder).eval()
    short = model.positions((4, 8)).clone()
    wave = pcm16(speech_like(11 * 16_000)).unsqueeze(0)  # 68 columns, beyond 1024 frames
    mask = random_mask(1, (68, 8), 0.8, torch.Generator().manual_seed(0))
    prediction = model(wave, None, mask)
    assert prediction.reconstruction.shape == (1, 68 * 8 - 108, 256)
    assert torch.equal(model.positions((68, 8))[:, : 1 + 32], short)
    classifier = Classifier(encoder_only(model), HeadConfig(3, pool="tokens"))
    assert classifier(wave).shape == (1, 3)


# Fine-tuning.


def test_model_without_decoder():
    model = build(decoder_layers=0).eval()
    whole = build().eval()
    names = model.state_dict().keys()
    assert not any("decoder" in name or "final_proj" in name for name in names)
    model.load_state_dict({name: whole.state_dict()[name] for name in names})
    source = speech_like(16_000).unsqueeze(0)
    assert_close(model.hidden_states(source), whole.hidden_states(source))
    assert encoder_only(model) is model
    with pytest.raises(ValueError, match="decoder_layers=0; predicting patches needs a decoder"):
        Clips(model, 16_000).predict(model)


# Configuration.


def test_default_decoder_is_the_published_one():
    config = AudioMaeConfig()
    assert config.shifts == ((0, 0), (2, 0)) * 8
    assert AudioMaeConfig(decoder_attention="global").shifts == (None,) * 16
    hybrid = AudioMaeConfig(decoder_attention="hybrid", decoder_shift="both").shifts
    assert hybrid == ((0, 0), (2, 2)) * 6 + (None,) * 4
    assert set(SHIFTS) == {"none", "time", "both"}
    with torch.device("meta"):
        model = AudioMae(config)
    assert model.decoder.layers[0].fc1.weight.shape == (2048, 512)
    assert model.decoder.layers[0].self_attn.num_heads == 16
    norms = [m for m in model.modules() if isinstance(m, nn.LayerNorm)]
    assert {norm.eps for norm in norms} == {1e-6}
    assert model.decoder.layers[0].self_attn.k_proj.bias is not None
    assert "positions.table" not in model.state_dict()


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"decoder_attention": "hybrid"}, "decoder_global_layers=4 with decoder_layers=3"),
        ({"decoder_embed_dim": 18}, "decoder_embed_dim=18; must be divisible by 4"),
        ({"decoder_attention_heads": 3}, "decoder_attention_heads=3"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_invalid_decoder_is_refused(fields, message):
    with pytest.raises(ValueError, match=message):
        AudioMae(AudioMaeConfig(**(SMALL | fields)))


def test_pretraining_needs_a_decoder():
    with pytest.raises(ValueError, match="decoder_layers=0; pretraining needs a decoder"):
        AudioMaeConfig(decoder_layers=0).check_pretraining("random_mask")


# Wrapper with the interface of the unofficial implementation.


# Its example, with the missing imports added.
EXAMPLE = """
from functools import partial
from torch import nn

import torch
from audio_mae import AudioMaskedAutoencoderViT

audio_mels = torch.ones([2, 1, 1024, 128])

# Paper recommended archs
model  = AudioMaskedAutoencoderViT(
        num_mels=128, mel_len=1024, in_chans=1,
        patch_size=16, embed_dim=768, encoder_depth=12, num_heads=12,
        decoder_embed_dim=512, decoder_depth=16, decoder_num_heads=16,
        mlp_ratio=4, norm_layer=partial(nn.LayerNorm, eps=1e-6))
        
loss, pred, mask = model(audio_mels)
"""  # noqa: W293


@pytest.mark.slow
def test_example_of_the_unofficial_implementation():
    names: dict[str, Any] = {}
    exec(EXAMPLE, names)
    assert names["loss"].shape == ()
    assert names["pred"].shape == (2, 512, 256)
    assert names["mask"].shape == (2, 512)
    assert names["mask"].mean().item() == pytest.approx(0.8, abs=1e-3)
    assert set(names["mask"].unique().tolist()) == {0, 1}
    assert bool(torch.isfinite(names["loss"]))


def build_wrapper(**fields: Any) -> Any:
    from audio_mae import AudioMaskedAutoencoderViT

    small = {"embed_dim": 24, "encoder_depth": 2, "num_heads": 3, "decoder_embed_dim": 16}
    small |= {"decoder_depth": 2, "decoder_num_heads": 2, "mel_len": 64}
    return AudioMaskedAutoencoderViT(**(small | fields))


def test_wrapper_masks_and_scores_the_same_patches():
    model = with_random_weights(build_wrapper())
    x = torch.randn(3, 1, 64, 128)
    generator = torch.Generator().manual_seed(0)
    loss, pred, mask = model(x, 0.75, generator)
    assert mask.sum(1).tolist() == [24] * 3
    assert not torch.equal(mask[0], mask[1])
    patches = x.view(3, 4, 16, 8, 16).transpose(2, 3).reshape(3, 32, 256)
    per_patch = (pred - patches).square().mean(2)
    assert_close(loss, (per_patch * mask).sum() / mask.sum())
    elsewhere = torch.where(mask.bool().unsqueeze(2), 9.0, patches)
    other = elsewhere.view(3, 4, 8, 16, 16).transpose(2, 3).reshape(3, 1, 64, 128)
    again = model(other, 0.75, generator.manual_seed(0))
    assert torch.equal(again[1], pred)
    loss.backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"num_mels": 64}, "num_mels=64, in_chans=1; only 128 mel bins and one channel"),
        ({"in_chans": 3}, "in_chans=3; only 128 mel bins and one channel"),
        ({"mel_len": 1000}, "mel_len=1000; must be a multiple of patch_size=16"),
        ({"norm_layer": nn.Identity}, "norm_layer returns Identity; must return a LayerNorm"),
    ],
)
def test_wrapper_refuses_unsupported_values(fields, message):
    with pytest.raises(ValueError, match=message):
        build_wrapper(**fields)


def test_wrapper_refuses_other_input():
    with pytest.raises(ValueError, match=r"\(2, 64, 128\); must be \(B, 1, 64, 128\)"):
        build_wrapper()(torch.zeros(2, 64, 128))
    with pytest.raises(ValueError, match="mask_ratio=1; must be between 0 and 1"):
        build_wrapper()(torch.zeros(2, 1, 64, 128), 1)
