"""The losses equal a slow implementation, clip by clip and patch by patch."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from mae_ast.core.models.losses import info_nce_loss, reconstruction_loss

B, M, P = 3, 9, 20


def slow_reconstruction(prediction: Tensor, target: Tensor, counts: list[int]) -> float:
    total = 0.0
    for clip, count in enumerate(counts):
        for i in range(count):
            error = [
                (p - t) ** 2 for p, t in zip(prediction[clip, i], target[clip, i], strict=True)
            ]
            total += float(sum(error)) / len(error)
    return total


def slow_info_nce(prediction: Tensor, target: Tensor, counts: list[int]) -> tuple[float, int]:
    total, correct = 0.0, 0
    for clip, count in enumerate(counts):
        for i in range(count):
            scores = [float(prediction[clip, i].double() @ target[clip, j]) for j in range(count)]
            largest = max(scores)
            log_sum = largest + math.log(sum(math.exp(score - largest) for score in scores))
            total += log_sum - scores[i]
            correct += scores.index(largest) == i
    return total, correct


def draw() -> tuple[Tensor, Tensor]:
    """Draw targets, and predictions that are correct more often than by chance."""
    target = 0.5 * torch.randn(B, M, P)
    return 0.5 * target + 0.5 * torch.randn(B, M, P), target


def valid_first(counts: list[int]) -> Tensor:
    return torch.arange(M) < torch.tensor(counts)[:, None]


def garbage_in_padding(values: Tensor, counts: list[int]) -> Tensor:
    return torch.where(valid_first(counts).unsqueeze(2), values, 1e3 * torch.randn_like(values))


@pytest.mark.parametrize(
    ("counts", "pass_valid"),
    [([M, M, M], False), ([M, M, M], True), ([M, 1, 4], True), ([2, M, 0], True)],
)
def test_losses_equal_a_slow_implementation(counts, pass_valid):
    valid = valid_first(counts) if pass_valid else None
    prediction, target = (garbage_in_padding(values, counts) for values in draw())
    mse = reconstruction_loss(prediction, target, valid)
    assert mse.item() == pytest.approx(slow_reconstruction(prediction, target, counts), rel=1e-5)
    nce = info_nce_loss(prediction, target, valid)
    expected, correct = slow_info_nce(prediction, target.double(), counts)
    assert nce.loss.item() == pytest.approx(expected, rel=1e-5)
    assert nce.num_correct.item() == correct
    assert 0 < correct < sum(counts)


def test_info_nce_softmax_is_over_targets():
    target = torch.tensor([[[1.0, 0.0], [1.0, 0.0], [0.0, 1.0]]])
    prediction = torch.tensor([[[5.0, 0.0], [0.0, 0.0], [0.0, 0.0]]])
    over_targets = sum(
        math.log(sum(math.exp(score) for score in scores)) - own
        for scores, own in [((5, 5, 0), 5), ((0, 0, 0), 0), ((0, 0, 0), 0)]
    )
    assert info_nce_loss(prediction, target).loss.item() == pytest.approx(over_targets, rel=1e-5)


def test_perfect_prediction_has_zero_loss():
    target = 10 * torch.eye(M, P).expand(B, M, P)
    assert reconstruction_loss(target, target).item() == 0
    nce = info_nce_loss(target, target)
    assert nce.loss.item() == pytest.approx(0, abs=1e-4)
    assert nce.num_correct.item() == B * M


def test_padding_has_zero_gradient_and_does_not_change_the_rest():
    counts = [M, 1, 4]
    valid = valid_first(counts)
    prediction, target = (garbage_in_padding(values, counts) for values in draw())
    prediction.requires_grad_()
    (info_nce_loss(prediction, target, valid).loss).backward()
    gradient = prediction.grad
    assert not gradient[~valid].any()
    for clip, count in enumerate(counts):
        alone = prediction.detach()[clip : clip + 1, :count].clone().requires_grad_()
        info_nce_loss(alone, target[clip : clip + 1, :count]).loss.backward()
        assert_close(gradient[clip, :count], alone.grad[0], rtol=1e-4, atol=1e-6)


def test_empty_batch_has_zero_loss_and_zero_gradient():
    prediction, target = draw()
    prediction.requires_grad_()
    valid = torch.zeros(B, M, dtype=torch.bool)
    nce = info_nce_loss(prediction, target, valid)
    loss = reconstruction_loss(prediction, target, valid) + nce.loss
    loss.backward()
    assert loss.item() == 0
    assert nce.num_correct.item() == 0
    assert prediction.grad is not None
    assert not prediction.grad.any()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_predictions_are_cast_to_float32(dtype):
    prediction, target = draw()
    prediction = 200 * prediction  # squares and products that half precision cannot hold
    valid = valid_first([M, 5, M])
    exact = prediction.to(dtype).float()
    for given in (target, target.to(dtype)):
        mse = reconstruction_loss(prediction.to(dtype), given, valid)
        nce = info_nce_loss(prediction.to(dtype), given, valid)
        assert mse.dtype == nce.loss.dtype == nce.num_correct.dtype == torch.float32
        assert torch.equal(mse, reconstruction_loss(exact, given.float(), valid))
        assert torch.equal(nce.loss, info_nce_loss(exact, given.float(), valid).loss)


def test_info_nce_is_float32_under_autocast():
    prediction, target = draw()
    expected = info_nce_loss(prediction, target).loss
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = info_nce_loss(prediction, target).loss
    assert loss.dtype == torch.float32
    assert torch.equal(loss, expected)


def test_no_masked_patches_give_zero_loss():
    empty = torch.zeros(B, 0, P)
    assert reconstruction_loss(empty, empty).item() == 0
    assert info_nce_loss(empty, empty).loss.item() == 0
