"""Clips side by side in a row: losses and gradients equal those of the clips alone."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch
from torch.testing import assert_close

from mae_ast.core.frontend.collate import Batch, Clip, Collater
from mae_ast.core.frontend.collate_rows import RowCollater
from mae_ast.core.frontend.fbank import num_frames
from mae_ast.core.frontend.masking import MaskIds, masked_fraction
from mae_ast.core.frontend.rows import RowShape
from tests.core.vits import loss_of
from tests.sounds import pcm16, speech_like
from tests.systems.cases import Case, masked_cases, names_without_gradient

LENGTHS = (16_000, 9_000, 2_800, 30_000, 5_000, 7_000)
STEPS_LEFT = 5  # of a row, after its clips


def clips_of_row(num: int) -> list[Clip]:
    waves = [pcm16(speech_like(n, seed)) for seed, n in enumerate(LENGTHS[:num])]
    return [Clip.of(id=row, samples=wave, seed=1, epoch=1) for row, wave in enumerate(waves)]


def collater_of(model: Any, mask_type: str = "random_mask", in_worker: bool = False) -> Collater:
    return Collater(model.config, mask_type, compute_fbank=in_worker)


def row_of(
    collater: Collater, clips: list[Clip], max_clips: int = 8, left: int = STEPS_LEFT
) -> Batch:
    patches = collater.config.patch_shape
    steps = sum(patches.grid(num_frames(len(clip.samples)))[0] for clip in clips)
    ratio = masked_fraction(collater.mask_type, collater.config.random_mask_prob)
    return RowCollater(collater, RowShape(steps + left, max_clips, patches, ratio))(clips)


def loss_of_batch(model: Any, batch: Batch) -> Any:
    return loss_of(model(batch.source, batch.lengths, batch.mask))


@masked_cases
@pytest.mark.parametrize("num", [1, 2, 6])
@pytest.mark.parametrize("in_worker", [False, True], ids=["waveforms", "log-mel"])
def test_row_equals_its_clips_alone(case: Case, num: int, in_worker: bool) -> None:
    if case.config().input_frames is not None:
        pytest.skip("clips of one length")
    model, alone = (case.build(input_stats="fixed", ema_decay=0.0).train() for _ in range(2))
    clips, collater = clips_of_row(num), collater_of(model, in_worker=in_worker)
    loss = loss_of_batch(model, row_of(collater, clips))
    loss.backward()
    expected = torch.zeros(())
    for clip in clips_of_row(num):  # anew: a clip's generators draw once
        own = loss_of_batch(alone, collater([clip]))
        own.backward()
        expected += own.detach()
    assert loss.item() == pytest.approx(expected.item(), rel=1e-6)
    assert names_without_gradient(model) == []
    for (name, found), other in zip(model.named_parameters(), alone.parameters(), strict=True):
        if other.grad is not None and not name.endswith("k_proj.bias"):  # which has no effect
            scale = other.grad.abs().max().item()
            assert_close(found.grad, other.grad, rtol=0, atol=1e-5 * scale, msg=name)


@masked_cases
def test_full_row_with_all_its_clips(case: Case) -> None:
    if case.config().input_frames is not None:
        pytest.skip("clips of one length")
    model = case.build(input_stats="fixed").eval()
    clips, collater = clips_of_row(4), collater_of(model)
    loss = loss_of_batch(model, row_of(collater, clips, max_clips=4, left=0))
    expected = sum(loss_of_batch(model, collater([clip])).item() for clip in clips_of_row(4))
    assert loss.item() == pytest.approx(expected, rel=1e-6)


@masked_cases
def test_row_without_clips_has_zero_loss(case: Case) -> None:
    if case.config().input_frames is not None:
        pytest.skip("clips of one length")
    model = case.build().train()
    before = {name: value.clone() for name, value in model.batch_norm.named_buffers()}
    loss = loss_of_batch(model, row_of(collater_of(model), []))
    loss.backward()
    assert loss.item() == 0
    for name, value in model.named_parameters():
        assert not value.requires_grad or bool(value.grad.isfinite().all()), name
    for name, value in model.batch_norm.named_buffers():
        assert torch.equal(value, before[name]), name


@masked_cases
def test_rows_of_a_run_have_one_shape(case: Case) -> None:
    model = case.build()
    shape = RowShape(128, 8, model.patch_shape, 0.75)
    shapes = set()
    for clips in ([], clips_of_row(1), clips_of_row(3)):
        batch = RowCollater(collater_of(model), shape)(clips)
        mask = batch.mask
        assert mask.clips is not None
        shapes.add(tuple(x.shape for x in (batch.source, *mask[:2], *mask.clips)))
        assert (mask.visible_ids >= 0).sum() == batch.num_visible
        assert MaskIds.of((*mask[:3], tuple(mask.clips))) == mask
    assert len(shapes) == 1


@masked_cases
def test_batch_statistics_of_a_row_are_those_of_its_patches(case: Case) -> None:
    if case.config().input_frames is not None or case.config().input_stats != "batch":
        pytest.skip("no batch statistics")
    model = case.build().train()
    clips, collater = clips_of_row(3), collater_of(model)
    batch = row_of(collater, clips)
    mask = batch.mask
    values = [model.log_mel(clip.samples[None])[0] for clip in clips]
    time = model.patch_shape.time
    whole = torch.cat([value[: len(value) // time * time] for value in values])
    expected = (whole - whole.mean()) / (whole.var(correction=0) + 1e-5).sqrt() / 2
    found = model.spectrogram(batch.source, batch.lengths, mask.clips)[0, : len(whole)]
    assert_close(found, expected, rtol=0, atol=1e-4)


@masked_cases
def test_dropout_in_a_row(case: Case) -> None:
    if case.config().input_frames is not None:
        pytest.skip("clips of one length")
    model = case.build(attention_dropout=0.5, ema_decay=0.0).train()
    batch = row_of(collater_of(model), clips_of_row(3))
    torch.manual_seed(1)
    first = loss_of_batch(model, batch)
    first.backward()
    assert names_without_gradient(model) == []
    assert loss_of_batch(model, batch).item() != first.item()
    torch.manual_seed(1)
    assert loss_of_batch(model, batch).item() == first.item()


@pytest.mark.parametrize("mask_type", ["chunk_mask", "retain_spans"])
def test_all_masks_fit_a_row(mask_type: str) -> None:
    from tests.systems.cases import CASES

    ratio = 1.45 if mask_type == "retain_spans" else 0.75
    case = CASES["mae_ast: frames" if mask_type == "retain_spans" else "mae_ast: patches"]
    model = case.build(input_stats="fixed", random_mask_prob=ratio).eval()
    collater, clips = collater_of(model, mask_type), clips_of_row(6)
    found = loss_of_batch(model, row_of(collater, clips, left=0, max_clips=6))
    expected = sum(loss_of_batch(model, collater([clip])).item() for clip in clips_of_row(6))
    assert found.item() == pytest.approx(expected, rel=1e-6)


def test_clips_that_do_not_fit_a_row_are_refused() -> None:
    from tests.systems.cases import FIRST

    model = FIRST["mae_ast"].build()
    collater, clips = collater_of(model), clips_of_row(2)
    with pytest.raises(ValueError, match="2 clips of 9 time steps do not fit a row of 8 clips"):
        row_of(collater, clips, left=-1)
    with pytest.raises(ValueError, match="do not fit a row of 1 clips"):
        row_of(collater, clips, max_clips=1)
    short = dataclasses.replace(clips[0], samples=clips[0].samples[:500])
    with pytest.raises(ValueError, match="500 samples at 16 kHz is shorter than one patch"):
        row_of(collater, [short])
