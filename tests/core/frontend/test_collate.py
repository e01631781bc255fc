"""Collation: keyed generators, cropping, padding, masks, empty batches."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from torch import Tensor

from mae_ast.core.frontend.collate import Batch, Clip, Collater, clip_generator, draw_start
from mae_ast.core.frontend.fbank import fbank, num_frames, num_samples_of_frames
from mae_ast.core.frontend.masking import MASK_TYPES, count_visible, retain_spans
from mae_ast.core.models.config import MaeAstConfig, SsastConfig
from mae_ast.core.models.losses import info_nce_loss, reconstruction_loss
from mae_ast.core.models.mae_ast import MaeAst
from mae_ast.core.models.ssast import Ssast
from tests.core.vits import SMALL, with_random_weights
from tests.sounds import pcm16, speech_like

PATCHES = ["random_mask", "random_mask_batched", "chunk_mask"]


def clips_of(*lengths: int, epoch: int = 1, first: int = 0) -> list[Clip]:
    return [
        Clip.of(n, pcm16(speech_like(length, seed=n)), 7, epoch)
        for n, length in enumerate(lengths, start=first)
    ]


def loss_of(model: MaeAst | Ssast, batch: Batch) -> Tensor:
    mask = batch.mask
    prediction = model(batch.source, batch.lengths, mask)
    mse = reconstruction_loss(prediction.reconstruction, prediction.target, prediction.valid)
    nce = info_nce_loss(prediction.classification, prediction.target, prediction.valid)
    return 10 * mse + nce.loss


def start_of(row: Tensor, whole: Tensor) -> int:
    """Return the position in a clip from which a row of a batch was cropped."""
    windows = whole.unfold(0, len(row), 1)
    (places,) = (windows == row).all(dim=1).nonzero(as_tuple=True)
    assert len(places) == 1
    return int(places[0])


# -- draws --------------------------------------------------------------------------------------


def test_the_same_key_gives_the_same_draws():
    one, other = clip_generator(1, 2, 3), clip_generator(1, 2, 3)
    torch.manual_seed(99)
    torch.rand(5)
    assert torch.equal(torch.rand(20, generator=one), torch.rand(20, generator=other))


def test_different_keys_give_different_draws():
    keys = [(s, e, c) for s in (0, 1, 1337) for e in (0, 1, 2, 50) for c in (0, 1, 2, 10**9)]
    draws = {torch.rand(2, generator=clip_generator(*key)).numpy().tobytes() for key in keys}
    assert len(draws) == len(keys)


def test_first_draws_of_successive_keys_are_uniform_and_uncorrelated():
    draws = torch.tensor(
        [float(torch.rand((), generator=clip_generator(1, 1, clip))) for clip in range(2_000)]
    )
    frequency = torch.histc(draws, bins=10, min=0, max=1) / 2_000
    assert bool(((frequency - 0.1).abs() < 0.03).all())
    correlation = torch.corrcoef(torch.stack((draws[:-1], draws[1:])))[0, 1]
    assert abs(correlation) < 0.1


def test_crop_starts_are_uniform():
    generator = clip_generator(0, 0, 0)
    starts = torch.tensor([draw_start(4, generator) for _ in range(3_000)])
    frequency = torch.bincount(starts, minlength=5) / 3_000
    assert len(frequency) == 5
    assert bool(((frequency - 0.2).abs() < 0.03).all())


def test_nothing_is_drawn_if_nothing_is_cropped():
    generator = clip_generator(0, 0, 0)
    before = generator.get_state()
    assert draw_start(0, generator) == 0
    assert torch.equal(generator.get_state(), before)


# -- cropping -----------------------------------------------------------------------------------


@pytest.mark.parametrize("mask_type", PATCHES)
def test_crops_to_the_shortest(small_config, mask_type):
    clips = clips_of(16_000, 9_000, 12_345)
    batch = Collater(small_config(), mask_type)(clips)
    assert batch.ids.tolist() == [0, 1, 2]
    assert batch.source.dtype == torch.int16
    assert batch.source.shape == (3, 9_000)
    assert batch.lengths is None
    assert not batch.mask.padded
    num_patches = num_frames(9_000) // 16 * 8
    visible = count_visible(num_patches, 0.75)
    assert batch.mask.visible_ids.shape == (3, visible)
    assert batch.mask.masked_ids.shape == (3, num_patches - visible)
    assert batch.num_visible == 3 * visible
    assert batch.num_masked == 3 * (num_patches - visible)
    assert batch.num_samples == 27_000
    for row, clip in zip(batch.source, clips, strict=True):
        start_of(row, clip.samples)


def test_crops_at_random_or_at_the_beginning(small_config):
    starts = set()
    for epoch in range(30):
        clips = clips_of(4_200, 4_000, epoch=epoch)
        batch = Collater(small_config(), "random_mask")(clips)
        starts.add(start_of(batch.source[0], clips[0].samples))
        batch = Collater(small_config(), "random_mask", random_crop=False)(clips)
        assert torch.equal(batch.source[0], clips[0].samples[:4_000])
    assert len(starts) > 20
    assert min(starts) < 40
    assert max(starts) > 160


@pytest.mark.parametrize("mask_type", MASK_TYPES)
def test_the_same_clips_give_the_same_batch(small_config, mask_type):
    config = small_config((2, 128), random_mask_prob=0.7)
    collate = Collater(config, mask_type)
    one, again = collate(clips_of(9_000, 8_000)), collate(clips_of(9_000, 8_000))
    other = collate(clips_of(9_000, 8_000, epoch=2))
    assert torch.equal(one.source, again.source)
    assert torch.equal(one.mask.masked_ids, again.mask.masked_ids)
    assert not torch.equal(one.source, other.source)
    assert not torch.equal(one.mask.masked_ids, other.mask.masked_ids)


@pytest.mark.parametrize("mask_type", ["random_mask", "chunk_mask", "retain_spans"])
@pytest.mark.parametrize("pad", [True, False])
def test_mask_does_not_depend_on_the_other_clips(small_config, mask_type, pad):
    kernel = (2, 128) if mask_type == "retain_spans" else (16, 16)
    collate = Collater(small_config(kernel), mask_type, pad=pad)
    together = collate(clips_of(8_000, 8_000, 8_000))
    with_others = collate([*clips_of(8_000, 8_000, first=20), *clips_of(8_000, 8_000)[1:]])
    (alone,) = collate(clips_of(8_000, first=1)).mask.masked_ids
    assert torch.equal(together.mask.masked_ids[1], alone)
    assert torch.equal(with_others.mask.masked_ids[2], alone)
    assert torch.equal(together.source[1], with_others.source[2])
    rows = {tuple(row) for row in together.mask.masked_ids.tolist()}
    assert len(rows) == 3


@pytest.mark.parametrize("mask_type", ["random_mask", "chunk_mask"])
def test_crop_and_mask_do_not_depend_on_other_clips_of_the_same_lengths(small_config, mask_type):
    collate = Collater(small_config(), mask_type)
    one = collate(clips_of(9_000, 8_000))
    other = collate([clips_of(9_000)[0], *clips_of(8_000, first=33)])
    assert torch.equal(one.source[0], other.source[0])
    assert torch.equal(one.mask.masked_ids[0], other.mask.masked_ids[0])
    assert not torch.equal(one.mask.masked_ids[1], other.mask.masked_ids[1])


def test_mask_does_not_depend_on_whether_its_clip_is_cropped(small_config):
    config = small_config()
    cropped = Collater(config, "chunk_mask")(clips_of(9_000, 8_000))
    for pad, random_crop in [(True, True), (False, False)]:
        collate = Collater(config, "chunk_mask", pad=pad, random_crop=random_crop)
        whole = collate(clips_of(8_000, 8_000))
        assert torch.equal(cropped.mask.masked_ids, whole.mask.masked_ids)


def test_batched_random_masks_are_the_same_for_all_clips(small_config):
    for lengths in ((8_000, 8_000, 8_000), (12_000, 8_000, 9_500)):
        batch = Collater(small_config(), "random_mask_batched")(clips_of(*lengths))
        assert bool((batch.mask.masked_ids == batch.mask.masked_ids[0]).all())
        assert bool((batch.mask.visible_ids == batch.mask.visible_ids[0]).all())


def test_span_length_comes_from_the_configuration(small_config):
    config = small_config((2, 128), random_mask_prob=0.74, mask_length=25)
    batch = Collater(config, "retain_spans")(clips_of(40_000))
    grid = config.patch_shape.grid(num_frames(40_000))
    expected = retain_spans(1, grid, 0.74, clip_generator(7, 1, 0, 1), span_length=25)
    assert torch.equal(batch.mask.masked_ids, expected.masked_ids)
    other = retain_spans(1, grid, 0.74, clip_generator(7, 1, 0, 1))
    assert not torch.equal(batch.mask.masked_ids, other.masked_ids)


# -- padding ------------------------------------------------------------------------------------


@pytest.mark.parametrize("mask_type", MASK_TYPES)
def test_pads_to_the_longest_with_each_clips_own_mask(small_config, mask_type):
    config = small_config((2, 128))
    lengths = (16_000, 9_000, 600)
    clips = clips_of(*lengths)
    batch = Collater(config, mask_type, pad=True)(clips)
    assert batch.source.shape == (3, 16_000)
    assert batch.lengths.tolist() == list(lengths)
    assert batch.num_samples == sum(lengths)
    assert batch.mask.padded
    counts = []
    for row, clip in enumerate(clips):
        assert torch.equal(batch.source[row, : lengths[row]], clip.samples)
        assert not batch.source[row, lengths[row] :].any()
        alone = Collater(config, mask_type)(clips_of(lengths[row], first=row)).mask
        for padded, own in (
            (batch.mask.visible_ids[row], alone.visible_ids[0]),
            (batch.mask.masked_ids[row], alone.masked_ids[0]),
        ):
            if mask_type != "random_mask_batched":
                assert torch.equal(padded[: len(own)], own)
            assert int((padded >= 0).sum()) == len(own)
        counts.append((alone.visible_ids.shape[1], alone.masked_ids.shape[1]))
        num_patches = num_frames(lengths[row]) // 2
        assert sum(counts[-1]) == num_patches
        both = torch.cat((batch.mask.visible_ids[row], batch.mask.masked_ids[row]))
        assert torch.equal(both[both >= 0].sort().values, torch.arange(num_patches))
    assert batch.num_visible == sum(visible for visible, _ in counts)
    assert batch.num_masked == sum(masked for _, masked in counts)


def test_clips_of_one_length_need_no_padding(small_config):
    batch = Collater(small_config(), "random_mask", pad=True)(clips_of(8_000, 8_000))
    assert batch.lengths is None
    assert not batch.mask.padded


def test_clips_that_differ_by_less_than_a_patch(small_config):
    config = small_config(input_stats="fixed", input_mean=-8.0, input_std=4.0)
    batch = Collater(config, "random_mask", pad=True)(clips_of(8_000, 8_100))
    assert batch.lengths.tolist() == [8_000, 8_100]
    assert not batch.mask.padded
    model = MaeAst(config)
    collate = Collater(config, "random_mask", pad=True)
    alone = [
        loss_of(model, collate(clips_of(n, first=i))).item() for i, n in ((0, 8_000), (1, 8_100))
    ]
    assert loss_of(model, batch).item() == pytest.approx(sum(alone), rel=1e-5)


# -- filterbanks --------------------------------------------------------------------------------


@pytest.mark.parametrize("pad", [True, False])
@pytest.mark.parametrize("stats", ["batch", "fixed"])
def test_computing_the_filterbank_here_gives_equal_losses(small_config, pad, stats):
    config = small_config(input_stats=stats, input_mean=-8.0, input_std=4.0)
    lengths = (12_000, 9_000)
    waves = Collater(config, "chunk_mask", pad=pad)(clips_of(*lengths))
    spectra = Collater(config, "chunk_mask", pad=pad, compute_fbank=True)(clips_of(*lengths))
    assert spectra.source.dtype == torch.float32
    assert torch.equal(spectra.source, fbank(waves.source))
    if pad:
        assert spectra.lengths.tolist() == [num_frames(n) for n in lengths]
    else:
        assert spectra.lengths is None
    assert torch.equal(waves.mask.masked_ids, spectra.mask.masked_ids)
    assert (waves.num_samples, waves.num_masked) == (spectra.num_samples, spectra.num_masked)
    model = MaeAst(config).train()
    assert loss_of(model, spectra).item() == pytest.approx(loss_of(model, waves).item(), rel=1e-6)


@pytest.mark.parametrize("pad", [True, False])
@pytest.mark.parametrize("input_frames", [None, 64, 128])
def test_computing_the_filterbank_here_uses_the_window_of_ssast(pad, input_frames):
    config = SsastConfig(**(SMALL | {"input_frames": input_frames}))
    waves = Collater(config, "chunk_mask", pad=pad)(clips_of(12_000, 9_000))
    collate = Collater(config, "chunk_mask", pad=pad, compute_fbank=True)
    spectra = collate(clips_of(12_000, 9_000))
    assert torch.equal(spectra.source, fbank(waves.source, "hanning"))
    assert torch.equal(waves.mask.masked_ids, spectra.mask.masked_ids)
    model = with_random_weights(Ssast(config)).train()
    loss = loss_of(model, spectra).item()
    assert loss == pytest.approx(loss_of(model, waves).item(), rel=1e-6)
    povey = dataclasses.replace(spectra, source=fbank(waves.source))
    assert loss != pytest.approx(loss_of(model, povey).item(), rel=1e-5)


# -- input_frames -------------------------------------------------------------------------------


@pytest.mark.parametrize("pad", [True, False])
def test_crops_to_input_frames(pad):
    config = SsastConfig(**(SMALL | {"input_frames": 64}))
    longest = num_samples_of_frames(64)
    collate = Collater(config, "chunk_mask", pad=pad)
    starts = set()
    for epoch in range(20):
        clips = clips_of(10_700, longest, epoch=epoch)
        batch = collate(clips)
        assert batch.source.shape == (2, longest)
        assert batch.lengths is None
        assert torch.equal(batch.source[1], clips[1].samples)
        starts.add(start_of(batch.source[0], clips[0].samples))
        assert batch.mask.visible_ids.shape[1] + batch.mask.masked_ids.shape[1] == 32
    assert len(starts) > 10
    assert loss_of(Ssast(config), batch).isfinite()


def test_a_shorter_clip_is_masked_on_its_own_grid():
    config = SsastConfig(**(SMALL | {"input_frames": 128}))
    batch = Collater(config, "chunk_mask", pad=True)(clips_of(30_000, 9_000))
    assert batch.lengths.tolist() == [num_samples_of_frames(128), 9_000]
    own = num_frames(9_000) // 16 * 8
    both = torch.cat((batch.mask.visible_ids[1], batch.mask.masked_ids[1]))
    assert torch.equal(both[both >= 0].sort().values, torch.arange(own))
    visible = count_visible(own, config.random_mask_prob)
    assert batch.num_masked == 64 - count_visible(64, config.random_mask_prob) + own - visible
    assert loss_of(Ssast(config), batch).isfinite()


# -- empty batches and short clips --------------------------------------------------------------


@pytest.mark.parametrize("stats", ["batch", "fixed"])
@pytest.mark.parametrize("compute_fbank", [True, False])
@pytest.mark.parametrize("precision", ["float32", "bfloat16", "half"])
@pytest.mark.parametrize(
    ("kernel", "mask_type"), [((16, 16), "chunk_mask"), ((2, 128), "retain_spans")]
)
def test_empty_batch_has_zero_loss_and_zero_gradients(
    small_config, stats, compute_fbank, precision, kernel, mask_type
):
    config: MaeAstConfig = small_config(
        kernel,
        input_stats=stats,
        input_mean=-8.0,
        input_std=4.0,
        encoder_layerdrop=0.5,
        precision="float32" if precision == "half" else precision,
    )
    batch = Collater(config, mask_type, compute_fbank=compute_fbank)([])
    assert batch.ids.shape == (0,)
    assert batch.ids.dtype == torch.int64
    assert batch.num_masked == batch.num_samples == 0
    model = MaeAst(config).train()
    if precision == "half":
        model.half()
    mean, var = model.batch_norm.running_mean.clone(), model.batch_norm.running_var.clone()
    loss = loss_of(model, batch)
    loss.backward()
    assert loss.item() == 0
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert bool((parameter.grad == 0).all()), name
    assert torch.equal(model.batch_norm.running_mean, mean)
    assert torch.equal(model.batch_norm.running_var, var)


@pytest.mark.parametrize("mask_type", ["random_mask", "retain_spans"])
def test_clip_of_a_single_token_has_zero_loss(small_config, mask_type):
    config = small_config((2, 128))
    model = MaeAst(config)
    batch = Collater(config, mask_type)(clips_of(config.patch_shape.min_samples))
    assert batch.num_masked == 0
    assert loss_of(model, batch).item() == 0


def test_a_clip_shorter_than_one_patch_is_refused(small_config):
    collate = Collater(small_config((16, 16)), "random_mask")
    clips = [
        Clip.of(n, torch.zeros(length, dtype=torch.int16), 0, 0)
        for n, length in enumerate((16_000, 2_799))
    ]
    with pytest.raises(ValueError, match=r"2799 samples .* shorter than one patch \(2800\)"):
        collate(clips)
