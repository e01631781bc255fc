"""The input normalisation equals ``nn.BatchNorm2d(1, affine=False) * 0.5`` on valid frames."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.testing import assert_close

from mae_ast.core.frontend import input_norm
from mae_ast.core.frontend.input_norm import InputNorm


def spectrograms(*shape: int) -> torch.Tensor:
    """Draw values like log-mel: far from mean 0 and std 1."""
    return torch.randn(*shape) * 4.2 - 6.5


def assert_same_statistics(norm: InputNorm, reference: nn.BatchNorm2d) -> None:
    assert_close(norm.running_mean, reference.running_mean, rtol=1e-5, atol=1e-5)
    assert_close(norm.running_var, reference.running_var, rtol=1e-5, atol=1e-5)
    assert norm.num_batches_tracked == reference.num_batches_tracked


def test_equals_batch_norm_over_steps_and_in_eval():
    norm, reference = InputNorm(), nn.BatchNorm2d(1, affine=False)
    for step, shape in enumerate([(4, 50, 128), (1, 200, 128), (7, 33, 128), (2, 1, 128)]):
        x = spectrograms(*shape) + step
        assert_close(norm(x), reference(x.unsqueeze(1)).squeeze(1) * 0.5, rtol=0, atol=1e-5)
        assert_same_statistics(norm, reference)
    norm.eval()
    reference.eval()
    x = spectrograms(3, 40, 128)
    assert_close(norm(x), reference(x.unsqueeze(1)).squeeze(1) * 0.5, rtol=0, atol=1e-5)
    assert_same_statistics(norm, reference)


def test_state_dict_is_compatible_with_batch_norm():
    norm, reference = InputNorm(), nn.BatchNorm2d(1, affine=False)
    norm.load_state_dict(reference.state_dict())
    reference.load_state_dict(norm.state_dict())
    assert norm.state_dict().keys() == reference.state_dict().keys()


def test_training_batch_has_mean_0_and_std_one_half():
    y = InputNorm()(spectrograms(4, 100, 128))
    assert_close(y.mean(), torch.tensor(0.0), rtol=0, atol=1e-5)
    assert_close(y.std(), torch.tensor(0.5), rtol=0, atol=1e-4)


def test_padded_frames_do_not_count():
    clips = [spectrograms(1, frames, 128) + frames for frames in (60, 17, 1)]
    valid = torch.cat(clips, dim=1)
    padded = torch.full((3, 60, 128), 1e4)
    for row, clip in zip(padded, clips, strict=True):
        row[: clip.shape[1]] = clip[0]
    norm, alone = InputNorm(), InputNorm()
    y = norm(padded, torch.tensor([60, 17, 1]))
    expected = alone(valid)[0].split([60, 17, 1])
    for row, clip in zip(y, expected, strict=True):
        assert_close(row[: len(clip)], clip, rtol=0, atol=1e-4)
    assert_close(norm.running_mean, alone.running_mean, rtol=1e-5, atol=0)
    assert_close(norm.running_var, alone.running_var, rtol=1e-5, atol=0)


def test_nan_in_padding_does_not_spread():
    x = spectrograms(2, 10, 128)
    x[1, 5:] = float("nan")
    norm = InputNorm()
    y = norm(x, torch.tensor([10, 5]))
    assert bool(torch.isfinite(y[0]).all() and torch.isfinite(y[1, :5]).all())
    assert bool(torch.isfinite(norm.running_var).all())


def test_all_frames_valid_is_the_same_as_no_lengths():
    x = spectrograms(3, 20, 128)
    one, other = InputNorm(), InputNorm()
    assert_close(one(x, torch.tensor([20, 20, 20])), other(x), rtol=0, atol=1e-5)
    assert_close(one.running_var, other.running_var, rtol=1e-6, atol=0)


def test_fixed_statistics_stay_and_are_used_in_training():
    norm = InputNorm(update=False, mean=-6.5, std=4.2)
    before = {key: value.clone() for key, value in norm.state_dict().items()}
    x = spectrograms(2, 30, 128) * 3
    y = norm(x, torch.tensor([30, 10]))
    assert_close(y, (x + 6.5) / 4.2 * 0.5, rtol=0, atol=1e-4)
    for key, value in norm.state_dict().items():
        assert torch.equal(value, before[key]), key


def test_eval_uses_and_keeps_the_statistics():
    norm = InputNorm(mean=-6.5, std=4.2).eval()
    x = spectrograms(2, 30, 128)
    assert_close(norm(x), (x + 6.5) / 4.2 * 0.5, rtol=0, atol=1e-4)
    assert norm.running_mean.item() == pytest.approx(-6.5)
    assert norm.running_var.item() == pytest.approx(4.2**2)


def test_empty_batch_does_not_change_the_statistics():
    norm = InputNorm(mean=-6.5, std=4.2)
    mean, var = norm.running_mean.clone(), norm.running_var.clone()
    silence = torch.full((1, 16, 128), -15.9)
    y = norm(silence, torch.tensor([0]))
    assert torch.equal(norm.running_mean, mean)
    assert torch.equal(norm.running_var, var)
    assert_close(y, (silence + 6.5) / 4.2 * 0.5, rtol=0, atol=1e-4)


def test_an_empty_batch_is_not_counted():
    norm = InputNorm()
    norm(spectrograms(1, 16, 128), torch.tensor([0]))
    assert norm.num_batches_tracked == 0


@pytest.mark.parametrize("count", [3, 64])
def test_each_rank_tracks_the_batches_of_all_ranks(monkeypatch, count):
    """Every third rank has run out of clips."""
    frames = [(20, 0, 11)[n % 3] for n in range(count)]
    batches = [
        (spectrograms(2, 20, 128) + n % 7, torch.full((2,), frames[n])) for n in range(count)
    ]
    gathered = []
    monkeypatch.setattr(input_norm, "_all_gather", lambda row: gathered.append(row) or row[None])
    alone = InputNorm()
    expected = [alone(*batch) for batch in batches]

    monkeypatch.setattr(input_norm, "_all_gather", lambda row: torch.stack(gathered))
    for batch, own in zip(batches, expected, strict=True):
        rank = InputNorm()
        normalised = rank(*batch)
        if batch[1][0]:  # normalised by its own statistics
            assert torch.equal(normalised, own)
        assert_close(rank.running_mean, alone.running_mean, rtol=1e-6, atol=0)
        assert_close(rank.running_var, alone.running_var, rtol=1e-6, atol=0)
        assert rank.num_batches_tracked == alone.num_batches_tracked


def test_number_of_operations_does_not_grow_with_ranks(monkeypatch):
    """Each operation is a kernel launch on a GPU, in every training step."""

    def num_operations(count: int) -> int:
        monkeypatch.setattr(input_norm, "_all_gather", lambda row: row.expand(count, -1))
        norm, x = InputNorm(), spectrograms(1, 20, 128)
        with torch.autograd.profiler.profile() as profile:
            norm(x)
        return len(profile.function_events)

    assert num_operations(64) == num_operations(2)


@pytest.mark.parametrize("change", [nn.Module.half, nn.Module.bfloat16, nn.Module.double])
def test_statistics_stay_float32_when_the_model_is_cast(change):
    norm = InputNorm(mean=-6.4321, std=4.2)
    before = {key: value.clone() for key, value in norm.state_dict().items()}
    change(nn.Sequential(norm))
    for key, value in norm.state_dict().items():
        assert value.dtype == before[key].dtype, key
        assert torch.equal(value, before[key]), key
    x = spectrograms(1, 10, 128)
    assert norm.train()(x).dtype == torch.float32


@pytest.mark.parametrize("std", [0.0, -1.0, float("nan")])
def test_std_that_is_not_positive_is_refused(std):
    with pytest.raises(ValueError, match=f"input_std={std}; must be positive"):
        InputNorm(std=std)
