"""Masked prediction of every system: its loss, its gradients, and what it must not see."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch
from torch.testing import assert_close

from mae_ast.core.frontend.collate import Collater
from mae_ast.core.frontend.fbank import fbank, num_frames
from mae_ast.core.frontend.masking import MaskIds, random_mask
from mae_ast.core.inference.reconstruct import reconstruct
from mae_ast.core.models.config import RegularisationConfig, TransformerConfig
from mae_ast.core.models.registry import parse_pretraining_config, system_name
from tests.core.vits import Clips, log_mel_like, loss_of
from tests.systems.cases import (
    EQUAL,
    FIRST,
    UNEQUAL,
    Case,
    hidden_places,
    lengths_of_clips,
    masked_cases,
    names_without_gradient,
    slow_loss,
    system_of,
)

HEADS = ("reconstruction", "classification")
OVERLAP = {"ast_kernel_stride_time": 1}


def heads_of(model: Any) -> list[str]:
    return [name for name in HEADS if hasattr(model, f"final_proj_{name}")]


@masked_cases
@lengths_of_clips
def test_loss_equals_a_slow_implementation(case: Case, lengths: tuple[int, ...]) -> None:
    model = case.build().train()
    clips = Clips(model, *lengths)
    assert clips.mask.padded == (lengths == UNEQUAL)
    loss = loss_of(clips.predict(model)).item()
    assert loss == pytest.approx(slow_loss(case, model, clips), rel=1e-4)
    model.eval()  # with the running statistics, which training has just changed
    loss = loss_of(clips.predict(model)).item()
    assert loss == pytest.approx(slow_loss(case, model, clips), rel=1e-4)


@masked_cases
@lengths_of_clips
def test_every_parameter_gets_a_gradient(case: Case, lengths: tuple[int, ...]) -> None:
    model = case.build().train()
    loss_of(Clips(model, *lengths).predict(model)).backward()
    assert names_without_gradient(model) == []
    skipping = case.build(encoder_layerdrop=0.9).train()
    loss_of(Clips(skipping, *lengths).predict(skipping)).backward()
    for name, value in skipping.named_parameters():
        if value.requires_grad:  # zero for layers that were skipped, so that workers agree
            assert value.grad is not None, name
            assert bool(value.grad.isfinite().all()), name


@masked_cases
def test_hidden_patches_cannot_reach_the_encoder(case: Case) -> None:
    model = case.build(input_stats="fixed").train()
    mask = random_mask(2, model.patch_shape.grid(64), 0.75, torch.Generator().manual_seed(0))
    source = log_mel_like(2, 64, 128)
    hidden = hidden_places(model, mask, 64)
    elsewhere = torch.where(hidden, 50 * torch.randn(2, 64, 128), source)
    before, after, moved = (
        model(x, None, mask) for x in (source, elsewhere, torch.where(hidden, source, source + 1))
    )
    for name in heads_of(model):
        assert torch.equal(getattr(after, name), getattr(before, name))
        assert not torch.equal(getattr(moved, name), getattr(before, name))
    assert not torch.equal(after.target, before.target)
    source.requires_grad_()
    prediction = model(source, None, mask)
    sum(getattr(prediction, name).square().sum() for name in heads_of(model)).backward()
    assert source.grad is not None
    assert not source.grad[hidden].any()
    assert bool((source.grad[~hidden] != 0).all())


@masked_cases
@pytest.mark.parametrize("frames", [None, 128], ids=["own length", "fixed length"])
def test_padded_batch_equals_single_clips(case: Case, frames: int | None) -> None:
    model = case.build(input_stats="fixed", input_frames=frames).eval()
    clips = Clips(model, *UNEQUAL)
    together = clips.predict(model)
    assert together.valid is not None
    names = ("target", "offset", "scale", *HEADS)
    for row, (wave, mask) in enumerate(zip(clips.waves, clips.masks, strict=True)):
        alone = model(wave[None], None, mask)
        count = mask.masked_ids.shape[1]
        assert together.valid[row].tolist() == [n < count for n in range(len(together.valid[row]))]
        for name in names:
            found, own = getattr(together, name), getattr(alone, name)
            assert (found is None) == (own is None)
            if own is not None:
                assert_close(found[row, :count], own[0], rtol=0, atol=1e-4)


@masked_cases
def test_forms_of_the_input_give_the_same_loss(case: Case) -> None:
    model = case.build().train()
    clips = Clips(model, *EQUAL)
    frames = torch.tensor([num_frames(n) for n in EQUAL])
    log_mel = fbank(clips.source, model.config.window_type)
    expected = loss_of(clips.predict(model)).item()
    for source, lengths in (
        (clips.source, torch.tensor(EQUAL)),
        (clips.source.float() / 32768, None),
        (log_mel, None),
        (log_mel, frames),
    ):
        found = case.build().train()(source, lengths, clips.mask)
        assert loss_of(found).item() == pytest.approx(expected, rel=1e-4)


@masked_cases
def test_batch_of_nothing_has_zero_loss_and_finite_gradients(case: Case) -> None:
    model = case.build().train()
    before = {name: value.clone() for name, value in model.batch_norm.named_buffers()}
    batch = Collater(model.config, "random_mask")([])
    loss = loss_of(model(batch.source, batch.lengths, batch.mask))
    loss.backward()
    assert loss.item() == 0
    for name, value in model.named_parameters():
        assert not value.requires_grad or bool(value.grad.isfinite().all()), name
    for name, value in model.batch_norm.named_buffers():
        assert torch.equal(value, before[name]), name


@masked_cases
def test_half_precision_is_close_to_float32(case: Case) -> None:
    exact = case.build().eval()
    clips = Clips(exact, *UNEQUAL)
    expected = clips.predict(exact)
    autocast = case.build(precision="bfloat16").eval()
    for model in (autocast, case.build().eval().bfloat16()):
        prediction = clips.predict(model)
        assert prediction.reconstruction is not None
        assert prediction.reconstruction.dtype == torch.bfloat16
        assert prediction.target.dtype == torch.float32
        assert loss_of(prediction).item() == pytest.approx(loss_of(expected).item(), rel=5e-2)
    loss = loss_of(clips.predict(autocast.train()))
    assert loss.dtype == torch.float32
    loss.backward()
    for name, value in autocast.named_parameters():
        if value.requires_grad:
            assert value.grad.dtype == torch.float32, name


@masked_cases
def test_head_that_is_not_trained_is_not_computed(case: Case) -> None:
    model = case.build().train()
    clips = Clips(model, *EQUAL)
    own = heads_of(model)
    for trained in ([name] for name in own):
        model.zero_grad()
        model.train_heads(*(name in trained for name in HEADS))
        loss_of(clips.predict(model.train())).backward()
        prediction = clips.predict(model)
        assert [name for name in HEADS if getattr(prediction, name) is not None] == trained
        assert names_without_gradient(model) == []
        in_eval = clips.predict(model.eval())
        assert [name for name in HEADS if getattr(in_eval, name) is not None] == own
    for name in set(HEADS) - set(own):
        with pytest.raises(ValueError, match=f"has no {name} head, and so no such loss"):
            model.train_heads(*(each == name for each in HEADS))


@masked_cases
def test_training_without_dropout_draws_no_random_numbers(case: Case) -> None:
    model = case.build()
    clips = Clips(model, *EQUAL)
    before = torch.get_rng_state()
    for mode in (True, False):
        clips.predict(model.train(mode))
        assert torch.equal(torch.get_rng_state(), before)


@masked_cases
@pytest.mark.parametrize("key", [field.name for field in dataclasses.fields(RegularisationConfig)])
def test_regularisation_acts_in_training_only(case: Case, key: str) -> None:
    model, plain = case.build(**{key: 0.5}), case.build()
    clips = Clips(model, *EQUAL)
    torch.manual_seed(2)
    expected = loss_of(clips.predict(plain.train())).item()
    assert loss_of(clips.predict(model.train())).item() != expected
    model.load_state_dict(plain.state_dict())
    assert loss_of(clips.predict(model.eval())) == loss_of(clips.predict(plain.eval()))


@masked_cases
def test_pretraining_refuses_unsuitable_patches(case: Case) -> None:
    config = case.config(**OVERLAP)
    with pytest.raises(ValueError, match=r"ast_kernel_stride_time=1 differs from .*must be equal"):
        config.check_pretraining("random_mask")
    mask = random_mask(1, config.patch_shape.grid(64), 0.75)
    with pytest.raises(ValueError, match="patches overlap"):
        case.build(**OVERLAP)(torch.zeros(1, 64, 128), None, mask)
    config, name = case.config(), system_of(case)
    assert parse_pretraining_config({"_name": name, **vars(config)}, "random_mask") == config
    for mask_type, ratio, message in (
        ("chunk_patch", 0.75, "'chunk_patch' is unknown"),
        ("random_mask", 1.45, "random_mask_prob 1.45"),
    ):
        with pytest.raises(ValueError, match=message):
            case.config(random_mask_prob=ratio).check_pretraining(mask_type)


def test_systems_without_masks_are_not_pretrained() -> None:
    for case in FIRST.values():
        if case.predict is None:
            values = {"_name": system_of(case), **vars(case.config())}
            with pytest.raises(ValueError, match="is not pretrained by masking"):
                parse_pretraining_config(values, "random_mask")
    with pytest.raises(ValueError, match=r"TransformerConfig is not a configuration of any system"):
        system_name(TransformerConfig())


@masked_cases
def test_masked_clips_longer_than_input_frames_are_refused(case: Case) -> None:
    model = case.build(input_frames=32)
    count = torch.tensor(model.patch_shape.grid(32)).prod().item()
    with pytest.raises(ValueError, match=f"input_frames=32 gives {count} patches, but the mask"):
        Clips(model, 16_000).predict(model)


@masked_cases
def test_padding_to_input_frames_is_not_predicted(case: Case) -> None:
    model, plain = case.build(input_frames=128).eval(), case.build(input_frames=None).eval()
    clips = Clips(plain, *UNEQUAL)
    found, expected = clips.predict(model), clips.predict(plain)
    assert found.valid is not None
    assert torch.equal(found.valid, expected.valid)
    if model.patch_shape.dim == found.target.shape[2]:  # the target is the input
        assert_close(found.target[found.valid], expected.target[found.valid], rtol=0, atol=1e-4)


@masked_cases
def test_reconstruction_keeps_the_visible_patches(case: Case) -> None:
    model = case.build().eval()
    mask = random_mask(2, model.patch_shape.grid(96), 0.75, torch.Generator().manual_seed(0))
    source = log_mel_like(2, 96, 128)
    if model(source, None, mask).target.shape[2] != model.patch_shape.dim:
        with pytest.raises(ValueError, match="predicts 24 values per masked patch, not its 256"):
            reconstruct(model, source, mask)
        return
    result = reconstruct(model, source, mask)
    hidden = hidden_places(model, mask, 96)
    assert result.rebuilt.shape == result.original.shape == (2, 96, 128)
    assert torch.equal(result.visible.isnan(), hidden)
    assert torch.equal(result.rebuilt[~hidden], result.original[~hidden])
    assert not torch.isclose(result.rebuilt[hidden], result.original[hidden]).all()


def test_masks_of_a_batch_are_one_tuple() -> None:
    mask = MaskIds(torch.tensor([[0, 2], [1, -1]]), torch.tensor([[1, 3], [0, -1]]), padded=True)
    assert mask.to("cpu").num_own.tolist() == [4, 2]
    assert mask.valid is not None
    assert mask.valid.tolist() == [[True, True], [True, False]]
    assert mask._replace(padded=False).valid is None
    assert mask.num_patches == 4
