"""Augmentation: distribution of the draws, and their effect on waveforms and log-mel."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from mae_ast.core.frontend.augment import (
    Augmentation,
    DropConfig,
    StructuredDrop,
    add_noise,
    mask_bands,
    mix,
    roll_and_scale,
)
from mae_ast.core.frontend.collate import clip_generator
from mae_ast.core.frontend.patches import PatchShape


def draws(augmentation: Augmentation, num_clips: int, count: int) -> list[tuple[int, float] | None]:
    return [
        augmentation.draw_mixing(num_clips, clip_generator(1, 1, clip)) for clip in range(count)
    ]


def test_mixup_probability_partner_and_weight() -> None:
    drawn = draws(Augmentation(mixup=0.4, mixup_alpha=10.0), 5, 4_000)
    mixed = [each for each in drawn if each is not None]
    assert len(mixed) / len(drawn) == pytest.approx(0.4, abs=0.03)
    partners = np.bincount([partner for partner, _ in mixed], minlength=5)
    np.testing.assert_allclose(partners / len(mixed), 0.2, atol=0.04)
    weights = np.array([weight for _, weight in mixed])
    # Beta(10, 10) has mean 1/2 and variance 1 / (4 * 21).
    assert weights.mean() == pytest.approx(0.5, abs=0.01)
    assert weights.std() == pytest.approx((1 / 84) ** 0.5, abs=0.01)
    assert abs(np.corrcoef([p for p, _ in mixed], weights)[0, 1]) < 0.1

    wide = [d[1] for d in draws(Augmentation(mixup=1.0, mixup_alpha=0.5), 5, 2_000) if d]
    assert np.std(wide) == pytest.approx(8**-0.5, abs=0.02)
    assert not any(draws(Augmentation(), 5, 50))


def test_same_key_gives_the_same_augmentation() -> None:
    one = Augmentation(mixup=0.5, shift_samples=100, noise_snr_db=10, freq_mask=30, time_mask=9)
    samples = (torch.randn(4_000) * 3_000).to(torch.int16)
    first, again = (one.augment(samples, clip_generator(1, 2, 3)) for _ in range(2))
    assert torch.equal(first, again)
    assert not torch.equal(first, one.augment(samples, clip_generator(1, 3, 3)))
    assert torch.equal(
        one.draw_hidden(50, clip_generator(1, 2, 3)), one.draw_hidden(50, clip_generator(1, 2, 3))
    )


def test_mix_weights_pads_and_crops() -> None:
    first = torch.tensor([32767, -32768, 1000, 7], dtype=torch.int16)
    assert torch.equal(mix(first, first, 0.3), first)
    shorter = torch.tensor([-1000, 1000], dtype=torch.int16)
    mixed = mix(first, shorter, 0.5)
    assert mixed.tolist() == [15884, -15884, 500, 4]
    longer = torch.zeros(9, dtype=torch.int16)
    assert len(mix(first, longer, 0.5)) == 4
    assert mixed.dtype == torch.int16


def test_shifts_are_circular_and_cover_all_offsets() -> None:
    samples = torch.arange(50, dtype=torch.int16)
    augmentation = Augmentation(shift_samples=3)
    firsts = [int(augmentation.augment(samples, clip_generator(0, 0, n))[0]) for n in range(700)]
    counts = {first: firsts.count(first) for first in set(firsts)}
    assert set(counts) == {47, 48, 49, 0, 1, 2, 3}
    assert min(counts.values()) > 60
    shifted = augmentation.augment(samples, clip_generator(0, 0, 0))
    assert sorted(shifted.tolist()) == list(range(50))


def test_noise_has_the_requested_snr() -> None:
    wave = (torch.sin(torch.arange(40_000) / 7) * 8_000).to(torch.int16)
    noise = (add_noise(wave, 20.0, clip_generator(0, 0, 0)) - wave).double()
    ratio = 10 * torch.log10(wave.double().square().mean() / noise.square().mean())
    assert float(ratio) == pytest.approx(20, abs=0.2)
    loud = torch.full((100,), 32767, dtype=torch.int16)
    noisy = add_noise(loud, 0.0, clip_generator(0, 0, 0))
    assert noisy.max() == 32767
    assert (noisy >= 0).float().mean() > 0.7  # clipped, not wrapped around


def test_specaugment_widths_and_positions_cover_their_ranges() -> None:
    augmentation = Augmentation(freq_mask=24, time_mask=200)
    drawn = torch.stack(
        [augmentation.draw_hidden(60, clip_generator(0, 0, n)) for n in range(3000)]
    )
    width = drawn[..., 1] - drawn[..., 0]
    assert set(width[:, 0].tolist()) == set(range(24))
    assert set(width[:, 1].tolist()) == set(range(60))  # no wider than the clip
    assert drawn.min() == 0
    assert drawn[:, 0, 1].max() == 128
    assert drawn[:, 1, 1].max() == 60
    assert width[:, 0].double().mean() == pytest.approx(11.5, abs=0.5)
    nothing = Augmentation(time_mask=5).draw_hidden(60, clip_generator(0, 0, 0))
    assert nothing[0].tolist() == [0, 0]


def test_mask_bands_fills_exactly_the_drawn_bands() -> None:
    log_mel = torch.randn(3, 20, 128)
    hidden = torch.tensor([[[5, 9], [0, 2]], [[0, 0], [19, 20]], [[0, 0], [0, 0]]])
    found = mask_bands(log_mel, hidden, torch.tensor([-7.0]))
    expected = log_mel.clone()
    for clip, ((low, high), (begin, end)) in enumerate(hidden.tolist()):
        expected[clip, :, low:high] = -7
        expected[clip, begin:end] = -7
    assert torch.equal(found, expected)


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"mixup": 1.5}, "mixup=1.5"),
        ({"mixup_alpha": 0.0}, "mixup_alpha=0"),
        ({"freq_mask": 129}, "freq_mask=129"),
        ({"time_mask": -1}, "time_mask=-1"),
        ({"shift_samples": -1}, "shift_samples=-1"),
    ],
)
def test_invalid_values_are_refused(values: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        Augmentation(**values)


def test_roll_and_scale_is_a_shift_and_a_factor() -> None:
    samples = 20 * torch.arange(1, 1_001).to(torch.int16)
    begins, scales = [], []
    for clip in range(600):
        augmented = roll_and_scale(samples, clip_generator(1, 1, clip))
        assert augmented.dtype == torch.int16
        assert len(augmented) == len(samples)
        begin = int(augmented.argmax()) + 1 - len(samples)  # the maximum was the last sample
        scale = float(augmented.max()) / 20_000
        expected = (samples.roll(begin).float() * scale).round()
        assert (augmented - expected).abs().max() <= 1
        begins.append(begin % len(samples))
        scales.append(scale)
    assert np.histogram(begins, 4, (0, 1_000))[0].min() > 110
    # 0.5 + Beta(10, 10) has mean 1 and variance 1 / (4 * 21).
    assert np.mean(scales) == pytest.approx(1.0, abs=0.02)
    assert np.std(scales) == pytest.approx((1 / 84) ** 0.5, abs=0.01)
    loud = torch.full((50,), -32768, dtype=torch.int16)
    assert roll_and_scale(loud, clip_generator(1, 1, int(np.argmax(scales)))).min() == -32768
    augmented = [
        Augmentation(roll_mag=True).augment(samples, clip_generator(1, 1, 7)) for _ in "ab"
    ]
    assert torch.equal(*augmented)
    assert not torch.equal(augmented[0], samples)


def test_structured_drop_keeps_the_requested_fraction() -> None:
    drop = StructuredDrop(PatchShape(16, 16), None, DropConfig(0.3, 0.5))
    ids = drop.draw_visible(6 * 16 + 3, clip_generator(1, 1, 1))
    assert len(ids) == 4 * 4
    assert ids.max() < 6 * 8
    assert torch.equal(ids, drop.draw_visible(6 * 16 + 3, clip_generator(1, 1, 1)))
    padded = StructuredDrop(PatchShape(16, 16), 1024, DropConfig(0.3, 0.3))
    assert len(padded.draw_visible(99, clip_generator(1, 1, 1))) == 44 * 5
    with pytest.raises(ValueError, match=r"drop_mel=1; .* from 0 to below 1"):
        DropConfig(drop_mel=1)
