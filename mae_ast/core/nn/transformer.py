"""A standard transformer encoder, (B, N, D) -> (B, N, D), on scaled_dot_product_attention.

``norm_first=False`` is the post-norm kind of BERT and wav2vec 2.0 (the stack's own layer norm
then runs before the first layer), ``True`` the pre-norm kind (it runs after the last). Names of
modules are those of fairseq's ``TransformerSentenceEncoder``, for easy loading.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from mae_ast.core.nn.attention import KeyPadding, attend
from mae_ast.core.nn.dropout import Dropout

INIT_STD = 0.02
LAYER_NORM_EPS = 1e-5  # torch's own


def init_linear(module: nn.Module) -> None:
    """Linear layers: weights N(0, 0.02), biases 0. Use with ``module.apply``."""
    if isinstance(module, nn.Linear):
        nn.init.normal_(module.weight, std=INIT_STD)
        nn.init.zeros_(module.bias)


def gather_tokens(tokens: Tensor, ids: Tensor) -> Tensor:
    """(B, N, C) at ``ids`` (B, K) -> (B, K, C); ids of -1, which are padding, give some token."""
    return tokens.gather(1, ids.clamp(min=0).unsqueeze(2).expand(-1, -1, tokens.shape[2]))


class SelfAttention(nn.Module):
    """Multi-head self-attention.

    Args:
        embed_dim: D.
        num_heads: H.
        dropout: probability of dropping an attention weight.

    Raises:
        ValueError: H does not divide D.
    """

    def __init__(self, embed_dim: int, num_heads: int, dropout: float = 0.0) -> None:
        super().__init__()
        if num_heads < 1 or embed_dim % num_heads:
            raise ValueError(f"{num_heads} attention heads do not divide a width of {embed_dim}")
        self.num_heads = num_heads
        self.dropout = dropout
        self.k_proj = nn.Linear(embed_dim, embed_dim)
        self.v_proj = nn.Linear(embed_dim, embed_dim)
        self.q_proj = nn.Linear(embed_dim, embed_dim)
        self.out_proj = nn.Linear(embed_dim, embed_dim)

    def forward(
        self,
        x: Tensor,
        mask: Tensor | KeyPadding | None = None,
        queries: Tensor | None = None,
    ) -> Tensor:
        """Attend from ``queries`` (B, Q, D), or from ``x`` itself, to ``x`` (B, N, D).

        ``mask`` is as in :func:`mae_ast.core.nn.attention.attend`.
        """
        if torch.is_autocast_enabled(x.device.type):  # once, not in each projection
            x = x.to(torch.get_autocast_dtype(x.device.type))
        q = self._heads(self.q_proj(x if queries is None else queries))
        k, v = self._heads(self.k_proj(x)), self._heads(self.v_proj(x))
        y = attend(q, k, v, mask, self.dropout if self.training else 0.0)
        out: Tensor = self.out_proj(y.transpose(1, 2).flatten(2))
        return out

    def _heads(self, y: Tensor) -> Tensor:
        """(B, N, D) -> (B, H, N, D / H)."""
        head_dim = y.shape[2] // self.num_heads
        return y.reshape(*y.shape[:2], self.num_heads, head_dim).transpose(1, 2)


class TransformerLayer(nn.Module):
    """Self-attention and a feed-forward block with residuals.

    Args:
        embed_dim: D.
        ffn_embed_dim: width of the feed-forward block's hidden layer.
        num_heads: H.
        norm_first: pre-norm instead of post-norm.
        dropout: on both branches.
        attention_dropout: on attention weights.
        activation_dropout: after the feed-forward block's activation.
        layer_norm_eps: added to the variance in layer norms; timm's ViTs have 1e-6.

    ``checkpoint_activations`` may be set: then nothing of a layer but its input is kept
    for the backward, which computes the rest again.
    """

    checkpoint_activations = False

    def __init__(
        self,
        embed_dim: int,
        ffn_embed_dim: int,
        num_heads: int,
        norm_first: bool = False,
        dropout: float = 0.0,
        attention_dropout: float = 0.0,
        activation_dropout: float = 0.0,
        layer_norm_eps: float = LAYER_NORM_EPS,
    ) -> None:
        super().__init__()
        self.norm_first = norm_first
        self.self_attn = SelfAttention(embed_dim, num_heads, attention_dropout)
        self.self_attn_layer_norm = nn.LayerNorm(embed_dim, layer_norm_eps)
        self.fc1 = nn.Linear(embed_dim, ffn_embed_dim)
        self.fc2 = nn.Linear(ffn_embed_dim, embed_dim)
        self.final_layer_norm = nn.LayerNorm(embed_dim, layer_norm_eps)
        self.dropout = Dropout(dropout)
        self.activation_dropout = Dropout(activation_dropout)

    def forward(
        self, x: Tensor, mask: Tensor | KeyPadding | None = None, ids: Tensor | None = None
    ) -> Tensor:
        """(B, N, D) -> (B, N, D), or (B, K, D) of the tokens ``ids`` (B, K) only."""
        if self.checkpoint_activations and torch.is_grad_enabled():
            again: Tensor = checkpoint(self.compute, x, mask, ids, use_reentrant=False)
            return again
        return self.compute(x, mask, ids)

    def compute(self, x: Tensor, mask: Tensor | KeyPadding | None, ids: Tensor | None) -> Tensor:
        """What :meth:`forward` gives."""
        if self.norm_first:
            normed = self.self_attn_layer_norm(x)
            queries = None if ids is None else gather_tokens(normed, ids)
            x = x if ids is None else gather_tokens(x, ids)
            x = x + self.dropout(self.self_attn(normed, mask, queries))
            return x + self.feed_forward(self.final_layer_norm(x))
        queries = x if ids is None else gather_tokens(x, ids)
        x = self.self_attn_layer_norm(queries + self.dropout(self.self_attn(x, mask, queries)))
        out: Tensor = self.final_layer_norm(x + self.feed_forward(x))
        return out

    def feed_forward(self, x: Tensor) -> Tensor:
        """Linear, GELU, linear."""
        hidden = self.activation_dropout(F.gelu(self.fc1(x)))
        out: Tensor = self.dropout(self.fc2(hidden))
        return out


def compile_layers(model: nn.Module) -> None:
    """Let ``torch.compile`` make kernels of each layer of a model's transformers, all alike.

    Layers of one stack share what is compiled. It pays where batches have one shape or a few: each
    new one is compiled again, which takes a minute, or for all lengths at once.
    """
    for layer in model.modules():
        if isinstance(layer, TransformerLayer):
            layer.compute = torch.compile(layer.compute)  # type: ignore[method-assign]


class Transformer(nn.Module):
    """A stack of layers.

    Args:
        num_layers: depth.
        embed_dim, ffn_embed_dim, num_heads, norm_first: as in :class:`TransformerLayer`.
        dropout, attention_dropout, activation_dropout: likewise; ``dropout`` also on the input.
        layerdrop: probability that a layer passes its input on unchanged in a training step.
            Which ones is drawn on the device, and every layer stays in the graph, so that each
            parameter has a gradient in each step.
        layer_norm_eps: as in :class:`TransformerLayer`.
    """

    def __init__(
        self,
        num_layers: int,
        embed_dim: int,
        ffn_embed_dim: int,
        num_heads: int,
        norm_first: bool = False,
        dropout: float = 0.0,
        attention_dropout: float = 0.0,
        activation_dropout: float = 0.0,
        layerdrop: float = 0.0,
        layer_norm_eps: float = LAYER_NORM_EPS,
    ) -> None:
        super().__init__()
        self.norm_first = norm_first
        self.layerdrop = layerdrop
        self.dropout = Dropout(dropout)
        self.layers = nn.ModuleList(
            TransformerLayer(
                embed_dim,
                ffn_embed_dim,
                num_heads,
                norm_first,
                dropout,
                attention_dropout,
                activation_dropout,
                layer_norm_eps,
            )
            for _ in range(num_layers)
        )
        self.layer_norm = nn.LayerNorm(embed_dim, layer_norm_eps)

    def forward(
        self,
        x: Tensor,
        padding_mask: Tensor | None = None,
        hidden_states: list[Tensor] | None = None,
        ids: Tensor | None = None,
    ) -> Tensor:
        """Run all layers.

        Args:
            x: (B, N, D).
            padding_mask: (B, N) bool, True = padding, after a clip's own tokens; ``None``: there is
                none. What is not padding is not influenced by it.
            hidden_states: when given, the output of each layer is appended to it.
            ids: (B, K) int64, the tokens that are wanted; the last layer computes no others.

        Returns:
            (B, N, D), or (B, K, D).
        """
        mask = None if padding_mask is None else KeyPadding(padding_mask)
        if not self.norm_first:
            x = self.layer_norm(x)
        x = self.dropout(x)
        for layer in self.layers:
            wanted = ids if layer is self.layers[-1] else None
            y = layer(x, mask, wanted)
            if self.training and self.layerdrop > 0:
                keep = torch.rand((), device=x.device) >= self.layerdrop
                y = torch.where(keep, y, x if wanted is None else gather_tokens(x, wanted))
            x = y
            if hidden_states is not None:
                hidden_states.append(x)
        return self.layer_norm(x) if self.norm_first else x
