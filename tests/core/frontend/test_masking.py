"""Masking strategies: number, distribution and reproducibility of the hidden patches."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from mae_ast.core.frontend.masking import (
    MASK_TYPES,
    MaskIds,
    check_mask,
    chunk_mask,
    count_visible,
    first_cover,
    hide_lowest,
    mask_strategy,
    pad_mask_ids,
    random_mask,
    random_mask_batched,
    retain_spans,
    scatter_tokens,
    structured_mask,
)

BY_RATIO = [random_mask, random_mask_batched, chunk_mask]
TEN_SECONDS = (62, 8)
FRAME_TOKENS = 499


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def hidden(mask: MaskIds, num_patches: int) -> Tensor:
    """Return (B, N) bool, True at the masked ids."""
    where = torch.zeros(len(mask.masked_ids), num_patches, dtype=torch.bool)
    return where.scatter_(1, mask.masked_ids, True)


def runs(is_hidden: Tensor) -> list[tuple[int, int]]:
    """Return (first, end) of each run of True in an (N,) tensor."""
    found, first = [], None
    for place, value in enumerate([*is_hidden.tolist(), False]):
        if value and first is None:
            first = place
        elif not value and first is not None:
            found.append((first, place))
            first = None
    return found


def assert_partition(mask: MaskIds, num_patches: int, num_masked: int) -> None:
    assert not mask.padded
    assert mask.visible_ids.dtype == mask.masked_ids.dtype == torch.int64
    assert mask.masked_ids.shape[1] == num_masked
    both = torch.cat((mask.visible_ids, mask.masked_ids), dim=1).sort(dim=1).values
    assert torch.equal(both, torch.arange(num_patches).expand(len(both), -1))
    for ids in (mask.visible_ids, mask.masked_ids):
        assert bool((ids.diff(dim=1) > 0).all()), "each half is in ascending order"


GRIDS = [TEN_SECONDS, (FRAME_TOKENS, 1), (13, 4), (1, 8), (3, 8), (2, 1), (1, 1), (1, 128)]


@pytest.mark.parametrize("strategy", BY_RATIO)
@pytest.mark.parametrize("ratio", [0.1, 0.5, 0.75, 0.95])
@pytest.mark.parametrize("grid", GRIDS, ids=str)
def test_visible_and_masked_are_a_partition(strategy, ratio, grid):
    num_patches = grid[0] * grid[1]
    num_masked = num_patches - max(1, int((1 - ratio) * num_patches))
    assert_partition(strategy(9, grid, ratio, seeded()), num_patches, num_masked)


def test_patch_counts_of_ten_seconds():
    mask = chunk_mask(1, TEN_SECONDS, 0.75, seeded())
    assert mask.visible_ids.shape == (1, 124)
    assert mask.masked_ids.shape == (1, 372)
    assert count_visible(10, 0.9999) == 1


@pytest.mark.parametrize("strategy", [random_mask, chunk_mask])
@pytest.mark.parametrize("ratio", [0.5, 0.75])
def test_each_patch_is_hidden_equally_often(strategy, ratio):
    generator = seeded()
    times = torch.zeros(496)
    for _ in range(10):
        times += hidden(strategy(400, TEN_SECONDS, ratio, generator), 496).sum(0)
    rate = times / 4_000
    assert rate.min() > ratio - 0.05
    assert rate.max() < ratio + 0.05
    corners = rate.view(TEN_SECONDS)[[0, 0, -1, -1], [0, -1, 0, -1]]
    assert bool(((corners - ratio).abs() < 0.05).all())


def adjacent_hidden_rates(strategy, ratio: float) -> tuple[float, float]:
    """Return the rates at which the patch after (above) a hidden one is hidden too."""
    where = hidden(strategy(300, TEN_SECONDS, ratio, seeded()), 496).view(300, *TEN_SECONDS)
    after = (where[:, 1:] & where[:, :-1]).sum() / where[:, :-1].sum()
    above = (where[:, :, 1:] & where[:, :, :-1]).sum() / where[:, :, :-1].sum()
    return float(after), float(above)


@pytest.mark.parametrize("ratio", [0.25, 0.5])
def test_chunks_hide_adjacent_patches_together(ratio):
    for random in adjacent_hidden_rates(random_mask, ratio):
        assert random == pytest.approx(ratio, abs=0.02)
    for chunk in adjacent_hidden_rates(chunk_mask, ratio):
        assert chunk > 0.75


def test_chunks_are_squares_of_3_to_5_patches():
    grid = (60, 60)
    mask = chunk_mask(2_000, grid, 0.0025, seeded())
    assert mask.masked_ids.shape == (2_000, 9)  # no more than the smallest chunk holds
    along_time, along_mel = mask.masked_ids // grid[1], mask.masked_ids % grid[1]
    extent_time = along_time.amax(1) - along_time.amin(1) + 1
    extent_mel = along_mel.amax(1) - along_mel.amin(1) + 1
    rate = torch.bincount(torch.maximum(extent_time, extent_mel)).float() / 2_000
    # All sizes are equally likely, except that chunks cut by an edge need a second chunk.
    assert bool(((rate[3:6] > 0.25) & (rate[3:6] < 1 / 3 + 0.03)).all())
    assert rate[3:6].sum() > 0.85


def test_clips_differ_in_random_masks_and_chunks():
    for strategy in (random_mask, chunk_mask):
        masked = strategy(8, TEN_SECONDS, 0.75, seeded()).masked_ids
        assert len({tuple(row) for row in masked.tolist()}) == 8


def test_batched_random_masks_are_the_same_for_all_clips():
    mask = random_mask_batched(8, TEN_SECONDS, 0.75, seeded())
    assert mask.masked_ids.shape == (8, 372)
    assert mask.visible_ids.shape == (8, 124)
    assert bool((mask.masked_ids == mask.masked_ids[0]).all())
    assert bool((mask.visible_ids == mask.visible_ids[0]).all())


@pytest.mark.parametrize(
    ("density", "num_tokens", "num_masked"),
    [(1.45, 499, 382), (0.74, 499, 261), (1.45, 100, 77), (0.1, 499, 47), (9.0, 40, 39)],
)
def test_density_determines_the_number_of_hidden_tokens(density, num_tokens, num_masked):
    expected = min(num_tokens - 1, round(num_tokens * (1 - math.exp(-density))))
    assert num_masked == expected
    mask = retain_spans(20, (num_tokens, 1), density, seeded())
    assert_partition(mask, num_tokens, num_masked)


def test_span_densities_of_the_presets():
    for density, percent in [(1.45, 76.5), (0.74, 52.3)]:
        masked = retain_spans(1, (FRAME_TOKENS, 1), density, seeded()).masked_ids.shape[1]
        assert 100 * masked / FRAME_TOKENS == pytest.approx(percent, abs=0.1)


@pytest.mark.parametrize("span_length", [4, 10])
@pytest.mark.parametrize("density", [0.74, 1.45])
def test_all_spans_are_whole_except_the_last_and_those_at_the_edges(span_length, density):
    mask = retain_spans(300, (FRAME_TOKENS, 1), density, seeded(), span_length=span_length)
    for row in hidden(mask, FRAME_TOKENS):
        cut = [
            (first, end)
            for first, end in runs(row)
            if end - first < span_length and first > 0 and end < FRAME_TOKENS
        ]
        assert len(cut) <= 1


@pytest.mark.parametrize("density", [0.74, 1.45])
def test_spans_are_much_longer_than_random_runs(density):
    def mean_run(mask: MaskIds) -> float:
        found = [end - first for row in hidden(mask, FRAME_TOKENS) for first, end in runs(row)]
        return sum(found) / len(found)

    spans = retain_spans(100, (FRAME_TOKENS, 1), density, seeded())
    ratio = spans.masked_ids.shape[1] / FRAME_TOKENS
    random = random_mask(100, (FRAME_TOKENS, 1), ratio, seeded())
    assert mean_run(spans) > 5 * mean_run(random)
    assert mean_run(spans) > 10


@pytest.mark.slow
def test_each_token_is_in_a_span_equally_often():
    generator = seeded()
    times = torch.zeros(FRAME_TOKENS)
    for _ in range(20):
        mask = retain_spans(200, (FRAME_TOKENS, 1), 1.45, generator)
        times += hidden(mask, FRAME_TOKENS).sum(0)
    rate = times / 4_000
    assert rate.min() > 0.765 - 0.05
    assert rate.max() < 0.765 + 0.05


@pytest.mark.parametrize("num_tokens", [1, 2, 3, 9])
def test_spans_longer_than_the_clip(num_tokens):
    num_masked = min(num_tokens - 1, round(num_tokens * (1 - math.exp(-1.45))))
    mask = retain_spans(50, (num_tokens, 1), 1.45, seeded())
    assert_partition(mask, num_tokens, num_masked)


def test_spans_need_frame_tokens():
    with pytest.raises(ValueError, match="8 patches along mel"):
        retain_spans(1, TEN_SECONDS, 1.45, seeded())


def test_mask_strategy_by_name():
    for name, strategy in MASK_TYPES.items():
        grid, ratio = (FRAME_TOKENS, 1), 0.7
        fields = {"span_length": 4} if name == "retain_spans" else {}
        expected = strategy(2, grid, ratio, seeded(), **fields)
        ours = mask_strategy(name, 4)(2, grid, ratio, generator=seeded())
        assert torch.equal(ours.masked_ids, expected.masked_ids), name


@pytest.mark.parametrize("name", MASK_TYPES)
def test_masks_depend_on_the_generator_only(name):
    grid, ratio = ((499, 1), 1.45) if name == "retain_spans" else (TEN_SECONDS, 0.75)
    torch.manual_seed(1)
    first = MASK_TYPES[name](3, grid, ratio, seeded(5))
    torch.manual_seed(2)
    again = MASK_TYPES[name](3, grid, ratio, seeded(5))
    other = MASK_TYPES[name](3, grid, ratio, seeded(6))
    assert torch.equal(first.masked_ids, again.masked_ids)
    assert torch.equal(first.visible_ids, again.visible_ids)
    assert not torch.equal(first.masked_ids, other.masked_ids)


@pytest.mark.parametrize("name", MASK_TYPES)
def test_the_default_generator_is_not_used(name):
    grid, ratio = ((499, 1), 1.45) if name == "retain_spans" else (TEN_SECONDS, 0.75)
    before = torch.get_rng_state()
    MASK_TYPES[name](3, grid, ratio, seeded())
    assert torch.equal(torch.get_rng_state(), before)


class CountOperations(TorchDispatchMode):
    """Context that counts the operations on tensors."""

    count = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        self.count += 1
        return function(*args, **(kwargs or {}))


@pytest.mark.parametrize(("name", "limit"), [("random_mask", 20), ("chunk_mask", 60)])
def test_the_number_of_operations_depends_on_no_size(name, limit):
    """There is no loop over clips, patches or blocks."""
    counts = set()
    for batch, grid in ((1, (6, 8)), (1, TEN_SECONDS), (64, TEN_SECONDS), (2, (748, 8))):
        with CountOperations() as counter:
            MASK_TYPES[name](batch, grid, 0.75, seeded())
        counts.add(counter.count)
    assert len(counts) == 1
    assert counts.pop() < limit


@pytest.mark.parametrize("num_blocks", [1, 20, 40_000])
def test_first_cover_equals_a_loop_over_blocks(num_blocks):
    """Compare with a loop over blocks whose corners come from the same draws."""
    grid, sides = (40, 3), (4, 2)
    generator = seeded(7)
    corners = [
        [math.floor(draw * (size + side - 1)) + 1 - side for draw in draws]
        for size, side in zip(grid, sides, strict=True)
        for draws in torch.rand(1, num_blocks, generator=generator).tolist()
    ]
    expected = torch.full(grid, num_blocks)
    for number, (time_, mel) in reversed(list(enumerate(zip(*corners, strict=True)))):
        end_time, end_mel = time_ + sides[0], mel + sides[1]
        expected[max(time_, 0) : end_time, max(mel, 0) : end_mel] = number
    found = first_cover(grid, *(torch.tensor([[side]]) for side in sides), num_blocks, seeded(7))
    assert torch.equal(found[0].long(), expected)
    assert num_blocks > 1 or (expected == num_blocks).any()


def test_hide_lowest():
    scores = torch.tensor([[3.0, 1.0, 2.0, 0.0], [0.0, 1.0, 2.0, 3.0]])
    mask = hide_lowest(scores, 2)
    assert mask.masked_ids.tolist() == [[1, 3], [0, 1]]
    assert mask.visible_ids.tolist() == [[0, 2], [2, 3]]


def test_hide_lowest_is_exact_with_ties():
    assert_partition(hide_lowest(torch.zeros(3, 100), 37), 100, 37)


def test_masks_of_equal_clips_are_stacked_without_padding():
    masks = [random_mask(1, (6, 8), 0.75, seeded(seed)) for seed in range(3)]
    stacked = pad_mask_ids(masks)
    assert not stacked.padded
    for row, mask in enumerate(masks):
        assert torch.equal(stacked.visible_ids[row], mask.visible_ids[0])
        assert torch.equal(stacked.masked_ids[row], mask.masked_ids[0])


def test_masks_of_unequal_clips_are_padded_with_minus_one():
    masks = [random_mask(1, (columns, 8), 0.75, seeded()) for columns in (6, 2, 4)]
    stacked = pad_mask_ids(masks)
    assert stacked.padded
    assert stacked.visible_ids.shape == (3, 12)
    assert stacked.masked_ids.shape == (3, 36)
    for row, mask in enumerate(masks):
        for padded, own in (
            (stacked.visible_ids[row], mask.visible_ids[0]),
            (stacked.masked_ids[row], mask.masked_ids[0]),
        ):
            assert torch.equal(padded[: len(own)], own)
            assert bool((padded[len(own) :] == -1).all())


def test_masks_that_differ_in_the_visible_count_only_are_padded():
    one = MaskIds(torch.tensor([[0]]), torch.tensor([[1, 2]]))
    other = MaskIds(torch.tensor([[0, 3]]), torch.tensor([[1, 2]]))
    assert pad_mask_ids([one, other]).padded


@pytest.mark.parametrize(
    ("mask_type", "ratio", "per_column", "message"),
    [
        ("chunk_patch", 0.75, 8, "'chunk_patch' is unknown; .*random_mask, .*chunk_mask"),
        ("random_mask", 0, 8, "random_mask_prob 0 .*between 0 and 1"),
        ("chunk_mask", 1, 8, "random_mask_prob 1 .*between 0 and 1"),
        ("random_mask_batched", -0.1, 8, "random_mask_prob -0.1 "),
        ("random_mask", 1.45, 1, "random_mask_prob 1.45 "),
        ("random_mask", float("nan"), 1, "random_mask_prob nan "),
        ("retain_spans", 0.75, 8, "ast_kernel_size_chan=128.* 8 patches"),
        ("retain_spans", 0, 1, "random_mask_prob 0 .*between 0 and 10"),
        ("retain_spans", 10, 1, "random_mask_prob 10 .*between 0 and 10"),
    ],
)
def test_check_mask_refuses(mask_type, ratio, per_column, message):
    with pytest.raises(ValueError, match=message):
        check_mask(mask_type, ratio, per_column)


@pytest.mark.parametrize(
    ("mask_type", "ratio", "per_column"),
    [
        ("random_mask", 0.75, 8),
        ("chunk_mask", 0.01, 1),
        ("random_mask_batched", 0.99, 8),
        ("retain_spans", 1.45, 1),
    ],
)
def test_check_mask_accepts(mask_type, ratio, per_column):
    check_mask(mask_type, ratio, per_column)


# Structured masks.


@pytest.mark.parametrize(
    ("grid", "ratios", "kept"),
    [
        ((64, 8), (0.3, 0.3), (44, 5)),  # as published for AudioSet
        (TEN_SECONDS, (0.2, 0.0), (49, 8)),
        ((7, 8), (0.0, 0.5), (7, 4)),
        ((5, 1), (0.5, 0.9), (2, 1)),
        ((1, 8), (0.9, 0.0), (1, 8)),
    ],
    ids=str,
)
def test_structured_masks_hide_whole_time_steps_and_mel_rows(grid, ratios, kept):
    mask = structured_mask(9, grid, *ratios, seeded())
    num_patches = grid[0] * grid[1]
    assert_partition(mask, num_patches, num_patches - kept[0] * kept[1])
    visible = ~hidden(mask, num_patches).view(9, *grid)
    for clip in visible:
        columns, rows = clip.any(1), clip.any(0)
        assert (int(columns.sum()), int(rows.sum())) == kept
        assert torch.equal(clip, columns[:, None] & rows[None, :])


def test_structured_masks_are_uniform_and_reproducible():
    mask = structured_mask(4_000, (6, 4), 0.3, 0.5, seeded())
    visible = ~hidden(mask, 24).view(-1, 6, 4)
    rates = visible.float().mean(0)
    assert rates.mean().item() == pytest.approx(4 / 6 * 2 / 4)
    assert (rates - rates.mean()).abs().max() < 0.03
    assert len(visible.flatten(1).unique(dim=0)) == 15 * 6  # all ways to choose 4 of 6 and 2 of 4
    again = structured_mask(4_000, (6, 4), 0.3, 0.5, seeded())
    assert torch.equal(again.visible_ids, mask.visible_ids)


def test_scatter_tokens_puts_tokens_back_in_position():
    tokens = torch.arange(1.0, 13).view(2, 2, 3)
    mask = MaskIds(torch.tensor([[1, 3], [0, -1]]), torch.tensor([[0, 2], [1, -1]]), padded=True)
    everything, padding_mask = scatter_tokens(tokens, torch.full((3,), -9.0), mask, 4)
    assert everything[0].tolist() == [[-9] * 3, [1, 2, 3], [-9] * 3, [4, 5, 6]]
    assert everything[1, :2].tolist() == [[7, 8, 9], [-9] * 3]
    assert padding_mask.tolist() == [[False] * 4, [False, False, True, True]]
