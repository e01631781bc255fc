"""Standard transformer encoder: (B, N, D) -> (B, N, D).

``norm_first=False`` gives post-norm layers, as in BERT and wav2vec 2.0, with one more layer norm
before the first layer. ``norm_first=True`` gives pre-norm layers, as in ViT, with one more layer
norm after the last layer. Modules are named as in fairseq's ``TransformerSentenceEncoder``, so that
its checkpoints load without renaming.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from mae_ast.core.frontend.rows import TokenEnds
from mae_ast.core.nn.attention import AttentionMask, KeyPadding, attend
from mae_ast.core.nn.dropout import Dropout
from mae_ast.core.nn.row_attention import WithinClips

INIT_STD = 0.02
LAYER_NORM_EPS = 1e-5  # torch's default


def init_linear(module: nn.Module) -> None:
    """Initialise a linear layer: weight std 0.02, zero bias. Use with ``module.apply``."""
    if isinstance(module, nn.Linear):
        nn.init.normal_(module.weight, std=INIT_STD)
        nn.init.zeros_(module.bias)


def gather_tokens(tokens: Tensor, ids: Tensor) -> Tensor:
    """Gather tokens (B, N, C) at ``ids`` (B, K): (B, K, C). Ids of -1 (padding) give any token."""
    return tokens.gather(1, ids.clamp(min=0).unsqueeze(2).expand(-1, -1, tokens.shape[2]))


class SelfAttention(nn.Module):
    """Multi-head self-attention.

    Args:
        embed_dim: D.
        num_heads: H.
        dropout: dropout probability of the attention weights.

    Raises:
        ValueError: D is not divisible by H.
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
        mask: AttentionMask | None = None,
        queries: Tensor | None = None,
    ) -> Tensor:
        """Compute multi-head self-attention.

        Args:
            x: (B, N, D), keys and values.
            mask: as in :func:`mae_ast.core.nn.attention.attend`.
            queries: (B, Q, D); ``None``: ``x``.

        Returns:
            (B, Q, D).
        """
        if torch.is_autocast_enabled(x.device.type):  # cast once, not in each projection
            x = x.to(torch.get_autocast_dtype(x.device.type))
        q = self._heads(self.q_proj(x if queries is None else queries))
        k, v = self._heads(self.k_proj(x)), self._heads(self.v_proj(x))
        y = attend(q, k, v, mask, self.dropout if self.training else 0.0)
        out: Tensor = self.out_proj(y.transpose(1, 2).flatten(2))
        return out

    def _heads(self, y: Tensor) -> Tensor:
        """Split into heads: (B, N, D) -> (B, H, N, D / H)."""
        head_dim = y.shape[2] // self.num_heads
        return y.reshape(*y.shape[:2], self.num_heads, head_dim).transpose(1, 2)


def attention_masks(
    padding: Tensor | TokenEnds | None, selects: bool
) -> tuple[AttentionMask | None, AttentionMask | None]:
    """Return the masks of a stack's layers and of its last one, which may select its queries."""
    if padding is None:
        return None, None
    if isinstance(padding, Tensor):
        mask = KeyPadding(padding)
        return mask, mask
    within = WithinClips(padding)
    return within, WithinClips(padding, selected=True) if selects else within


class TransformerLayer(nn.Module):
    """Transformer layer: self-attention and a feed-forward block, each with a residual connection.

    Set ``checkpoint_activations`` for activation checkpointing: only the input of the layer is
    stored, and the backward pass recomputes the rest.

    Args:
        embed_dim: D.
        ffn_embed_dim: hidden width of the feed-forward block.
        num_heads: H.
        norm_first: pre-norm instead of post-norm.
        dropout: dropout probability of the output of both residual branches.
        attention_dropout: dropout probability of the attention weights.
        activation_dropout: dropout probability after the activation in the feed-forward block.
        layer_norm_eps: epsilon of the layer norms; 1e-6 in timm's ViTs.
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
        self, x: Tensor, mask: AttentionMask | None = None, ids: Tensor | None = None
    ) -> Tensor:
        """Compute the layer: (B, N, D) -> (B, N, D), or (B, K, D) for the tokens ``ids`` (B, K)."""
        if self.checkpoint_activations and torch.is_grad_enabled():
            out: Tensor = checkpoint(self.compute, x, mask, ids, use_reentrant=False)
            return out
        return self.compute(x, mask, ids)

    def compute(self, x: Tensor, mask: AttentionMask | None, ids: Tensor | None) -> Tensor:
        """Compute the layer without activation checkpointing; see :meth:`forward`."""
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
        """Apply the feed-forward block: linear, GELU, linear."""
        hidden = self.activation_dropout(F.gelu(self.fc1(x)))
        out: Tensor = self.dropout(self.fc2(hidden))
        return out


def compile_layers(model: nn.Module) -> None:
    """Apply ``torch.compile`` to each transformer layer of a model, in place.

    The layers of a stack share the compiled code. This is worthwhile if batches have one shape or a
    few: a new shape triggers a recompilation, which takes about a minute, unless it is already
    covered by code for dynamic lengths.
    """
    for layer in model.modules():
        if isinstance(layer, TransformerLayer):
            layer.compute = torch.compile(layer.compute)  # type: ignore[method-assign]


def is_compiled(layer: nn.Module) -> bool:
    """Return whether a layer was compiled by :func:`compile_layers` or by its ``compile``."""
    return "compute" in vars(layer) or layer._compiled_call_impl is not None


class Transformer(nn.Module):
    """Stack of transformer layers with one more layer norm.

    Args:
        num_layers: number of layers.
        embed_dim, ffn_embed_dim, num_heads, norm_first: as in :class:`TransformerLayer`.
        dropout: as in :class:`TransformerLayer`; also applied to the input of the stack.
        attention_dropout, activation_dropout: as in :class:`TransformerLayer`.
        layerdrop: probability of skipping a layer in a training step. The draw happens on the
            device, and every layer stays in the graph, so that each parameter has a gradient in
            each step.
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
        padding: Tensor | TokenEnds | None = None,
        ids: Tensor | None = None,
    ) -> Tensor:
        """Run all layers.

        Args:
            x, padding, ids: as in :meth:`layer_outputs`.

        Returns:
            (B, N, D), or (B, K, D), after the final layer norm if layers are pre-norm.
        """
        for output in self.layer_outputs(x, padding, ids):
            x = output
        return self.layer_norm(x) if self.norm_first else x

    def layer_outputs(
        self,
        x: Tensor,
        padding: Tensor | TokenEnds | None = None,
        ids: Tensor | None = None,
    ) -> Iterator[Tensor]:
        """Yield the output of each layer, which is computed when it is asked for.

        Args:
            x: (B, N, D).
            padding: (B, N) bool, True = padding, at the end of each clip, which does not influence
                the other tokens; or the ends of the clips of a row (B = 1), to which attention is
                restricted; ``None``: no padding.
            ids: (B, K) int64, the tokens to return; the last layer computes no others. ``None``:
                all tokens.

        Yields:
            (B, N, D), before the final layer norm; for the last layer (B, K, D) if ``ids`` is
            given.
        """
        mask, last_mask = attention_masks(padding, selects=ids is not None)
        if not self.norm_first:
            x = self.layer_norm(x)
        x = self.dropout(x)
        for layer in self.layers:
            is_last = layer is self.layers[-1]
            layer_ids = ids if is_last else None
            y = layer(x, last_mask if is_last else mask, layer_ids)
            if self.training and self.layerdrop > 0:
                keep = torch.rand((), device=x.device) >= self.layerdrop
                y = torch.where(keep, y, x if layer_ids is None else gather_tokens(x, layer_ids))
            x = y
            yield x
