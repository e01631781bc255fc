"""Conversion between our weights and each published format: round trips and errors."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from mae_ast.core.checkpoints.ast_release import AST, SSAST, ambiguity, write_ast, write_ssast
from mae_ast.core.checkpoints.hf_ast import from_hugging_face, to_hugging_face
from mae_ast.core.checkpoints.timm import from_timm, to_timm
from mae_ast.core.checkpoints.wrappers import unwrap
from mae_ast.core.models.ast import Ast
from mae_ast.core.models.config import AstConfig, SsastConfig, VitConfig
from mae_ast.core.models.encoder import Encoder, encoder_only
from mae_ast.core.models.ssast import Ssast
from mae_ast.finetune.initialize import fitted, start_ast
from mae_ast.hub.load import PretrainedSsast
from tests.core.vits import FRAME_TOKENS, SMALL, log_mel_like, with_random_weights

PATH = Path("a.pth")  # of log messages
# D / 64 heads, at least one, which the published layouts do not store.
PUBLISHED = SMALL | {"input_frames": 128, "encoder_attention_heads": 1}


SSAST_KEYS = Path(__file__).parent / "ssast_checkpoint_keys.txt"
TINY = {
    "encoder_embed_dim": 192,
    "encoder_ffn_embed_dim": 768,
    "encoder_attention_heads": 3,
}


def ssast(**fields: Any) -> Ssast:
    config = SsastConfig(**(PUBLISHED | fields))
    return with_random_weights(Ssast(config)).eval()


def ast(**fields: Any) -> Ast:
    config = AstConfig(**(PUBLISHED | {"num_classes": 5} | fields))
    return with_random_weights(Ast(config)).eval()


def start_from(model: Ast, pretrained: Ssast) -> None:
    weights = encoder_only(pretrained).state_dict()
    found = fitted(weights, pretrained.config, model.config)
    model.load_state_dict({**model.state_dict(), **found})


def assert_same(found: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        assert torch.equal(found[name], value), name


def image_heads(width: int = 24, trained: bool = False) -> dict[str, Tensor]:
    """Return DeiT's heads as in published files: trained in AST, untrained in SSAST."""
    bias = torch.ones(9) if trained else torch.zeros(9)
    return {
        f"module.v.{head}.{kind}": torch.zeros(1000, width) if kind == "weight" else bias
        for head in ("head", "head_dist")
        for kind in ("weight", "bias")
    }


# Round trips


@pytest.mark.parametrize("fields", [{}, FRAME_TOKENS, {"prefix_tokens": 1}], ids=str)
def test_ssast_round_trip(fields):
    model = ssast(**fields)
    state = write_ssast(model.config, model.state_dict())
    assert state["module.p_input_tdim"].item() == 128
    content = unwrap(state | image_heads())
    assert SSAST.matches(content)
    assert not AST.matches(content)
    found = SSAST.read(content, PATH)
    assert found.config == model.config
    assert_same(found.weights, model.state_dict())


@pytest.mark.parametrize("fields", [{}, {"prefix_tokens": 1}], ids=str)
def test_ast_round_trip(fields):
    model = ast(**fields)
    state = write_ast(model.config, model.state_dict())
    content = unwrap(state | image_heads(trained=True))
    assert AST.matches(content)
    assert not SSAST.matches(content)
    assert ambiguity(content) is None
    found = AST.read(content, PATH)
    assert found.config == model.config
    assert_same(found.weights, model.state_dict())


def test_hugging_face_round_trip():
    model = ast()
    state = to_hugging_face(model.config, model.state_dict())
    assert_same(from_hugging_face(model.config, state), model.state_dict())


@pytest.mark.parametrize("fields", [{}, FRAME_TOKENS, {"prefix_tokens": 1}], ids=str)
def test_timm_round_trip(fields):
    model = with_random_weights(Encoder(VitConfig(**(SMALL | fields))))
    state = to_timm(model.config, model.state_dict())
    assert_same(from_timm(model.config, state), model.state_dict())


def test_sizes_are_derived_from_the_shapes_of_published_files():
    width = {"encoder_embed_dim": 192, "encoder_ffn_embed_dim": 768, "encoder_attention_heads": 3}
    config = SsastConfig(**width, encoder_layers=1, input_frames=1024)
    weights = Ssast(config).state_dict()
    assert SSAST.read(unwrap(write_ssast(config, weights)), PATH).config == config

    for frames in (1024, 512, 128):  # input lengths of the published recipes
        fields = {"position_frames": frames, "input_frames": frames}
        config = AstConfig(**width, **fields, encoder_layers=1, num_classes=35)
        state = write_ast(config, Ast(config).state_dict())
        assert AST.read(unwrap(state), PATH).config == config
    config = AstConfig(**width, position_frames=300, encoder_layers=1)
    found = AST.read(unwrap(write_ast(config, Ast(config).state_dict())), PATH).config
    assert found.position_grid == config.position_grid == (29, 12)
    assert found.position_frames == 296  # the minimum for this number of patches


def described(state: dict[str, Tensor]) -> list[str]:
    """Return a line per key with its shape and dtype; without timm's unused image heads."""
    return sorted(
        f"{key}\t{tuple(value.shape)}\t{str(value.dtype).removeprefix('torch.')}"
        for key, value in state.items()
        if key not in image_heads()
    )


def test_ssast_keys_shapes_and_dtypes_match_the_authors_code():
    with torch.device("meta"):
        config = SsastConfig(**TINY, input_frames=1024)
        state = write_ssast(config, Ssast(config).state_dict())
    assert len(state) == 162
    assert described(state) == SSAST_KEYS.read_text().splitlines()


def test_ssast_file_has_the_keys_of_the_authors_code(monkeypatch):
    """Compare with the copy of the authors' code in s3prl."""
    timm = pytest.importorskip("timm")
    create = timm.create_model
    monkeypatch.setattr(timm, "__version__", "0.4.5")
    monkeypatch.setattr(timm, "create_model", lambda name, **o: create(name[len("vit_") :], **o))
    theirs = pytest.importorskip("s3prl.upstream.ssast.ast_models", reason="needs s3prl")
    program = theirs.ASTModel(
        fshape=16, tshape=16, fstride=16, tstride=16, input_tdim=1024, model_size="tiny"
    )
    state = torch.nn.DataParallel(program).state_dict()
    assert described(state) == SSAST_KEYS.read_text().splitlines()
    found = SSAST.read(unwrap(state), PATH)
    config, weights = found.config, found.weights
    assert (config.encoder_layers, config.encoder_embed_dim) == (12, 192)
    assert (config.encoder_attention_heads, config.position_grid) == (3, (64, 8))
    Ssast(config).load_state_dict(weights)
    written = write_ssast(config, weights)
    assert {key for key in state if key not in written} == image_heads().keys()
    assert_same(written, {key: state[key] for key in written})


def test_patches_and_patch_values_are_reordered():
    """Published files order patches, and the predicted values of a patch, mel-first."""
    model = ssast()
    state = write_ssast(model.config, model.state_dict())
    shape, grid = model.patch_shape, model.config.position_grid
    for t, f in ((0, 0), (3, 1), (7, 7)):
        ours = model.positions.table[0, 2 + t * grid[1] + f]
        assert torch.equal(state["module.v.pos_embed"][0, 2 + f * grid[0] + t], ours)
        value = model.final_proj_reconstruction.fc2.weight[t * shape.mel + f]
        assert torch.equal(state["module.gpredlayer.2.weight"][f * shape.time + t], value)
        weight = model.post_extract_proj.weight[:, t * shape.mel + f]
        assert torch.equal(state["module.v.patch_embed.proj.weight"][:, 0, f, t], weight)
    fused = state["module.v.blocks.1.attn.qkv.weight"]
    attention = model.encoder.layers[1].self_attn
    assert torch.equal(fused[24:48], attention.k_proj.weight)


# Errors

FORMATS: dict[str, Any] = {
    "ssast": (
        ssast,
        lambda config, weights: unwrap(write_ssast(config, weights))["model"],
        lambda config, state: SSAST.read({"model": state}, PATH),
        ("mask_embed", "v.norm.bias", "gpredlayer.2.weight"),
    ),
    "ast": (
        ast,
        lambda config, weights: unwrap(write_ast(config, weights))["model"],
        lambda config, state: AST.read({"model": state}, PATH),
        ("v.cls_token", "v.blocks.1.attn.qkv.bias", "mlp_head.0.weight"),
    ),
    "hugging face": (
        ast,
        to_hugging_face,
        from_hugging_face,
        (
            "audio_spectrogram_transformer.embeddings.distillation_token",
            "audio_spectrogram_transformer.encoder.layer.0.output.dense.bias",
        ),
    ),
    "timm": (
        lambda: with_random_weights(Encoder(VitConfig(**SMALL))),
        to_timm,
        from_timm,
        ("patch_embed.proj.bias", "pos_embed", "dist_token", "blocks.0.mlp.fc1.weight"),
    ),
}
CASES = [(name, key) for name, (_, _, _, keys) in FORMATS.items() for key in keys]


@pytest.mark.parametrize(("name", "key"), CASES, ids=str)
def test_missing_and_misshapen_keys_are_named(name, key):
    build, write, read, _ = FORMATS[name]
    model = build()
    state = write(model.config, model.state_dict())
    without = {other: value for other, value in state.items() if other != key}
    with pytest.raises(ValueError, match=rf"missing: .*{key}"):
        read(model.config, without)
    misshapen = state | {key: torch.zeros(*state[key].shape[:-1], state[key].shape[-1] + 1)}
    with pytest.raises(ValueError, match=key):
        read(model.config, misshapen)
    with pytest.raises(ValueError, match=key):
        read(model.config, state | {key: "no tensor"})


@pytest.mark.parametrize("name", FORMATS)
def test_unknown_key_is_named(name):
    build, write, read, _ = FORMATS[name]
    model = build()
    state = write(model.config, model.state_dict())
    with pytest.raises(ValueError, match=r"unknown: blocks\.0\.ls1\.gamma$"):
        read(model.config, state | {"blocks.0.ls1.gamma": torch.zeros(24)})


def test_ast_file_with_another_stride_is_refused():
    model = ast(ast_kernel_stride_time=12, ast_kernel_stride_chan=12)
    state = write_ast(model.config, model.state_dict())
    with pytest.raises(ValueError, match=r"pos_embed is .* with a stride of 10"):
        AST.read(unwrap(state), PATH)


# Networks trained on images


def image_net(distilled: bool) -> Any:
    """Build a timm network for RGB images of 64 x 64."""
    pytest.importorskip("timm")
    from timm.models.deit import VisionTransformerDistilled
    from timm.models.vision_transformer import VisionTransformer

    kind = VisionTransformerDistilled if distilled else VisionTransformer
    return with_random_weights(
        kind(img_size=64, embed_dim=24, depth=2, num_heads=3, mlp_ratio=2, num_classes=10)
    ).eval()


@pytest.mark.parametrize("distilled", [True, False])
def test_image_network_channels_are_averaged_and_positions_fitted(distilled):
    theirs = image_net(distilled)
    prefix_tokens = 2 if distilled else 1
    fields = SMALL | {"encoder_ffn_embed_dim": 48, "prefix_tokens": prefix_tokens}
    config = AstConfig(**fields, num_classes=5)
    model = Ast(config).eval()
    head = model.head.linear.weight.clone()
    result = model.load_state_dict(from_timm(config, theirs.state_dict()), strict=False)
    assert all(name.startswith("head.") for name in result.missing_keys)
    assert not result.unexpected_keys
    assert torch.equal(model.head.linear.weight, head)

    kernel = theirs.patch_embed.proj.weight
    ours = model.post_extract_proj.weight.unflatten(1, (16, 16))
    assert_close(ours, kernel.mean(1).transpose(1, 2), rtol=0, atol=1e-6)
    table = theirs.pos_embed[:, prefix_tokens:].unflatten(1, (4, 4)).permute(0, 3, 1, 2)
    expected = torch.nn.functional.interpolate(table, size=(12, 12), mode="bilinear")
    found = model.positions.table[:, prefix_tokens:].unflatten(1, (12, 12)).permute(0, 3, 2, 1)
    assert_close(found, expected, rtol=0, atol=1e-6)
    assert_close(model.positions.table[:, :prefix_tokens], theirs.pos_embed[:, :prefix_tokens])
    assert_close(model.encoder.layer_norm.weight, theirs.norm.weight)


def test_square_spectrogram_equals_greyscale_image():
    theirs = image_net(True)
    fields = {"encoder_ffn_embed_dim": 48, "position_frames": 128}
    config = VitConfig(**(SMALL | fields))
    model = Encoder(config).eval()
    weights = from_timm(config, theirs.state_dict())
    model.load_state_dict(weights)
    theirs.set_input_size(img_size=(128, 128))
    theirs.pos_embed.data = to_timm(config, weights)["pos_embed"]
    source = log_mel_like(2, 128, 128)
    image = model.spectrogram(source).transpose(1, 2).unsqueeze(1).expand(-1, 3, -1, -1) / 3
    with torch.no_grad():
        expected = theirs.forward_features(image)
    assert_close(model.encode(source).prefix, expected[:, :2], rtol=0, atol=1e-4)


def test_image_positions_are_fitted_even_if_their_number_matches():
    theirs = image_net(True)  # 4 x 4
    fields = {"encoder_ffn_embed_dim": 48, "position_frames": 32}  # 2 x 8
    config = VitConfig(**(SMALL | fields))
    found = from_timm(config, theirs.state_dict())["positions.table"][0, 2:].unflatten(0, (2, 8))
    # The centre, as time is cropped.
    along_mel = theirs.pos_embed[0, 2:].unflatten(0, (4, 4))[:, 1:3]
    expected = torch.nn.functional.interpolate(
        along_mel.permute(1, 2, 0), size=8, mode="linear"
    ).transpose(1, 2)
    assert_close(found, expected, rtol=0, atol=1e-6)


def test_different_sizes_of_image_networks_are_named():
    state = image_net(True).state_dict()
    config = VitConfig(**(SMALL | {"encoder_layers": 3, "encoder_attention_heads": 4}))
    message = (
        "encoder_layers=3 differs from the pretrained model's 2; "
        "encoder_ffn_embed_dim=40 differs from the pretrained model's 48; "
        "encoder_attention_heads=4 differs from the pretrained model's 3"
    )
    with pytest.raises(ValueError, match=message):
        from_timm(config, state, attention_heads=3)
    state["patch_embed.proj.weight"] = torch.zeros(24, 3, 8, 14)
    with pytest.raises(ValueError, match=r"size_chan=16 .* 8; ast_kernel_size_time=16 .* 14"):
        from_timm(VitConfig(**(SMALL | {"encoder_ffn_embed_dim": 48})), state)
    del state["blocks.0.mlp.fc1.weight"]
    with pytest.raises(ValueError, match=r"missing: blocks\.0\.mlp\.fc1\.weight"):
        from_timm(config, state)


def test_distillation_token_is_dropped_if_not_configured():
    state = image_net(True).state_dict()
    config = VitConfig(**(SMALL | {"encoder_ffn_embed_dim": 48, "prefix_tokens": 1}))
    weights = from_timm(config, state)
    assert torch.equal(weights["prefix_tokens"], state["cls_token"])
    assert torch.equal(weights["positions.table"][:, :1], state["pos_embed"][:, :1])
    plain = image_net(False).state_dict()
    config = VitConfig(**(SMALL | {"encoder_ffn_embed_dim": 48}))
    with pytest.raises(ValueError, match=r"missing: dist_token; .*prefix_tokens=1"):
        from_timm(config, plain)


# Between grids


def test_encoder_is_copied_to_another_system_and_grid():
    pretrained = ssast()
    model = ast(position_frames=100, encoder_layers=2, prefix_tokens=1)
    head = model.head.linear.weight.clone()
    start_from(model, pretrained)
    assert torch.equal(model.head.linear.weight, head)
    assert torch.equal(model.post_extract_proj.weight, pretrained.post_extract_proj.weight)
    assert torch.equal(model.prefix_tokens, pretrained.prefix_tokens[:, :1])
    assert model.positions.table.shape == (1, 1 + 9 * 12, 24)
    assert torch.equal(model.positions.table[:, 0], pretrained.positions.table[:, 0])
    for name, value in pretrained.encoder.state_dict().items():
        assert torch.equal(model.encoder.state_dict()[name], value), name


def test_input_statistics_are_copied_unless_configured(tmp_path):
    pretrained = PretrainedSsast(SsastConfig(**SMALL, input_stats="batch"), "chunk_mask")
    pretrained.batch_norm.running_mean.fill_(-7)
    pretrained.batch_norm.running_var.fill_(9)
    pretrained.save_pretrained(tmp_path)
    adapters = pytest.importorskip("mae_ast.models.ast", reason="needs fairseq")
    cfg = adapters.AstModelConfig(**SMALL, checkpoint=str(tmp_path))
    config, weights = start_ast(cfg, 5)
    assert (config.input_mean, config.input_std) == (-7, 3)
    assert not any(name.startswith("batch_norm.") for name in weights)
    cfg.input_mean, cfg.input_std = -6.6, 5.4
    config, _ = start_ast(cfg, 5)
    assert (config.input_mean, config.input_std) == (-6.6, 5.4)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"encoder_layers": 3}, "encoder_layers=3 differs from the pretrained model's 2"),
        ({"encoder_embed_dim": 48}, "encoder_embed_dim=48 differs"),
        ({"ast_kernel_size_time": 20}, "ast_kernel_size_time=20 differs"),
        ({"window_type": "povey"}, "window_type=povey differs from the pretrained model's hanning"),
        ({"prefix_tokens": 2}, "no distillation token"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_incompatible_encoder_is_refused(fields, message):
    with pytest.raises(ValueError, match=message):
        start_from(ast(**fields), ssast(prefix_tokens=1))
