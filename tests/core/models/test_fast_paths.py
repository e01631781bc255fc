"""Each optimised implementation gives the training losses of the plain one, in float32."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from mae_ast.core.frontend import masking
from mae_ast.core.frontend.masking import MaskIds, chunk_mask
from mae_ast.core.models import mae_ast
from mae_ast.core.models.config import MaeAstConfig
from mae_ast.core.models.losses import info_nce_loss, reconstruction_loss
from mae_ast.core.models.mae_ast import MaeAst
from mae_ast.core.nn import transformer
from mae_ast.core.nn.transformer import Transformer, TransformerLayer, gather_tokens

BATCH, FRAMES, UPDATES = 3, 200, 20
CONFIG = MaeAstConfig(
    encoder_layers=2,
    decoder_layers=2,
    decoder_embed_dim=64,
    encoder_embed_dim=64,
    encoder_ffn_embed_dim=128,
    encoder_attention_heads=4,
    dropout=0.0,
    attention_dropout=0.0,
    dropout_input=0.0,
    encoder_layerdrop=0.0,
    precision="float32",
)


def losses(fused: bool = True, checkpointed: bool = False) -> list[float]:
    """Return the loss of each update, with the same data, initial weights and masks each time."""
    torch.manual_seed(0)
    model = MaeAst(CONFIG).train()
    for layer in model.modules():
        if isinstance(layer, TransformerLayer):
            layer.checkpoint_activations = checkpointed
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, fused=fused, foreach=False)
    draws = torch.Generator().manual_seed(1)
    found = []
    for _ in range(UPDATES):
        source = torch.randn(BATCH, FRAMES, 128, generator=draws)
        mask = chunk_mask(BATCH, model.patch_shape.grid(FRAMES), 0.75, draws)
        out = model(source, None, mask)
        mse = reconstruction_loss(out.reconstruction, out.target)
        info_nce = info_nce_loss(out.classification, out.target).loss
        loss = (10 * mse + info_nce) / mask.masked_ids.numel()
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        found.append(loss.item())
    return found


def plain_attention(
    q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None, dropout_p: float = 0.0
) -> Tensor:
    assert mask is None
    scores = q @ k.transpose(2, 3) / q.shape[3] ** 0.5
    return scores.softmax(3) @ v


class AllTokens(Transformer):
    """Transformer that computes all tokens in its last layer and then selects some."""

    def forward(self, x, padding_mask=None, ids=None):
        y = super().forward(x, padding_mask)
        return y if ids is None else gather_tokens(y, ids)


def plain_scatter_tokens(
    visible: Tensor, mask_token: Tensor, mask: MaskIds, num_patches: int
) -> tuple[Tensor, None]:
    """Scatter tokens one clip and one patch at a time."""
    rows = []
    for clip, ids in zip(visible, mask.visible_ids.tolist(), strict=True):
        places = {place: clip[number] for number, place in enumerate(ids)}
        rows.append(torch.stack([places.get(n, mask_token) for n in range(num_patches)]))
    return torch.stack(rows), None


def plain_first_cover(grid, sides_time, sides_mel, num_blocks, generator):
    """Find the first covering block by an argmax over a matrix of the covered patches."""
    in_time = masking._covered(grid[0], sides_time, num_blocks, generator)
    in_mel = masking._covered(grid[1], sides_mel, num_blocks, generator)
    covered = in_time.unsqueeze(3) & in_mel.unsqueeze(2)
    nothing = covered.new_ones(len(covered), 1, *grid)
    return torch.cat((covered, nothing), dim=1).long().argmax(dim=1)


@pytest.fixture(scope="module")
def fast() -> list[float]:
    found = losses()
    assert found[-1] < found[0]
    return found


@pytest.mark.parametrize(
    ("module", "name", "plain"),
    [
        (transformer, "attend", plain_attention),
        (mae_ast, "Transformer", AllTokens),
        (mae_ast, "scatter_tokens", plain_scatter_tokens),
        (masking, "first_cover", plain_first_cover),
    ],
)
def test_losses_equal_the_plain_implementation(monkeypatch, fast, module, name, plain):
    calls = []
    monkeypatch.setattr(module, name, lambda *a, **k: calls.append(0) or plain(*a, **k))
    assert losses() == pytest.approx(fast, rel=1e-6)
    assert calls


def test_losses_equal_those_of_the_unfused_optimizer(fast):
    assert losses(fused=False) == pytest.approx(fast, rel=1e-6)


def test_losses_equal_those_with_activation_checkpointing(fast):
    assert losses(checkpointed=True) == fast
