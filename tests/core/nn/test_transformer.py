"""The transformer equals torch's with the same weights; padding, dropout, layerdrop."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.testing import assert_close

from mae_ast.core.nn.transformer import (
    SelfAttention,
    Transformer,
    TransformerLayer,
    compile_layers,
    init_linear,
)

DIM, FFN, HEADS = 24, 40, 3
BOTH_KINDS = pytest.mark.parametrize("norm_first", [False, True], ids=["post-norm", "pre-norm"])


def with_random_weights(module: nn.Module) -> nn.Module:
    for parameter in module.parameters():
        nn.init.normal_(parameter, mean=0.05, std=0.3)
    return module


def torch_layer(layer: TransformerLayer) -> nn.TransformerEncoderLayer:
    """Build torch's layer with the weights of ours."""
    theirs = nn.TransformerEncoderLayer(
        DIM, HEADS, FFN, 0.0, "gelu", batch_first=True, norm_first=layer.norm_first
    )
    ours = layer.state_dict()
    state = {}
    for kind in ("weight", "bias"):
        state[f"self_attn.in_proj_{kind}"] = torch.cat(
            [ours[f"self_attn.{name}_proj.{kind}"] for name in "qkv"]
        )
        for their_name, our_name in [
            ("self_attn.out_proj", "self_attn.out_proj"),
            ("linear1", "fc1"),
            ("linear2", "fc2"),
            ("norm1", "self_attn_layer_norm"),
            ("norm2", "final_layer_norm"),
        ]:
            state[f"{their_name}.{kind}"] = ours[f"{our_name}.{kind}"]
    theirs.load_state_dict(state)
    return theirs


def padding_at_end(*padding: int, length: int = 7) -> Tensor:
    """Return (B, length) bool, True in the last ``padding[b]`` positions of row b."""
    return torch.arange(length) >= (length - torch.tensor(padding))[:, None]


@BOTH_KINDS
def test_layer_equals_torch(norm_first):
    layer = with_random_weights(TransformerLayer(DIM, FFN, HEADS, norm_first))
    x = torch.randn(2, 7, DIM)
    assert_close(layer(x), torch_layer(layer)(x), rtol=0, atol=1e-5)


@BOTH_KINDS
def test_layer_gradient_equals_torch(norm_first):
    layer = with_random_weights(TransformerLayer(DIM, FFN, HEADS, norm_first))
    weights = torch.randn(2, 7, DIM)
    gradients = []
    for model in (layer, torch_layer(layer)):
        x = torch.linspace(-2, 2, 2 * 7 * DIM).view(2, 7, DIM).requires_grad_()
        (model(x) * weights).sum().backward()
        gradients.append(x.grad)
    assert_close(gradients[0], gradients[1], rtol=1e-4, atol=1e-5)


@BOTH_KINDS
def test_layer_equals_torch_with_padding(norm_first):
    layer = with_random_weights(TransformerLayer(DIM, FFN, HEADS, norm_first))
    x = torch.randn(3, 7, DIM)
    padding = padding_at_end(0, 2, 6)
    ours = layer(x, ~padding[:, None, None, :])
    theirs = torch_layer(layer)(x, src_key_padding_mask=padding)
    assert_close(ours[~padding], theirs[~padding], rtol=0, atol=1e-5)


@BOTH_KINDS
def test_stack_equals_torch_layers_and_one_more_norm(norm_first):
    stack = with_random_weights(Transformer(3, DIM, FFN, HEADS, norm_first))
    x = torch.randn(2, 7, DIM)
    out, states = stack(x), list(stack.layer_outputs(x))
    expected = x if norm_first else stack.layer_norm(x)
    for layer, state in zip(stack.layers, states, strict=True):
        expected = torch_layer(layer)(expected)
        assert_close(state, expected, rtol=0, atol=1e-4)
    expected = stack.layer_norm(expected) if norm_first else expected
    assert_close(out, expected, rtol=0, atol=1e-4)


@BOTH_KINDS
def test_padding_does_not_influence_valid_tokens(norm_first):
    stack = with_random_weights(Transformer(3, DIM, FFN, HEADS, norm_first)).eval()
    padding = padding_at_end(0, 3, 6)
    x = torch.randn(3, 7, DIM)
    other = torch.where(padding.unsqueeze(2), 100 * torch.randn(3, 7, DIM), x)
    assert torch.equal(stack(x, padding)[~padding], stack(other, padding)[~padding])
    assert not torch.equal(stack(x)[~padding], stack(other)[~padding])
    for row, valid in enumerate((7, 4, 1)):
        alone = stack(x[row : row + 1, :valid])[0]
        assert_close(stack(x, padding)[row, :valid], alone, rtol=0, atol=1e-5)


def test_no_padding_mask_equals_a_mask_without_padding():
    stack = with_random_weights(Transformer(2, DIM, FFN, HEADS)).eval()
    x = torch.randn(2, 7, DIM)
    assert_close(stack(x), stack(x, torch.zeros(2, 7, dtype=torch.bool)), rtol=0, atol=1e-5)


@BOTH_KINDS
def test_skipped_layer_is_the_identity_and_has_zero_gradients(norm_first):
    stack = with_random_weights(Transformer(6, DIM, FFN, HEADS, norm_first, layerdrop=0.5)).train()
    kept = []
    for seed in range(20):
        torch.manual_seed(seed)
        stack.zero_grad(set_to_none=True)
        x = torch.randn(2, 7, DIM)
        states = list(stack.layer_outputs(x))
        states[-1].square().sum().backward()
        inputs = [x if norm_first else stack.layer_norm(x), *states]
        for layer, before, after in zip(stack.layers, inputs, states, strict=False):
            dropped = torch.equal(after, before)
            kept.append(not dropped)
            for name, parameter in layer.named_parameters():
                assert parameter.grad is not None, name
                if dropped:
                    assert not parameter.grad.any(), name
            if not dropped:
                assert_close(after, layer(before), rtol=0, atol=1e-5)
                assert bool(layer.fc2.weight.grad.any())
    assert 0.3 < sum(kept) / len(kept) < 0.7


def test_layerdrop_is_for_training_only():
    stack = with_random_weights(Transformer(4, DIM, FFN, HEADS, layerdrop=0.9)).eval()
    x = torch.randn(2, 7, DIM)
    plain = Transformer(4, DIM, FFN, HEADS).eval()
    plain.load_state_dict(stack.state_dict())
    assert torch.equal(stack(x), plain(x))


@pytest.mark.parametrize("kind", ["dropout", "attention_dropout", "activation_dropout"])
def test_each_dropout_acts_in_training_only(kind):
    stack = with_random_weights(Transformer(1, DIM, FFN, HEADS, **{kind: 0.5}))
    x = torch.randn(2, 7, DIM)
    assert not torch.equal(stack.train()(x), stack(x))
    assert torch.equal(stack.eval()(x), stack(x))
    plain = Transformer(1, DIM, FFN, HEADS).eval()
    plain.load_state_dict(stack.state_dict())
    assert torch.equal(stack(x), plain(x))


def test_dropout_also_acts_on_the_input_of_a_stack():
    stack = Transformer(1, DIM, FFN, HEADS, norm_first=True, dropout=0.25).train()
    caught = []
    stack.layers[0].register_forward_pre_hook(lambda layer, inputs: caught.append(inputs[0]))
    x = torch.rand(20, 50, DIM) + 1
    stack(x)
    dropped = caught[0] == 0
    assert dropped.float().mean().item() == pytest.approx(0.25, abs=0.02)
    assert_close(caught[0][~dropped], x[~dropped] / 0.75, rtol=1e-5, atol=0)


@pytest.mark.parametrize("heads", [5, 0, -1, 48])
def test_heads_that_do_not_divide_the_width_are_refused(heads):
    with pytest.raises(ValueError, match=f"{heads} attention heads do not divide a width of 24"):
        SelfAttention(DIM, heads)


def test_initialisation():
    model = nn.Sequential(nn.Linear(300, 300), nn.LayerNorm(300))
    model.apply(init_linear)
    linear, norm = model
    assert linear.weight.std().item() == pytest.approx(0.02, rel=0.02)
    assert linear.weight.mean().item() == pytest.approx(0, abs=3e-4)
    assert not linear.bias.any()
    assert bool((norm.weight == 1).all())


def test_layer_norm_epsilon():
    for options, eps in (({}, 1e-5), ({"layer_norm_eps": 0.5}, 0.5)):
        stack = Transformer(2, DIM, FFN, HEADS, **options)
        norms = [m.eps for m in stack.modules() if isinstance(m, nn.LayerNorm)]
        assert norms == [eps] * 5


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_activation_checkpointing_saves_memory_and_computes_the_same(dtype):
    stack = Transformer(4, DIM, FFN, HEADS, dropout=0.2, attention_dropout=0.2)
    with_random_weights(stack)
    x = torch.randn(2, 50, DIM)

    def run() -> tuple[list[Tensor], int]:
        """Return all gradients and the number of bytes stored for the backward pass."""
        kept: dict[int, int] = {}

        def pack(tensor: Tensor) -> Tensor:
            kept[tensor.data_ptr()] = tensor.nbytes
            return tensor

        torch.manual_seed(0)
        stack.zero_grad()
        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            with torch.autocast("cpu", dtype, enabled=dtype != torch.float32):
                y = stack(x)
            held = sum(kept.values())
            y.float().square().sum().backward()
        return [p.grad.clone() for p in stack.parameters()], held

    expected, whole = run()
    for layer in stack.layers:
        layer.checkpoint_activations = True
    found, held = run()
    for one, other in zip(found, expected, strict=True):
        assert torch.equal(one, other)
    assert held < whole / 5


@pytest.mark.slow
def test_compiled_layers_compute_the_same():
    stack = with_random_weights(Transformer(2, DIM, FFN, HEADS))
    x, padding_mask = torch.randn(2, 16, DIM), torch.zeros(2, 16, dtype=torch.bool)
    padding_mask[1, 9:] = True
    results = []
    for compiled in (False, True):
        if compiled:
            compile_layers(stack)
        stack.zero_grad()
        y = stack(x, padding_mask)
        y[~padding_mask].square().sum().backward()
        results.append([y[~padding_mask].detach(), *(p.grad.clone() for p in stack.parameters())])
    for one, other in zip(*results, strict=True):
        assert_close(one, other, rtol=1e-4, atol=1e-5)
    assert stack.state_dict().keys() == Transformer(2, DIM, FFN, HEADS).state_dict().keys()
