"""Encoder of every system: padding, hidden states, features, and refused configurations."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from mae_ast.core.frontend.fbank import num_frames
from mae_ast.core.frontend.masking import MaskIds, structured_mask
from mae_ast.core.models.encoder import Encoder, encoder_only
from mae_ast.core.models.registry import build_encoder, parse_config, system_name
from tests.core.vits import Clips
from tests.sounds import speech_like
from tests.systems.cases import (
    ALL_SYSTEMS,
    EQUAL,
    UNEQUAL,
    Case,
    all_cases,
    names_without_gradient,
    one_of_each,
    system_of,
)


def outputs_of(model: Encoder, source: Tensor, lengths: Tensor | None = None) -> dict[str, Any]:
    """Return hidden states (B, N, D), and one vector (B, ...) of each kind for each clip."""
    out = {"states": model.hidden_states(source, lengths), "pooled": model.pooled(source, lengths)}
    return out | ({"logits": model.logits(source, lengths)} if hasattr(model, "logits") else {})


@all_cases
@pytest.mark.parametrize("frames", [None, 128], ids=["own length", "fixed length"])
def test_padded_batch_equals_single_clips(case: Case, frames: int | None) -> None:
    model = case.build(input_stats="fixed", input_frames=frames).eval()
    clips = Clips(model, *UNEQUAL)
    together = outputs_of(model, clips.source, clips.lengths)
    without_lengths = outputs_of(model, clips.source)
    own_steps = model.num_steps(clips.source, clips.lengths)
    for row, wave in enumerate(clips.waves):
        alone = outputs_of(model, wave[None])
        grid = model.patch_shape.grid(frames or num_frames(len(wave)))
        assert own_steps is None or own_steps[row] == grid[0]
        for ours, own in zip(together["states"], alone["states"], strict=True):
            assert own.shape == (1, grid[0] * grid[1], model.config.encoder_embed_dim)
            assert_close(ours[row, : own.shape[1]], own[0], rtol=0, atol=1e-4)
        for kind in alone.keys() - {"states"}:
            assert_close(together[kind][row], alone[kind][0], rtol=0, atol=1e-4)
            if frames is None:  # padding without lengths is part of a clip
                last = without_lengths[kind][2]
                assert not torch.allclose(last, together[kind][2], atol=1e-3)
    if frames is not None:  # padding is attended to
        unpadded = case.build(input_stats="fixed", input_frames=None).eval()
        states = unpadded.hidden_states(clips.waves[1][None])[-1][0]
        assert not torch.allclose(together["states"][-1][1, : len(states)], states, atol=1e-2)


@all_cases
def test_hidden_states_are_the_layers_on_all_patches(case: Case) -> None:
    model = case.build().eval()
    source, num_prefix = Clips(model, *EQUAL).source, model.config.prefix_tokens
    x = model.embed(model.patches(source))
    grid = model.patch_shape.grid(model.config.input_frames or num_frames(EQUAL[0]))
    if num_prefix:
        x = torch.cat((model.prefix_tokens.expand(len(x), -1, -1), x), dim=1)
    x = x + model.positions(grid)
    if not model.config.layer_norm_first:
        x = model.encoder.layer_norm(x)
    states = model.hidden_states(source)
    for layer, state in zip(model.encoder.layers, states, strict=True):
        x = layer(x)
        assert_close(state, x[:, num_prefix:], rtol=0, atol=1e-5)
    last = model.encoder.layer_norm(x) if model.config.layer_norm_first else x
    encoded = model.encode(source)
    for found in (model.last_hidden_state(states), encoded.patches):
        assert_close(found, last[:, num_prefix:], rtol=0, atol=1e-5)
    assert_close(encoded.prefix, last[:, :num_prefix], rtol=0, atol=1e-5)
    pooled = encoded.prefix if model.config.pool == "prefix" else encoded.patches
    assert_close(model.pooled(source), pooled.mean(1), rtol=0, atol=1e-5)


@all_cases
def test_encoder_alone_is_that_of_the_whole_model(case: Case) -> None:
    model = case.build(encoder_layerdrop=0.5, precision="bfloat16").eval()
    source = Clips(model, *EQUAL).source
    with torch.no_grad():
        model.precision = "float32"
        expected = model.hidden_states(source)
    statistics = {name: value.clone() for name, value in model.batch_norm.named_buffers()}
    left = encoder_only(model).train()
    states = left.hidden_states(source)
    for state, whole in zip(states, expected, strict=True):
        assert torch.equal(state, whole)  # without layerdrop, batch statistics or autocast
    left.last_hidden_state(states).square().sum().backward()
    unused = names_without_gradient(left)
    assert [name for name in unused if "positions.table" not in name] == []
    for name, value in left.batch_norm.named_buffers():
        assert torch.equal(value, statistics[name])

    encoder = build_encoder(dataclasses.replace(case.config(), input_stats="fixed"))
    assert not issubclass(type(encoder), case.system.network) or not case.predict
    encoder.load_state_dict(left.state_dict())
    for state, whole in zip(encoder.eval().hidden_states(source), expected, strict=True):
        assert torch.equal(state, whole)


@all_cases
def test_visible_patches_are_encoded_alone(case: Case) -> None:
    model = case.build(input_frames=None).eval()
    source = torch.stack([speech_like(16_000, seed) for seed in range(2)])
    grid = model.patch_shape.grid(num_frames(16_000))
    everything = MaskIds(torch.arange(grid[0] * grid[1]).expand(2, -1), torch.empty(2, 0).long())
    assert_close(model.pooled(source, None, everything), model.pooled(source), rtol=0, atol=1e-5)
    mask = structured_mask(2, grid, 0.3, 0.3, torch.Generator().manual_seed(0))
    ids = mask.visible_ids
    pooled = model.pooled(source, None, mask)
    encoded = model.encode_visible(model.patches(source), mask)
    assert encoded.shape[1] == model.config.prefix_tokens + ids.shape[1]
    padded = ids.clone()
    padded[1, ids.shape[1] // 2 :] = -1  # clips with different numbers of visible patches
    found = model.pooled(source, None, MaskIds(padded, ids[:, :0], padded=True))
    assert_close(found[0], pooled[0], rtol=0, atol=1e-5)
    fewer = MaskIds(ids[1:, : ids.shape[1] // 2], ids[1:, :0])
    assert_close(found[1:], model.pooled(source[1:], None, fewer), rtol=0, atol=1e-5)


# Configurations.


def invalid_values(rules: Any) -> list[Any]:
    """Return values that the rules of a field refuse."""
    values: list[Any] = []
    if "minimum" in rules:
        values += [rules["minimum"] - 1, str(rules["minimum"]), rules["minimum"] + 0.5]
    if "choices" in rules:
        values += ["nothing of the kind"]
    if "probability" in rules:
        values += [-0.1, 1.0, float("nan"), "half"]
    if "positive" in rules:
        values += [0.0, -1.0, float("nan")]
    return values


RULES = [
    pytest.param(name, field, value, id=f"{name}, {field.name}={value}")
    for name, system in ALL_SYSTEMS.items()
    for field in dataclasses.fields(system.config)
    for value in (
        *invalid_values(field.metadata),
        *(() if field.default is None or not invalid_values(field.metadata) else (None,)),
    )
]


@pytest.mark.parametrize(("name", "field", "value"), RULES)
def test_values_against_the_rules_of_their_fields_are_refused(
    name: str, field: dataclasses.Field[Any], value: Any
) -> None:
    with pytest.raises(ValueError) as refusal:  # noqa: PT011
        ALL_SYSTEMS[name].config(**{field.name: value})
    assert str(refusal.value).startswith(f"{field.name}={value!r}; must be ")


@one_of_each
def test_sizes_that_do_not_fit_each_other_are_refused(case: Case) -> None:
    for fields, message in (
        ({"encoder_attention_heads": 5}, "encoder_embed_dim=24; .*encoder_attention_heads=5"),
        ({"encoder_embed_dim": 27}, "encoder_embed_dim=27; must be divisible by [24]"),
        ({"input_frames": 9}, "input_frames=9; must be at least one patch"),
        ({"ast_kernel_stride_time": 20}, "a stride of 20 frames; must be 1 to 16"),
        ({"ast_kernel_size_chan": 48, "ast_kernel_stride_chan": 48}, "48 mel bins does not divide"),
    ):
        if fields.get("encoder_embed_dim") and case.config().positions == "learned":
            continue  # of any width
        with pytest.raises(ValueError, match=message):
            case.config(**fields)


@one_of_each
def test_configuration_is_read_from_a_mapping_with_other_keys(case: Case) -> None:
    config, name = case.config(dropout=0.2), system_of(case)
    assert system_name(config) == name
    values = {**dataclasses.asdict(config), "conv_pos": 128, "compile": True}
    assert parse_config({**values, "system": name}) == config
    assert parse_config({**values, "_name": name}) == config
    with pytest.raises(ValueError, match="unknown system 'wav2vec'; must be one of mae_ast, "):
        parse_config({**values, "_name": "wav2vec"})
