"""Configuration of MAE-AST, SSAST, AST and Audio-MAE encoders and classifiers for transformers.

Part of the Python package mae-ast (MIT licence), which is not needed to use this file.
"""

from __future__ import annotations

from typing import Any

from transformers import PretrainedConfig


class SpectrogramTransformerConfig(PretrainedConfig):
    """Configuration of a spectrogram transformer.

    Args:
        system: the method that the encoder was trained with.
        ast_kernel_size_time, ast_kernel_size_chan: size of a patch in 10 ms frames and mel bins.
        ast_kernel_stride_time, ast_kernel_stride_chan: distance between adjacent patches.
        encoder_layers, encoder_embed_dim, encoder_ffn_embed_dim, encoder_attention_heads: size of
            the transformer.
        layer_norm_first: pre-norm instead of post-norm transformer layers.
        layer_norm_eps: epsilon of the encoder's layer norms.
        prefix_tokens: number of prefix tokens: none, CLS, or CLS and a distillation token.
        positions: "learned"; "sinusoidal": 1-D; "grid": sinusoids on a grid of time x mel.
        position_frames: length in frames of the learned position grid.
        window_type: window of the filterbank, "povey" or "hanning".
        input_frames: crop or zero-pad each clip to this number of frames, and attend to all of
            them; ``None``: clips of any length, without attention to padding.
        input_mean, input_std: log-mel statistics that normalise the input.
        pool: tokens that represent a clip: "tokens": all patches; "prefix": the prefix tokens.
        dropout, attention_dropout, activation_dropout: dropout probabilities in training.
        head_kind: classification head: "linear", or "mlp" with one hidden layer.
        head_pool: input of the head: "time_steps": mean over time of the concatenated tokens of a
            time step; "tokens": mean over all patches; "encoder": as ``pool``.
        head_dropout: dropout probability before the last layer of the head.
        head_layer_norm_eps: epsilon of the head's layer norm.
        clip_samples: length of the longest clips in fine-tuning, in samples at 16 kHz.
        initializer_range: std of new weights, such as those of a new head.
    """

    model_type = "spectrogram_transformer"
    attribute_map = {  # noqa: RUF012
        "hidden_size": "encoder_embed_dim",
        "intermediate_size": "encoder_ffn_embed_dim",
        "num_hidden_layers": "encoder_layers",
        "num_attention_heads": "encoder_attention_heads",
    }

    def __init__(
        self,
        system: str = "mae_ast",
        ast_kernel_size_time: int = 16,
        ast_kernel_size_chan: int = 16,
        ast_kernel_stride_time: int = 16,
        ast_kernel_stride_chan: int = 16,
        encoder_layers: int = 12,
        encoder_embed_dim: int = 768,
        encoder_ffn_embed_dim: int = 3072,
        encoder_attention_heads: int = 12,
        layer_norm_first: bool = False,
        layer_norm_eps: float = 1e-5,
        prefix_tokens: int = 0,
        positions: str = "sinusoidal",
        position_frames: int = 1024,
        window_type: str = "povey",
        input_frames: int | None = None,
        input_mean: float = 0.0,
        input_std: float = 1.0,
        pool: str = "tokens",
        dropout: float = 0.0,
        attention_dropout: float = 0.0,
        activation_dropout: float = 0.0,
        head_kind: str = "linear",
        head_pool: str = "time_steps",
        head_dropout: float = 0.0,
        head_layer_norm_eps: float = 1e-5,
        clip_samples: int = 0,
        initializer_range: float = 0.02,
        **kwargs: Any,
    ) -> None:
        self.system = system
        self.ast_kernel_size_time = ast_kernel_size_time
        self.ast_kernel_size_chan = ast_kernel_size_chan
        self.ast_kernel_stride_time = ast_kernel_stride_time
        self.ast_kernel_stride_chan = ast_kernel_stride_chan
        self.encoder_layers = encoder_layers
        self.encoder_embed_dim = encoder_embed_dim
        self.encoder_ffn_embed_dim = encoder_ffn_embed_dim
        self.encoder_attention_heads = encoder_attention_heads
        self.layer_norm_first = layer_norm_first
        self.layer_norm_eps = layer_norm_eps
        self.prefix_tokens = prefix_tokens
        self.positions = positions
        self.position_frames = position_frames
        self.window_type = window_type
        self.input_frames = input_frames
        self.input_mean = input_mean
        self.input_std = input_std
        self.pool = pool
        self.dropout = dropout
        self.attention_dropout = attention_dropout
        self.activation_dropout = activation_dropout
        self.head_kind = head_kind
        self.head_pool = head_pool
        self.head_dropout = head_dropout
        self.head_layer_norm_eps = head_layer_norm_eps
        self.clip_samples = clip_samples
        self.initializer_range = initializer_range
        super().__init__(**kwargs)

    @property
    def per_column(self) -> int:
        """Number of patches along mel, F'."""
        return (128 - self.ast_kernel_size_chan) // self.ast_kernel_stride_chan + 1

    def num_columns(self, num_frames: Any) -> Any:
        """Return the number of patches along time, T', of a number or tensor of frames."""
        return (num_frames - self.ast_kernel_size_time) // self.ast_kernel_stride_time + 1
