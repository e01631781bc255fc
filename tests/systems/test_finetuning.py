"""Fine-tuning of every system: initial weights, overlap, input length, pooling, dropped patches."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.testing import assert_close

from mae_ast.core.frontend.fbank import fbank, num_frames
from mae_ast.core.frontend.masking import structured_mask
from mae_ast.core.models.classifier import Classifier, HeadConfig
from mae_ast.core.models.encoder import Encoder
from mae_ast.core.models.registry import build_encoder
from mae_ast.finetune.initialize import finetuning_config, fitted, start_from_checkpoint
from mae_ast.models.classifier import MaeAstClassifierConfig
from tests.core.vits import FRAME_TOKENS, Clips
from tests.sounds import speech_like
from tests.systems.cases import (
    FIRST,
    UNEQUAL,
    Case,
    names_without_gradient,
    one_of_each,
    some_cases,
)
from tests.systems.test_checkpoints import pretrained

POOLS = ("time_steps", "tokens", "encoder")
overlaps = pytest.mark.parametrize("overlap", [False, True], ids=["as is", "overlap"])


def build(case: Case, overlap: bool = False, frames: int | None = None) -> Encoder:
    """Build the encoder for fine-tuning from a pretrained one with random weights."""
    config = case.config(input_stats="fixed")
    final = finetuning_config(config, overlap, frames)
    encoder = build_encoder(final)
    weights = case.build(input_stats="fixed").state_dict()
    kept = {name: weights[name] for name in encoder.state_dict()}
    encoder.load_state_dict(fitted(kept, config, final))
    return encoder


@some_cases
@pytest.mark.parametrize("overlap", [False, True], ids=["as pretrained", "overlap"])
def test_starts_from_a_checkpoint(case: Case, overlap: bool, tmp_path: Path) -> None:
    model = pretrained(case)
    model.batch_norm.running_mean.fill_(-7)
    model.batch_norm.running_var.fill_(9)
    model.save_pretrained(tmp_path)
    frames = 96 if overlap else None
    cfg = MaeAstClassifierConfig(
        checkpoint=str(tmp_path), overlap=overlap, input_frames=frames, dropout=0.1, input_std=5.0
    )
    config, weights = start_from_checkpoint(cfg)
    assert type(config) is type(model.config)
    changed = {
        **{"input_mean": -7.0, "input_std": 5.0, "input_stats": "fixed"},
        **{"dropout": 0.1, "precision": "auto"},
    }
    if overlap:
        changed |= {"ast_kernel_stride_time": {16: 10, 2: 1, 8: 8}[model.patch_shape.time]}
        changed |= {"ast_kernel_stride_chan": {16: 10, 128: 128, 32: 32}[model.patch_shape.mel]}
        changed |= {"input_frames": 96, "position_frames": 96}
    known = dataclasses.asdict(model.config).keys()
    changed = {key: value for key, value in changed.items() if key in known}
    assert config == dataclasses.replace(model.config, **changed)
    encoder = build_encoder(config)
    found = encoder.state_dict() | weights
    assert found.keys() == encoder.state_dict().keys()
    refitted = {"positions.table"} if overlap else set()
    for name, value in weights.items():
        same = value.shape == model.state_dict()[name].shape and torch.equal(
            value, model.state_dict()[name]
        )
        assert same == (name not in refitted), name

    cfg = dataclasses.replace(cfg, checkpoint=None, architecture_of=str(tmp_path))
    assert start_from_checkpoint(cfg) == (config, {})


@one_of_each
@pytest.mark.parametrize(
    ("overlap", "frames"), [(False, None), (True, None), (False, 100), (True, 30)], ids=str
)
def test_classifier_of_a_padded_batch_equals_single_clips(
    case: Case, overlap: bool, frames: int | None
) -> None:
    encoder = build(case, overlap, frames)
    assert encoder.patch_shape.overlaps or not overlap or case.config().patch_shape.overlaps
    clips = Clips(encoder, *UNEQUAL)
    shape, width = encoder.patch_shape, encoder.config.encoder_embed_dim
    for pool in POOLS:
        torch.manual_seed(0)
        model = Classifier(encoder, HeadConfig(5, pool=pool)).eval()
        together = model(clips.source, clips.lengths)
        pooled = model.pooled(clips.source, clips.lengths)
        assert pooled.shape == (3, width * (shape.per_column if pool == "time_steps" else 1))
        for row, wave in enumerate(clips.waves):
            alone = model(wave[None])
            assert_close(together[row], alone[0], rtol=1e-4, atol=1e-4)
            log_mel = fbank(wave[None], encoder.config.window_type)
            assert_close(model(log_mel), alone, rtol=1e-5, atol=1e-5)
            tokens = encoder.last_hidden_state(encoder.hidden_states(wave[None]))
            count = shape.grid(frames or case.config().input_frames or num_frames(len(wave)))[0]
            assert tokens.shape == (1, count * shape.per_column, width)
            if pool == "time_steps":
                expected = tokens.reshape(count, -1).mean(0)
                assert_close(pooled[row], expected, rtol=0, atol=1e-4)
            elif pool == "tokens":
                assert_close(pooled[row], tokens[0].mean(0), rtol=0, atol=1e-4)


@one_of_each
@overlaps
@pytest.mark.parametrize("pool", POOLS)
def test_every_parameter_gets_a_gradient(case: Case, overlap: bool, pool: str) -> None:
    model = Classifier(build(case, overlap, 96), HeadConfig(5, "mlp", pool)).train()
    clips = Clips(model.encoder, *UNEQUAL)
    model(clips.source, clips.lengths).square().sum().backward()
    assert names_without_gradient(model) == []


@one_of_each
@overlaps
def test_dropped_patches_do_not_influence_the_logits(case: Case, overlap: bool) -> None:
    encoder = build(case, overlap, 96)
    model = Classifier(encoder, HeadConfig(5, pool="tokens")).train()
    shape = encoder.patch_shape
    grid = shape.grid(96)
    source = torch.stack([encoder.log_mel(speech_like(15_600, n)[None])[0] for n in range(2)])
    mask = structured_mask(2, grid, 0.5, 0.25, torch.Generator().manual_seed(0))
    seen = torch.zeros(source.shape, dtype=torch.bool)
    for row, ids in enumerate(mask.visible_ids):
        for t, f in ((n // grid[1], n % grid[1]) for n in ids.tolist()):
            t, f = t * shape.time_stride, f * shape.mel_stride
            seen[row, t : t + shape.time, f : f + shape.mel] = True
    assert not seen.all()
    before = model(source, None, None, mask.visible_ids)
    assert torch.equal(model(torch.where(seen, source, 9.0), None, None, mask.visible_ids), before)
    assert not torch.equal(model(source + 1, None, None, mask.visible_ids), before)
    assert not torch.allclose(model(source), before, atol=1e-3)
    before.square().sum().backward()
    assert [name for name in names_without_gradient(model) if "positions.table" not in name] == []


def fixed_positions() -> list[Any]:
    return [
        pytest.param(case, kernel, id=f"{system}, {kind}")
        for system, case in FIRST.items()
        for kind, kernel in (("patches", {}), ("frames", FRAME_TOKENS))
        if case.config().positions != "learned"
        and not (kernel and system == "toy")  # whose convolutions need patches
    ]


@pytest.mark.parametrize(("case", "kernel"), fixed_positions())
def test_overlapping_patch_keeps_the_position_of_its_place(
    case: Case, kernel: dict[str, int]
) -> None:
    """Patches of 16 every 10 frames: each eighth is where each fifth is without overlap."""
    config = case.config(**kernel)
    steps = (1, 2) if kernel else (5, 8)
    tables = []
    for each, step in zip((config, finetuning_config(config, overlap=True)), steps, strict=True):
        encoder = build_encoder(each)
        grid = encoder.patch_shape.grid(160)
        table = encoder.positions(grid)[0, config.prefix_tokens :].unflatten(0, grid)
        tables.append(table[::step, ::step])
    along_time, along_mel = (min(table.shape[axis] for table in tables) for axis in (0, 1))
    assert along_time >= 2
    found, expected = (table[:along_time, :along_mel] for table in tables)
    assert_close(found, expected, rtol=0, atol=1e-5)


@one_of_each
def test_overlap_gives_more_tokens_with_the_same_weights(case: Case) -> None:
    plain, overlapping = build(case, frames=96).eval(), build(case, True, 96).eval()
    source = speech_like(15_600)[None]
    before, after = plain.hidden_states(source)[-1], overlapping.hidden_states(source)[-1]
    assert after.shape[1] == (96 - 16 + 10) // 10 * 12
    assert before.shape[1] == after.shape[1] if case.config().patch_shape.overlaps else 6 * 8
    assert bool(after.isfinite().all())
    first = (plain.embed(plain.patches(source)), overlapping.embed(overlapping.patches(source)))
    assert_close(first[0][:, 0], first[1][:, 0])  # the same patch
