"""What describes a MAE-AST model: names, defaults and help, once, for programs and presets.

A plain dataclass; the fairseq adapter inherits it, and checkpoints carry it as a dictionary.
"""

# No postponed annotations here: fairseq reads the types of the fields.
import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar, Optional

from mae_ast.core.frontend.masking import check_mask
from mae_ast.core.frontend.patches import PatchShape
from mae_ast.core.nn.precision import PRECISIONS

INPUT_STATS = ("batch", "fixed")
OPTIONAL_COUNTS = ("decoder_ffn_embed_dim", "decoder_attention_heads")
COUNTS = (
    *("encoder_layers", "encoder_embed_dim", "encoder_ffn_embed_dim", "encoder_attention_heads"),
    *("decoder_layers", "decoder_embed_dim", "mask_length", *OPTIONAL_COUNTS),
)


# Optional[...] rather than X | None: the configuration library behind fairseq reads these types.
@dataclass
class MaeAstConfig:
    """All that describes a model; the keys of ``model.*``."""

    # What other systems let one choose.
    window_type: ClassVar[str] = "povey"
    input_frames: ClassVar[Optional[int]] = None  # noqa: UP045  (clips of any length)

    ast_kernel_size_chan: int = field(
        default=16, metadata={"help": "mel bins of a patch; divides 128"}
    )
    ast_kernel_size_time: int = field(default=16, metadata={"help": "10 ms frames of a patch"})
    ast_kernel_stride_chan: int = field(
        default=16, metadata={"help": "equal to ast_kernel_size_chan: patches do not overlap"}
    )
    ast_kernel_stride_time: int = field(
        default=16, metadata={"help": "equal to ast_kernel_size_time: patches do not overlap"}
    )

    encoder_layers: int = field(default=12, metadata={"help": "layers of the encoder"})
    encoder_embed_dim: int = field(default=768, metadata={"help": "width of the encoder"})
    encoder_ffn_embed_dim: int = field(
        default=3072, metadata={"help": "hidden width of the encoder's feed-forward blocks"}
    )
    encoder_attention_heads: int = field(
        default=12, metadata={"help": "attention heads of the encoder"}
    )
    decoder_layers: int = field(default=2, metadata={"help": "layers of the decoder"})
    decoder_embed_dim: int = field(default=768, metadata={"help": "width of the decoder"})
    decoder_ffn_embed_dim: Optional[int] = field(  # noqa: UP045
        default=None, metadata={"help": "as the encoder's, for the decoder; default: the same"}
    )
    decoder_attention_heads: Optional[int] = field(  # noqa: UP045
        default=None, metadata={"help": "attention heads of the decoder; default: the encoder's"}
    )
    layer_norm_first: bool = field(
        default=False, metadata={"help": "pre-norm layers instead of post-norm"}
    )

    dropout: float = field(default=0.1, metadata={"help": "dropout in the transformers"})
    attention_dropout: float = field(default=0.1, metadata={"help": "dropout of attention weights"})
    activation_dropout: float = field(
        default=0.0, metadata={"help": "dropout after the activation in feed-forward blocks"}
    )
    dropout_input: float = field(
        default=0.0,
        metadata={"help": "dropout of the tokens before positions are added, in pretraining only"},
    )
    encoder_layerdrop: float = field(
        default=0.0, metadata={"help": "probability of skipping a layer in a training step"}
    )
    decoder_layerdrop: float = field(
        default=0.0, metadata={"help": "the same for the decoder, which is shallow: usually 0"}
    )

    random_mask_prob: float = field(
        default=0.75,
        metadata={"help": "fraction of patches hidden; for retain_spans the span density"},
    )
    mask_length: int = field(default=10, metadata={"help": "tokens of a span in retain_spans"})

    input_stats: str = field(
        default="batch",
        metadata={
            "help": "'batch': normalise by each batch's mean and deviation and track them; "
            "'fixed': by input_mean and input_std ('mae-ast stats MANIFEST' computes them)"
        },
    )
    input_mean: float = field(default=0.0, metadata={"help": "mean log-mel, for fixed statistics"})
    input_std: float = field(default=1.0, metadata={"help": "its deviation, for fixed statistics"})
    precision: str = field(
        default="float32",
        metadata={
            "help": "'bfloat16': the transformer under autocast, parameters, statistics and "
            "losses in float32; 'auto': that where the device has units for it, else float32; "
            "common.fp16=true overrides it"
        },
    )

    @property
    def patch_shape(self) -> PatchShape:
        """How spectrograms are cut.

        Raises:
            ValueError: the kernel does not divide the mel bins, or the stride differs from it.
        """
        for axis in ("chan", "time"):
            kernel = getattr(self, f"ast_kernel_size_{axis}")
            stride = getattr(self, f"ast_kernel_stride_{axis}")
            if kernel != stride:
                raise ValueError(
                    f"ast_kernel_stride_{axis}={stride} differs from ast_kernel_size_{axis}="
                    f"{kernel}; pretraining wants patches without overlap: set both alike"
                )
        return PatchShape(self.ast_kernel_size_time, self.ast_kernel_size_chan)

    def validate(self, mask_type: str | None = None) -> None:
        """Refuse what cannot work.

        Args:
            mask_type: also check that this masking works with the patches and the ratio.

        Raises:
            ValueError: with the key, its value and what would be right.
        """
        shape = self.patch_shape
        for key in COUNTS:
            count = getattr(self, key)
            if count is None and key in OPTIONAL_COUNTS:
                continue
            if not isinstance(count, int) or count < 1:
                raise ValueError(f"{key}={count!r}; a whole number, at least 1, is needed")
        for key, options in (("input_stats", INPUT_STATS), ("precision", PRECISIONS)):
            if getattr(self, key) not in options:
                raise ValueError(f"{key}={getattr(self, key)!r}; it is one of {', '.join(options)}")
        for key in (
            *("dropout", "attention_dropout", "activation_dropout", "dropout_input"),
            *("encoder_layerdrop", "decoder_layerdrop"),
        ):
            if not 0 <= getattr(self, key) < 1:
                raise ValueError(f"{key}={getattr(self, key)}; a probability from 0 to below 1")
        for part in ("encoder", "decoder"):
            width = getattr(self, f"{part}_embed_dim")
            heads = getattr(self, f"{part}_attention_heads") or self.encoder_attention_heads
            if width % 2 or width % heads:
                raise ValueError(
                    f"{part}_embed_dim={width} is not even or not divided by its "
                    f"{heads} attention heads ({part}_attention_heads)"
                )
        if mask_type is not None:
            check_mask(mask_type, self.random_mask_prob, shape.per_column)

    @classmethod
    def from_mapping(cls, values: Mapping[str, Any]) -> "MaeAstConfig":
        """Take the fields of this class out of a checkpoint's or a preset's dictionary."""
        known = {f.name for f in dataclasses.fields(cls)}
        return cls(**{key: value for key, value in values.items() if key in known})
