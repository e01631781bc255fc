"""Model configurations of MAE-AST, SSAST, AST and Audio-MAE: keys, defaults, checks, help texts.

They are composed of mixins, one per aspect of a model. The fairseq adapters inherit from the same
dataclasses, and checkpoints store them as dictionaries.
"""

# No postponed annotations here: fairseq reads the types of the fields at run time.
import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Optional

from typing_extensions import Self

from mae_ast.core.frontend.fbank import WINDOW_POWERS
from mae_ast.core.frontend.masking import check_mask
from mae_ast.core.frontend.patches import PatchShape
from mae_ast.core.nn.precision import PRECISIONS
from mae_ast.core.settings import check_fields, other_default, setting

INPUT_STATS = ("batch", "fixed")
AUDIOSET_MEAN, AUDIOSET_STD = -4.2677393, 4.5689974  # log-mel statistics with hanning windows
DECODER_ATTENTIONS = ("global", "local", "hybrid")
WINDOW = (4, 4)  # patches of an attention window along time and mel
SHIFTS = {"none": (0, 0), "time": (2, 0), "both": (2, 2)}  # window offset, every second local layer
FINETUNING_STRIDES = {16: 10, 2: 1}  # size of a patch along an axis: its stride in fine-tuning
# What the width of a transformer must be a multiple of, for its position embeddings.
WIDTH_MULTIPLES = {"learned": 1, "sinusoidal": 2, "grid": 4}


# Optional[...] instead of X | None: the configuration library of fairseq reads these types.
@dataclass
class PatchConfig:
    """Size and stride of the patches."""

    ast_kernel_size_chan: int = setting(16, help="height of a patch in mel bins")
    ast_kernel_size_time: int = setting(16, help="length of a patch in 10 ms frames")
    ast_kernel_stride_chan: int = setting(
        16,
        help="mel bins between the starts of adjacent patches; less than ast_kernel_size_chan: "
        "patches overlap, which pretraining does not support",
        minimum=1,
    )
    ast_kernel_stride_time: int = setting(
        16,
        help="10 ms frames between the starts of successive patches; less than "
        "ast_kernel_size_time: patches overlap, which pretraining does not support",
        minimum=1,
    )

    @property
    def patch_shape(self) -> PatchShape:
        """Size and stride of the patches.

        Raises:
            ValueError: a stride leaves gaps between patches, or patches do not overlap along mel
                and ``ast_kernel_size_chan`` does not divide the 128 mel bins.
        """
        return PatchShape(
            self.ast_kernel_size_time,
            self.ast_kernel_size_chan,
            self.ast_kernel_stride_time,
            self.ast_kernel_stride_chan,
        )


@dataclass
class TransformerConfig:
    """Size of the encoder."""

    encoder_layers: int = setting(12, help="number of encoder layers", minimum=1)
    encoder_embed_dim: int = setting(
        768, help="width of the encoder (embedding dimension)", minimum=1
    )
    encoder_ffn_embed_dim: int = setting(
        3072, help="hidden width of the encoder's feed-forward blocks", minimum=1
    )
    encoder_attention_heads: int = setting(
        12, help="number of attention heads in the encoder", minimum=1
    )


@dataclass
class RegularisationConfig:
    """Dropout and layerdrop of a model in training."""

    dropout: float = setting(
        0.0, help="dropout probability of the residual branches of all layers", probability=True
    )
    attention_dropout: float = setting(
        0.0, help="dropout probability of the attention weights", probability=True
    )
    activation_dropout: float = setting(
        0.0,
        help="dropout probability after the activation in the feed-forward blocks",
        probability=True,
    )
    encoder_layerdrop: float = setting(
        0.0,
        help="probability of skipping an encoder layer in a training step (layerdrop)",
        probability=True,
    )


@dataclass
class InputConfig:
    """Statistics that normalise the input, and the length that clips are brought to."""

    input_frames: Optional[int] = setting(  # noqa: UP045
        None,
        help="crop or zero-pad each clip to this number of 10 ms frames and attend to all of them, "
        "as in the training of published weights; default: clips of any length, without attention "
        "to padding",
        minimum=1,
    )
    input_stats: str = setting(
        "fixed",
        help="statistics that normalise the log-mel input: 'fixed': input_mean and input_std, "
        "which 'mae-ast stats MANIFEST' computes; 'batch': those of each training batch, tracked "
        "for evaluation",
        choices=INPUT_STATS,
    )
    input_mean: float = setting(
        AUDIOSET_MEAN,
        help="mean of the log-mel values (natural log); with input_stats=batch, the initial value "
        "of the running mean",
    )
    input_std: float = setting(
        AUDIOSET_STD,
        help="std of the log-mel values (natural log); with input_stats=batch, the initial value "
        "of the running std",
        positive=True,
    )


@dataclass
class PrecisionConfig:
    """Dtype of the computation."""

    precision: str = setting(
        "float32",
        help="dtype of the transformer: 'float32'; 'bfloat16': autocast, with parameters, input "
        "statistics and losses in float32; 'auto': bfloat16 if the device supports it in hardware, "
        "else float32; common.fp16=true takes precedence",
        choices=PRECISIONS,
    )


@dataclass
class EncoderConfig(
    PrecisionConfig, InputConfig, RegularisationConfig, TransformerConfig, PatchConfig
):
    """Configuration of an encoder: all that the systems have in common.

    Raises:
        ValueError: a value is invalid; the message names the key, the value and what is valid.
    """

    # Fixed in some systems, fields of others.
    window_type: ClassVar[str] = "hanning"
    positions: ClassVar[str] = "learned"  # or "sinusoidal" (1-D), or "grid" (2-D sinusoids)
    position_frames: ClassVar[int] = 1024
    prefix_tokens: ClassVar[int] = 1
    layer_norm_first: ClassVar[bool] = True
    layer_norm_eps: ClassVar[float] = 1e-6
    dropout_input: ClassVar[float] = 0.0
    pool: ClassVar[str] = "tokens"  # tokens that represent a clip

    def __post_init__(self) -> None:
        check_fields(self)
        for key in ("position_frames", "input_frames"):
            frames = getattr(self, key)
            if frames is not None and frames < self.patch_shape.time:
                raise ValueError(
                    f"{key}={frames}; must be at least one patch, ast_kernel_size_time="
                    f"{self.patch_shape.time} frames"
                )
        self.check_width("encoder", self.encoder_embed_dim, self.encoder_attention_heads)

    @property
    def position_grid(self) -> tuple[int, int]:
        """(T', F'), the grid of learned position embeddings along time and mel."""
        return self.patch_shape.grid(self.position_frames)

    def check_width(self, part: str, width: int, heads: int) -> None:
        """Check that a transformer's width suits its attention heads and position embeddings.

        Args:
            part: "encoder" or "decoder".
            width: its width.
            heads: number of its attention heads.

        Raises:
            ValueError: the width is not divisible as required.
        """
        multiple = WIDTH_MULTIPLES[self.positions]
        if width % multiple or width % heads:
            positions = f"by {multiple} (for sinusoidal positions) and " if multiple > 1 else ""
            raise ValueError(
                f"{part}_embed_dim={width}; must be divisible {positions}by the number of "
                f"attention heads ({part}_attention_heads={heads})"
            )

    @classmethod
    def from_mapping(cls, values: Mapping[str, Any]) -> Self:
        """Build the configuration from a checkpoint's or a preset's mapping; ignore other keys.

        Raises:
            ValueError: a value is invalid.
        """
        known = {f.name for f in dataclasses.fields(cls)}
        return cls(**{key: value for key, value in values.items() if key in known})


@dataclass
class MaskConfig:
    """Masks of pretraining."""

    random_mask_prob: float = setting(
        0.75,
        help="fraction of patches to hide, between 0 and 1; with mask_type retain_spans, the span "
        "density (span starts per token times mask_length)",
    )
    mask_length: int = setting(
        10, help="length of a span in tokens; used with mask_type retain_spans", minimum=1
    )


@dataclass
class PretrainingConfig(MaskConfig, EncoderConfig):
    """Configuration of a system that is pretrained by masking."""

    def check_pretraining(self, mask_type: str) -> None:
        """Check that the model can be pretrained with this type of mask.

        Raises:
            ValueError: patches overlap, or the patches or the mask ratio do not suit the mask.
        """
        for axis in ("chan", "time"):
            size, stride = (getattr(self, f"ast_kernel_{of}_{axis}") for of in ("size", "stride"))
            if size != stride:
                raise ValueError(
                    f"ast_kernel_stride_{axis}={stride} differs from ast_kernel_size_{axis}={size};"
                    " must be equal, since patches must not overlap in pretraining"
                )
        check_mask(mask_type, self.random_mask_prob, self.patch_shape.per_column)


@dataclass
class DecoderConfig(PretrainingConfig):
    """Configuration of a system with a decoder: the size of the decoder."""

    decoder_layers: int = setting(2, help="number of decoder layers", minimum=1)
    decoder_embed_dim: int = setting(
        768, help="width of the decoder (embedding dimension)", minimum=1
    )
    decoder_ffn_embed_dim: Optional[int] = setting(  # noqa: UP045
        None,
        help="hidden width of the decoder's feed-forward blocks; default: encoder_ffn_embed_dim",
        minimum=1,
    )
    decoder_attention_heads: Optional[int] = setting(  # noqa: UP045
        None,
        help="number of attention heads in the decoder; default: encoder_attention_heads",
        minimum=1,
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        self.check_width("decoder", self.decoder_embed_dim, self.decoder_heads)

    @property
    def decoder_heads(self) -> int:
        """Number of attention heads in the decoder."""
        return self.decoder_attention_heads or self.encoder_attention_heads

    @property
    def decoder_ffn_dim(self) -> int:
        """Hidden width of the decoder's feed-forward blocks."""
        return self.decoder_ffn_embed_dim or self.encoder_ffn_embed_dim


@dataclass
class MaeAstConfig(DecoderConfig):
    """Configuration of MAE-AST; its fields are the keys of ``model.*``."""

    window_type: ClassVar[str] = "povey"
    positions: ClassVar[str] = "sinusoidal"
    prefix_tokens: ClassVar[int] = 0
    layer_norm_eps: ClassVar[float] = 1e-5

    layer_norm_first: bool = setting(  # type: ignore[misc]
        False, help="use pre-norm instead of post-norm transformer layers"
    )
    dropout: float = other_default(RegularisationConfig, "dropout", 0.1)
    attention_dropout: float = other_default(RegularisationConfig, "attention_dropout", 0.1)
    dropout_input: float = setting(  # type: ignore[misc]
        0.0,
        help="dropout probability of the patch tokens before position embeddings are added; "
        "applied in pretraining only",
        probability=True,
    )
    decoder_layerdrop: float = setting(
        0.0,
        help="probability of skipping a decoder layer in a training step; usually 0, since the "
        "decoder is shallow",
        probability=True,
    )
    input_stats: str = other_default(InputConfig, "input_stats", "batch")
    input_mean: float = other_default(InputConfig, "input_mean", 0.0)
    input_std: float = other_default(InputConfig, "input_std", 1.0)


@dataclass
class VitArchitecture(TransformerConfig, PatchConfig):
    """Architecture of SSAST's and AST's encoder: a pre-norm ViT with learned positions."""

    position_frames: int = setting(
        1024,
        help="length of the learned position grid in 10 ms frames; shorter clips use its centre, "
        "longer ones interpolate it",
        minimum=1,
    )
    input_frames: Optional[int] = other_default(InputConfig, "input_frames", None)  # noqa: UP045
    prefix_tokens: int = setting(
        2,
        help="number of prefix tokens: 1: CLS; 2: CLS and the distillation token of DeiT",
        choices=(1, 2),
    )
    layer_norm_eps: float = setting(
        1e-6,
        help="epsilon of the encoder's layer norms; 1e-12 in Hugging Face's AST",
        positive=True,
    )
    window_type: str = setting(
        "hanning",
        help="window of the filterbank: 'hanning' or 'povey'",
        choices=tuple(WINDOW_POWERS),
    )


@dataclass
class VitConfig(VitArchitecture, EncoderConfig):
    """Configuration of a ViT encoder, such as SSAST's or AST's without heads."""


@dataclass
class SsastConfig(VitConfig, PretrainingConfig):
    """Configuration of SSAST."""

    random_mask_prob: float = other_default(MaskConfig, "random_mask_prob", 0.78125)  # 400 of 512
    two_pass: bool = setting(
        False,
        help="run the encoder once per loss, as in the original SSAST implementation; gives the "
        "same losses at twice the cost",
    )


@dataclass
class AstArchitecture(VitArchitecture):
    """Architecture of AST: the ViT with overlapping patches."""

    ast_kernel_stride_chan: int = other_default(PatchConfig, "ast_kernel_stride_chan", 10)
    ast_kernel_stride_time: int = other_default(PatchConfig, "ast_kernel_stride_time", 10)


@dataclass
class AstConfig(AstArchitecture, VitConfig):
    """Configuration of AST: the encoder with overlapping patches, and its classification head."""

    num_classes: int = setting(527, help="number of classes; AudioSet has 527", minimum=1)
    pool: str = setting(  # type: ignore[misc]
        "prefix",
        help="tokens that are averaged for classification: 'prefix': CLS and distillation token; "
        "'tokens': the patch tokens, as in the fine-tuning of SSAST",
        choices=("prefix", "tokens"),
    )
    head_layer_norm_eps: float = setting(
        1e-5,
        help="epsilon of the classification head's layer norm; 1e-12 in Hugging Face's AST",
        positive=True,
    )


@dataclass
class AudioMaeConfig(DecoderConfig):
    """Configuration of Audio-MAE: an encoder with fixed positions and a deep, narrow decoder."""

    # Computed for clips of any length; published checkpoints contain a table for 1024 frames.
    positions: ClassVar[str] = "grid"

    layer_norm_eps: float = other_default(VitArchitecture, "layer_norm_eps", 1e-6)  # type: ignore[misc]
    window_type: str = other_default(VitArchitecture, "window_type", "hanning")  # type: ignore[misc]
    decoder_layers: int = setting(16, help="number of decoder layers; 0: encoder only", minimum=0)
    decoder_embed_dim: int = other_default(DecoderConfig, "decoder_embed_dim", 512)
    decoder_ffn_embed_dim: Optional[int] = other_default(  # noqa: UP045
        DecoderConfig, "decoder_ffn_embed_dim", 2048
    )
    decoder_attention_heads: Optional[int] = other_default(  # noqa: UP045
        DecoderConfig, "decoder_attention_heads", 16
    )
    decoder_attention: str = setting(
        "local",
        help="attention of the decoder: 'global'; 'local': within windows of 4 x 4 patches; "
        "'hybrid': local, except for the last decoder_global_layers layers, which are global",
        choices=DECODER_ATTENTIONS,
    )
    decoder_shift: str = setting(
        "time",
        help="shift of the attention windows in every second local decoder layer: 'time': 2 "
        "patches along time; 'both': 2 patches along time and mel; 'none': no shift",
        choices=tuple(SHIFTS),
    )
    decoder_global_layers: int = setting(
        4,
        help="number of layers with global attention at the end of the decoder; used with "
        "decoder_attention=hybrid",
    )
    normalise_targets: bool = setting(
        True, help="normalise each target patch by its own mean and std"
    )
    random_mask_prob: float = other_default(MaskConfig, "random_mask_prob", 0.8)

    def __post_init__(self) -> None:
        super().__post_init__()
        num_global, num_layers = self.decoder_global_layers, self.decoder_layers
        if self.decoder_attention == "hybrid" and not 0 < num_global < num_layers:
            raise ValueError(
                f"decoder_global_layers={num_global} with decoder_layers={num_layers}; "
                "decoder_attention=hybrid needs at least one global and one local layer"
            )

    @property
    def shifts(self) -> tuple[Optional[tuple[int, int]], ...]:  # noqa: UP045
        """Offset of the windows of each decoder layer along time and mel; ``None``: global."""
        num_local = {
            "global": 0,
            "local": self.decoder_layers,
            "hybrid": self.decoder_layers - self.decoder_global_layers,
        }[self.decoder_attention]
        shifted = SHIFTS[self.decoder_shift]
        return tuple(
            None if layer >= num_local else (shifted if layer % 2 else (0, 0))
            for layer in range(self.decoder_layers)
        )

    def check_pretraining(self, mask_type: str) -> None:
        """Check that the model can be pretrained with this type of mask.

        Raises:
            ValueError: there is no decoder; or as the base class.
        """
        super().check_pretraining(mask_type)
        if self.decoder_layers == 0:
            raise ValueError("decoder_layers=0; pretraining needs a decoder (16 layers are usual)")
