"""The s3prl upstream of every system: number of vectors, their values, gradients."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.testing import assert_close

import mae_ast
from mae_ast.core.models.registry import system_name
from mae_ast.finetune.initialize import finetuning_config
from mae_ast.hub.load import hub_class
from tests.core.vits import with_random_weights
from tests.sounds import speech_like
from tests.systems.cases import Case, some_cases

pytest.importorskip("s3prl.upstream.interfaces", reason="needs s3prl")

KINDS = {
    "as pretrained": lambda config: config,
    "fine-tuned": lambda config: finetuning_config(config, overlap=True, frames=128),
}
kinds = pytest.mark.parametrize("kind", KINDS)


@pytest.fixture
def expert_of(tmp_path: Path) -> Callable[..., Any]:
    """``expert_of(case, kind, layout)``: the upstream of a model that is saved in ``tmp_path``."""
    from mae_ast.superb.expert import TIME_STEPS, UpstreamExpert

    def build(case: Case, kind: str = "as pretrained", layout: str = TIME_STEPS) -> Any:
        config = KINDS[kind](case.config(input_stats="fixed"))
        model = with_random_weights(hub_class(system_name(config))(config))
        model.save_pretrained(tmp_path)
        return UpstreamExpert(tmp_path, layout)

    return build


@some_cases
@kinds
@pytest.mark.parametrize("layout", ["time_steps", "tokens"])
def test_number_of_vectors_is_as_s3prl_expects(
    case: Case, kind: str, layout: str, expert_of: Callable[..., Any]
) -> None:
    shape = KINDS[kind](case.config()).patch_shape
    per_step = 1 if layout == "time_steps" else shape.per_column
    rate, rest = divmod(160 * shape.time_stride, per_step)
    if rest:
        with pytest.raises(ValueError, match=r"tokens per 1600 samples .* 'time_steps' only"):
            expert_of(case, kind, layout)
        return
    expert, width = expert_of(case, kind, layout).eval(), 24 * shape.per_column // per_step
    assert expert.get_downsample_rates("hidden_states") == rate
    generator = torch.Generator().manual_seed(0)
    lengths = torch.randint(shape.min_samples, 24_000, (24,), generator=generator).tolist()
    lengths[:4] = [shape.min_samples, 10 * rate - 1, 10 * rate, 10 * rate + 1]
    lengths = [max(length, shape.min_samples) for length in lengths]
    wave = 0.1 * torch.randn(30_000, generator=generator)
    with torch.no_grad():
        for batch in (*([n] for n in lengths), lengths[:12], lengths[12:]):
            features = expert([wave[:length] for length in batch])
            assert len(features["hidden_states"]) == 2
            for state in (*features["hidden_states"], features["last_hidden_state"]):
                assert state.shape == (len(batch), len(range(0, max(batch), rate)), width)


@some_cases
@kinds
def test_vectors_equal_the_time_steps_of_extract_features(
    case: Case, kind: str, expert_of: Callable[..., Any], tmp_path: Path
) -> None:
    """The last time step of a clip is repeated; a clip is the same alone and in a batch."""
    expert = expert_of(case, kind).train()  # this model has no dropout
    waves = [speech_like(n, n) for n in (3_000, 9_000, 80_000, 20_500)]
    found = mae_ast.load(tmp_path).extract_features(waves)
    vectors, alone = expert(waves)["hidden_states"], expert(waves[1:2])["hidden_states"]
    for ours, expected, single in zip(vectors, found.time_steps, alone, strict=True):
        assert_close(ours[1, : single.shape[1]], single[0], rtol=0, atol=1e-4)
        for row, own in enumerate(found.lengths.tolist()):
            assert_close(ours[row, :own], expected[row, :own], rtol=0, atol=1e-4)
            last = expected[row, own - 1].expand(ours.shape[1] - own, -1)
            assert_close(ours[row, own:], last, rtol=0, atol=1e-4)
            assert ours[row, :own].std() > 0.05


@some_cases
@kinds
def test_gradients_reach_all_parameters_and_windows(
    case: Case, kind: str, expert_of: Callable[..., Any]
) -> None:
    expert = expert_of(case, kind).train()
    assert not any(hasattr(expert.model, name) for name in expert.model.only_for_pretraining)
    wave = speech_like(80_000).requires_grad_()  # fine-tuned: in five windows
    expert([wave, speech_like(9_000, 1)])["last_hidden_state"].square().sum().backward()
    named = expert.named_parameters()
    assert [name for name, p in named if p.requires_grad and not p.grad.any()] == []
    assert wave.grad is not None
    beyond = len(wave) - 3 * 160 * expert.patch_shape.time
    assert bool(wave.grad[:beyond].unfold(0, 400, 400).ne(0).any(1).all())
