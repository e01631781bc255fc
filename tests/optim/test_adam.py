"""``mae_ast_adam`` computes what fairseq's ``adam`` computes, and exchanges its moments with it."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from fairseq import optim
from fairseq.dataclass.configs import FairseqConfig
from fairseq.optim.fp16_optimizer import FP16Optimizer, MemoryEfficientFP16Optimizer
from fairseq.utils import clip_grad_norm_
from omegaconf import OmegaConf
from torch import nn
from torch.testing import assert_close
from torch.utils._python_dispatch import TorchDispatchMode

from mae_ast import plugin
from mae_ast.core.frontend.masking import random_mask
from mae_ast.core.models.config import MaeAstConfig
from mae_ast.core.models.mae_ast import MaeAst
from tests.core.vits import loss_of
from tests.fake_gpu import NoCopies, fake_gpu

THEIRS, OURS = "adam", "mae_ast_adam"
UPDATES = 50
CONFIG = MaeAstConfig(
    encoder_layers=2,
    decoder_layers=1,
    encoder_embed_dim=32,
    encoder_ffn_embed_dim=64,
    encoder_attention_heads=4,
    decoder_embed_dim=32,
    dropout=0.0,
    attention_dropout=0.0,
    encoder_layerdrop=0.0,
    precision="float32",
)


@pytest.fixture(autouse=True, scope="module")
def _registered() -> None:
    plugin.register()


def build(name: str, params: Sequence[nn.Parameter], **settings: Any) -> Any:
    given: dict[str, Any] = {"_name": name, "adam_betas": "(0.9,0.98)", "lr": [1e-3]}
    given |= {"weight_decay": 0.01, **({"tpu": False} if name == THEIRS else {}), **settings}
    return optim.build_optimizer(OmegaConf.create(given), list(params))


class Run:
    """Training of a small model; the same batches and initial weights each time."""

    def __init__(self, name: str, **settings: Any) -> None:
        torch.manual_seed(0)
        self.model = MaeAst(CONFIG).train()
        self.optimizer = build(name, list(self.model.parameters()), **settings)
        self.num_updates = 0

    def update(self) -> tuple[float, float]:
        """Make an update, and return the loss and the norm of the gradients.

        The classification head is trained in some updates only, so that its parameters count
        fewer steps than the others.
        """
        draws = torch.Generator().manual_seed(self.num_updates)
        self.num_updates += 1
        self.model.train_heads(True, self.num_updates % 3 > 0)
        source = torch.randn(2, 96, 128, generator=draws)
        mask = random_mask(2, self.model.patch_shape.grid(96), 0.75, draws)
        loss = loss_of(self.model(source, None, mask))
        self.optimizer.zero_grad()
        self.optimizer.backward(loss)
        self.optimizer.multiply_grads(1 / mask.masked_ids.numel())
        norm = self.optimizer.clip_grad_norm(1.0)
        self.optimizer.set_lr(1e-3 * min(1, self.num_updates / 10))
        self.optimizer.step()
        return loss.item() / mask.masked_ids.numel(), norm.item()


@pytest.mark.parametrize("eps", [1e-6, 1e-2])
def test_losses_equal_those_of_fairseq(eps: float) -> None:
    """With the larger epsilon, it matters what it is added to."""
    ours, theirs = (Run(name, adam_eps=eps) for name in (OURS, THEIRS))
    for _ in range(UPDATES):
        (loss, norm), (expected_loss, expected_norm) = ours.update(), theirs.update()
        assert loss == pytest.approx(expected_loss, rel=1e-6)
        assert norm == pytest.approx(expected_norm, rel=1e-5)


@pytest.mark.parametrize(("first", "second"), [(THEIRS, OURS), (OURS, THEIRS)])
def test_either_resumes_from_the_state_of_the_other(first: str, second: str) -> None:
    whole, begun = Run(first, adam_eps=1e-6), Run(second, adam_eps=1e-6)
    for _ in range(20):
        whole.update()
    begun.model.load_state_dict(whole.model.state_dict())
    begun.optimizer.load_state_dict(copy.deepcopy(whole.optimizer.state_dict()))
    begun.num_updates = 20
    for _ in range(10):
        assert begun.update() == pytest.approx(whole.update(), rel=1e-5)


def test_states_have_the_same_layout() -> None:
    ours, theirs = Run(OURS), Run(THEIRS)
    for run in (ours, theirs):
        run.update()
    found, expected = (run.optimizer.state_dict() for run in (ours, theirs))
    assert found["state"].keys() == expected["state"].keys()
    for number, state in expected["state"].items():
        own = found["state"][number]
        assert own["step"] == state["step"] == 1
        assert type(own["step"]) is int
        assert_close(own, state, rtol=1e-6, atol=1e-12)
    (group,), (their_group,) = found["param_groups"], expected["param_groups"]
    assert group["params"] == their_group["params"]


def test_settings_of_this_run_and_overrides_apply_after_loading() -> None:
    run = Run(OURS, weight_decay=0.5)
    run.update()
    state = run.optimizer.state_dict()
    run = Run(OURS, weight_decay=0.1)
    run.optimizer.load_state_dict(state)
    assert run.optimizer.param_groups[0]["weight_decay"] == 0.1
    run.optimizer.load_state_dict(state, {"betas": (0.5, 0.5)})
    assert run.optimizer.param_groups[0]["betas"] == (0.5, 0.5)


class Calls(TorchDispatchMode):
    """Count the calls of each operation."""

    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.names.append(str(func.overloadpacket))
        return func(*args, **(kwargs or {}))


def test_an_update_takes_as_many_operations_for_more_parameters() -> None:
    counts = []
    for number in (2, 30):
        params = [nn.Parameter(torch.ones(3, 2)) for _ in range(number)]
        for p in params:
            p.grad = torch.ones_like(p)
        optimizer = build(OURS, params)
        optimizer.step()
        with Calls() as calls:
            optimizer.clip_grad_norm(1.0)
            optimizer.step()
        others = [name for name in calls.names if name != "aten.detach"]  # without a kernel
        assert others.count("aten._fused_adamw_") == 1
        counts.append(len(others))
    assert counts[0] == counts[1] <= 12


@pytest.mark.parametrize("name", [OURS, "mae_ast_adamw"])
def test_an_update_does_not_wait_for_the_gpu(name: str) -> None:
    with fake_gpu():
        params = [nn.Parameter(torch.ones(3, n, device="cuda")) for n in (2, 5)]
        for p in params:
            p.grad = torch.ones_like(p)
        optimizer = build(name, params)
        with NoCopies():
            optimizer.multiply_grads(torch.ones((), device="cuda"))
            norm = optimizer.clip_grad_norm(1.0)
            optimizer.step()
    assert norm.device.type == optimizer.optimizer.state[params[0]]["exp_avg"].device.type == "cuda"


# --- clipping -----------------------------------------------------------------------------------


@pytest.mark.parametrize("max_norm", [0.0, 0.5, 1e3])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("name", [OURS, "mae_ast_adamw"])
def test_clipping_equals_that_of_fairseq(name: str, dtype: torch.dtype, max_norm: float) -> None:
    """The squares of the gradients are beyond the range of float16."""
    torch.manual_seed(0)
    params = [nn.Parameter(torch.zeros(n, 7, dtype=dtype)) for n in (1, 5, 90)]
    for p in params[:2]:  # the last has no gradient
        p.grad = torch.randn_like(p) * 300
    others = copy.deepcopy(params)
    for p, other in zip(params[:2], others, strict=False):
        other.grad = p.grad.clone()
    found = build(name, params).clip_grad_norm(max_norm)
    expected = clip_grad_norm_(others, max_norm)
    assert found.dtype == torch.float32
    assert_close(found, expected, rtol=1e-6, atol=0)
    for p, other in zip(params[:2], others, strict=False):
        assert_close(p.grad, other.grad, rtol=1e-6, atol=0)
    assert params[2].grad is None


def test_norm_of_all_processes_scales_the_gradients() -> None:
    (p,) = params = [nn.Parameter(torch.zeros(4))]
    p.grad = torch.full((4,), 0.5)
    norm = build(OURS, params).clip_grad_norm(1.0, lambda own: own * 2)
    assert norm.item() == 2
    assert_close(p.grad, torch.full((4,), 0.25), rtol=1e-5, atol=0)


def test_norm_without_gradients_is_zero() -> None:
    assert build(OURS, [nn.Parameter(torch.ones(2))]).clip_grad_norm(1.0).item() == 0


# --- half precision -----------------------------------------------------------------------------


def wrapped(kind: str, name: str, params: list[nn.Parameter]) -> Any:
    """Wrap an optimizer as fairseq does with ``common.bf16`` or ``memory_efficient_bf16``."""
    cfg = OmegaConf.structured(FairseqConfig)
    cfg.common.bf16 = True
    if kind == "memory efficient":
        return MemoryEfficientFP16Optimizer(cfg, params, build(name, params))
    copies = FP16Optimizer.build_fp32_params(None, params, flatten=False)
    return FP16Optimizer(cfg, params, build(name, copies), copies)


def update_half(optimizer: Any, params: list[nn.Parameter], seed: int) -> None:
    draws = torch.Generator().manual_seed(seed)
    optimizer.zero_grad()
    loss = sum((p.float() * torch.randn(p.shape, generator=draws)).sum() for p in params)
    optimizer.backward(loss)
    optimizer.multiply_grads(0.5)
    optimizer.clip_grad_norm(2.0)
    optimizer.step()


@pytest.mark.parametrize("kind", ["memory efficient", "float32 copies"])
def test_half_precision_equals_that_of_fairseq(kind: str) -> None:
    torch.manual_seed(0)
    initial = [nn.Parameter(torch.randn(5, n).bfloat16()) for n in (1, 4)]
    ours, theirs = copy.deepcopy(initial), copy.deepcopy(initial)
    first, other = wrapped(kind, OURS, ours), wrapped(kind, THEIRS, theirs)
    for seed in range(5):
        update_half(first, ours, seed)
        update_half(other, theirs, seed)
    state = copy.deepcopy(other.state_dict())
    first = wrapped(kind, OURS, ours)
    first.load_state_dict(state)  # resumes
    for seed in range(5, 10):
        update_half(first, ours, seed)
        update_half(other, theirs, seed)
    for p, expected, before in zip(ours, theirs, initial, strict=True):
        assert_close(p, expected, rtol=2**-7, atol=1e-6)  # a step of bfloat16
        assert not torch.equal(p, before)
    for moments in first.optimizer.state.values():
        assert moments["exp_avg"].dtype == moments["exp_avg_sq"].dtype == torch.float32
        assert moments["step"] == 10


def test_fairseq_may_flatten_the_parameters() -> None:
    assert build(OURS, [nn.Parameter(torch.ones(2))]).supports_flat_params


# --- settings -----------------------------------------------------------------------------------


@pytest.mark.parametrize("name", [OURS, "mae_ast_adamw"])
@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("weight_decay", -1, "optimizer.weight_decay=-1.0: must be 0 or more"),
        ("adam_eps", float("nan"), "optimizer.adam_eps=nan: must be 0 or more"),
        ("lr", [-0.5], "optimization.lr=-0.5: must be 0 or more"),
        ("adam_betas", "(0.9,1)", r"optimizer.adam_betas=\(0.9,1\): must be two numbers from 0"),
        ("adam_betas", [2], r"optimizer.adam_betas=\[2\]: must be two numbers from 0 to below 1,"),
        ("adam_betas", 0.9, "optimizer.adam_betas=0.9: must be two numbers"),
    ],
)
def test_invalid_settings_are_named(name: str, key: str, value: Any, message: str) -> None:
    with pytest.raises(ValueError, match=f"^{message}"):
        build(name, [nn.Parameter(torch.ones(2))], **{key: value})
