"""Model configurations of MAE-AST, SSAST, AST and Audio-MAE: keys, defaults and help texts.

These are plain dataclasses. The fairseq adapters inherit from them, and checkpoints store them as
dictionaries.
"""

# No postponed annotations here: fairseq reads the types of the fields at run time.
import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar, Optional, TypeVar

from mae_ast.core.frontend.fbank import WINDOW_POWERS
from mae_ast.core.frontend.masking import check_mask
from mae_ast.core.frontend.patches import PatchShape
from mae_ast.core.nn.precision import PRECISIONS

INPUT_STATS = ("batch", "fixed")
MASK_RATIO_HELP = (
    "fraction of patches to hide, between 0 and 1; with mask_type retain_spans, the span density "
    "(span starts per token times mask_length)"
)
OPTIONAL_COUNTS = ("decoder_ffn_embed_dim", "decoder_attention_heads")
COUNTS = (
    *("encoder_layers", "encoder_embed_dim", "encoder_ffn_embed_dim", "encoder_attention_heads"),
    *("decoder_layers", "decoder_embed_dim", "mask_length", *OPTIONAL_COUNTS),
)


# Optional[...] instead of X | None: the configuration library of fairseq reads these types.
@dataclass
class MaeAstConfig:
    """Configuration of MAE-AST; its fields are the keys of ``model.*``."""

    # Fixed here, configurable in the other systems.
    window_type: ClassVar[str] = "povey"
    input_frames: ClassVar[Optional[int]] = None  # noqa: UP045  (clips of any length)

    ast_kernel_size_chan: int = field(
        default=16, metadata={"help": "height of a patch in mel bins; must divide 128"}
    )
    ast_kernel_size_time: int = field(
        default=16, metadata={"help": "length of a patch in 10 ms frames"}
    )
    ast_kernel_stride_chan: int = field(
        default=16,
        metadata={
            "help": "mel bins between the starts of adjacent patches; must equal "
            "ast_kernel_size_chan, since patches do not overlap in pretraining"
        },
    )
    ast_kernel_stride_time: int = field(
        default=16,
        metadata={
            "help": "10 ms frames between the starts of successive patches; must equal "
            "ast_kernel_size_time, since patches do not overlap in pretraining"
        },
    )

    encoder_layers: int = field(default=12, metadata={"help": "number of encoder layers"})
    encoder_embed_dim: int = field(
        default=768, metadata={"help": "width of the encoder (embedding dimension)"}
    )
    encoder_ffn_embed_dim: int = field(
        default=3072, metadata={"help": "hidden width of the encoder's feed-forward blocks"}
    )
    encoder_attention_heads: int = field(
        default=12, metadata={"help": "number of attention heads in the encoder"}
    )
    decoder_layers: int = field(default=2, metadata={"help": "number of decoder layers"})
    decoder_embed_dim: int = field(
        default=768, metadata={"help": "width of the decoder (embedding dimension)"}
    )
    decoder_ffn_embed_dim: Optional[int] = field(  # noqa: UP045
        default=None,
        metadata={
            "help": "hidden width of the decoder's feed-forward blocks; default: "
            "encoder_ffn_embed_dim"
        },
    )
    decoder_attention_heads: Optional[int] = field(  # noqa: UP045
        default=None,
        metadata={
            "help": "number of attention heads in the decoder; default: encoder_attention_heads"
        },
    )
    layer_norm_first: bool = field(
        default=False, metadata={"help": "use pre-norm instead of post-norm transformer layers"}
    )

    dropout: float = field(
        default=0.1,
        metadata={"help": "dropout probability of the residual branches of encoder and decoder"},
    )
    attention_dropout: float = field(
        default=0.1, metadata={"help": "dropout probability of the attention weights"}
    )
    activation_dropout: float = field(
        default=0.0,
        metadata={"help": "dropout probability after the activation in the feed-forward blocks"},
    )
    dropout_input: float = field(
        default=0.0,
        metadata={
            "help": "dropout probability of the patch tokens before position embeddings are added; "
            "applied in pretraining only"
        },
    )
    encoder_layerdrop: float = field(
        default=0.0,
        metadata={
            "help": "probability of skipping an encoder layer in a training step (layerdrop)"
        },
    )
    decoder_layerdrop: float = field(
        default=0.0,
        metadata={
            "help": "probability of skipping a decoder layer in a training step; usually 0, since "
            "the decoder is shallow"
        },
    )

    random_mask_prob: float = field(default=0.75, metadata={"help": MASK_RATIO_HELP})
    mask_length: int = field(
        default=10,
        metadata={"help": "length of a span in tokens; used with mask_type retain_spans"},
    )

    input_stats: str = field(
        default="batch",
        metadata={
            "help": "statistics that normalise the log-mel input: 'batch': those of each training "
            "batch, tracked for evaluation; 'fixed': input_mean and input_std, which "
            "'mae-ast stats MANIFEST' computes"
        },
    )
    input_mean: float = field(
        default=0.0,
        metadata={
            "help": "mean of the log-mel values (natural log); with input_stats=batch, the initial "
            "value of the running mean"
        },
    )
    input_std: float = field(
        default=1.0,
        metadata={
            "help": "std of the log-mel values (natural log); with input_stats=batch, the initial "
            "value of the running std"
        },
    )
    precision: str = field(
        default="float32",
        metadata={
            "help": "dtype of the transformer: 'float32'; 'bfloat16': autocast, with parameters, "
            "input statistics and losses in float32; 'auto': bfloat16 if the device supports it in "
            "hardware, else float32; common.fp16=true takes precedence"
        },
    )

    @property
    def patch_shape(self) -> PatchShape:
        """Size of the patches.

        Raises:
            ValueError: ``ast_kernel_size_chan`` does not divide the 128 mel bins, or a stride
                differs from the size.
        """
        for axis in ("chan", "time"):
            kernel = getattr(self, f"ast_kernel_size_{axis}")
            stride = getattr(self, f"ast_kernel_stride_{axis}")
            if kernel != stride:
                raise ValueError(
                    f"ast_kernel_stride_{axis}={stride} differs from ast_kernel_size_{axis}="
                    f"{kernel}; must be equal, since patches must not overlap in pretraining"
                )
        return PatchShape(self.ast_kernel_size_time, self.ast_kernel_size_chan)

    def validate(self, mask_type: str | None = None) -> None:
        """Check the values of all fields.

        Args:
            mask_type: masking strategy; if given, also check that it works with the patches and the
                mask ratio.

        Raises:
            ValueError: a value is invalid; the message names the key, the value and what is valid.
        """
        shape = self.patch_shape
        for key in COUNTS:
            count = getattr(self, key)
            if count is None and key in OPTIONAL_COUNTS:
                continue
            if not isinstance(count, int) or count < 1:
                raise ValueError(f"{key}={count!r}; must be an integer >= 1")
        for key, options in (("input_stats", INPUT_STATS), ("precision", PRECISIONS)):
            if getattr(self, key) not in options:
                raise ValueError(
                    f"{key}={getattr(self, key)!r}; must be one of {', '.join(options)}"
                )
        for key in (
            *("dropout", "attention_dropout", "activation_dropout", "dropout_input"),
            *("encoder_layerdrop", "decoder_layerdrop"),
        ):
            if not 0 <= getattr(self, key) < 1:
                raise ValueError(
                    f"{key}={getattr(self, key)}; must be a probability from 0 to below 1"
                )
        for part in ("encoder", "decoder"):
            width = getattr(self, f"{part}_embed_dim")
            heads = getattr(self, f"{part}_attention_heads") or self.encoder_attention_heads
            if width % 2 or width % heads:
                raise ValueError(
                    f"{part}_embed_dim={width}; must be even and divisible by the number of "
                    f"attention heads ({part}_attention_heads={heads})"
                )
        if mask_type is not None:
            check_mask(mask_type, self.random_mask_prob, shape.per_column)

    @classmethod
    def from_mapping(cls, values: Mapping[str, Any]) -> "MaeAstConfig":
        """Build the configuration from a checkpoint's or a preset's mapping; ignore other keys."""
        known = {f.name for f in dataclasses.fields(cls)}
        return cls(**{key: value for key, value in values.items() if key in known})


AUDIOSET_MEAN, AUDIOSET_STD = -4.2677393, 4.5689974  # log-mel statistics with hanning windows

VIT_COUNTS = (
    *("encoder_layers", "encoder_embed_dim", "encoder_ffn_embed_dim", "encoder_attention_heads"),
    *("position_frames", "input_frames"),
)
VIT_PROBABILITIES = ("dropout", "attention_dropout", "activation_dropout", "encoder_layerdrop")

C = TypeVar("C", bound="VitConfig")


# Optional[...] instead of X | None: the configuration library of fairseq reads these types.
@dataclass
class VitArchitecture:
    """Architecture shared by SSAST, AST and Audio-MAE: a pre-norm ViT on log-mel patches."""

    ast_kernel_size_chan: int = field(
        default=16, metadata={"help": "height of a patch in mel bins"}
    )
    ast_kernel_size_time: int = field(
        default=16, metadata={"help": "length of a patch in 10 ms frames"}
    )
    ast_kernel_stride_chan: int = field(
        default=16,
        metadata={
            "help": "mel bins between the starts of adjacent patches; less than "
            "ast_kernel_size_chan: patches overlap"
        },
    )
    ast_kernel_stride_time: int = field(
        default=16,
        metadata={
            "help": "10 ms frames between the starts of successive patches; less than "
            "ast_kernel_size_time: patches overlap"
        },
    )
    position_frames: int = field(
        default=1024,
        metadata={
            "help": "length of the learned position grid in 10 ms frames; shorter clips use its "
            "centre, longer ones interpolate it"
        },
    )
    input_frames: Optional[int] = field(  # noqa: UP045
        default=None,
        metadata={
            "help": "crop or zero-pad each clip to this number of 10 ms frames and attend to all "
            "of them, as in the training of published weights; default: clips of any length, "
            "without attention to padding"
        },
    )
    prefix_tokens: int = field(
        default=2,
        metadata={
            "help": "number of prefix tokens: 1: CLS; 2: CLS and the distillation token of DeiT"
        },
    )

    encoder_layers: int = field(default=12, metadata={"help": "number of encoder layers"})
    encoder_embed_dim: int = field(
        default=768, metadata={"help": "width of the encoder (embedding dimension)"}
    )
    encoder_ffn_embed_dim: int = field(
        default=3072, metadata={"help": "hidden width of the encoder's feed-forward blocks"}
    )
    encoder_attention_heads: int = field(
        default=12, metadata={"help": "number of attention heads in the encoder"}
    )
    layer_norm_eps: float = field(
        default=1e-6,
        metadata={"help": "epsilon of the encoder's layer norms; 1e-12 in Hugging Face's AST"},
    )
    window_type: str = field(
        default="hanning", metadata={"help": "window of the filterbank: 'hanning' or 'povey'"}
    )


@dataclass
class VitConfig(VitArchitecture):
    """Encoder shared by SSAST, AST and Audio-MAE: architecture, dropout, input statistics."""

    dropout: float = field(
        default=0.0,
        metadata={"help": "dropout probability of the residual branches of the encoder"},
    )
    attention_dropout: float = field(
        default=0.0, metadata={"help": "dropout probability of the attention weights"}
    )
    activation_dropout: float = field(
        default=0.0,
        metadata={"help": "dropout probability after the activation in the feed-forward blocks"},
    )
    encoder_layerdrop: float = field(
        default=0.0,
        metadata={
            "help": "probability of skipping an encoder layer in a training step (layerdrop)"
        },
    )

    input_stats: str = field(
        default="fixed",
        metadata={
            "help": "statistics that normalise the log-mel input: 'fixed': input_mean and "
            "input_std, which 'mae-ast stats MANIFEST' computes; 'batch': those of each training "
            "batch, tracked for evaluation"
        },
    )
    input_mean: float = field(
        default=AUDIOSET_MEAN,
        metadata={
            "help": "mean of the log-mel values (natural log); default: AudioSet's; with "
            "input_stats=batch, the initial value of the running mean"
        },
    )
    input_std: float = field(
        default=AUDIOSET_STD,
        metadata={
            "help": "std of the log-mel values (natural log); default: AudioSet's; with "
            "input_stats=batch, the initial value of the running std"
        },
    )
    precision: str = field(
        default="float32",
        metadata={
            "help": "dtype of the transformer: 'float32'; 'bfloat16': autocast, with parameters, "
            "input statistics and losses in float32; 'auto': bfloat16 if the device supports it in "
            "hardware, else float32; common.fp16=true takes precedence"
        },
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

    @property
    def position_grid(self) -> tuple[int, int]:
        """(T', F'), the grid of learned position embeddings along time and mel."""
        return self.patch_shape.grid(self.position_frames)

    def validate(self) -> None:
        """Check the values of all fields.

        Raises:
            ValueError: a value is invalid; the message names the key, the value and what is valid.
        """
        for key in VIT_COUNTS:
            count = getattr(self, key)
            if count is None and key == "input_frames":
                continue
            if not isinstance(count, int) or count < 1:
                raise ValueError(f"{key}={count!r}; must be an integer >= 1")
        for axis in ("chan", "time"):
            stride = getattr(self, f"ast_kernel_stride_{axis}")
            if stride < 1:
                raise ValueError(f"ast_kernel_stride_{axis}={stride}; must be at least 1")
        for key in ("position_frames", "input_frames"):
            frames = getattr(self, key)
            if frames is not None and frames < self.patch_shape.time:
                raise ValueError(
                    f"{key}={frames}; must be at least one patch, ast_kernel_size_time="
                    f"{self.patch_shape.time} frames"
                )
        options: dict[str, tuple[Any, ...]] = {
            "prefix_tokens": (1, 2),
            "window_type": tuple(WINDOW_POWERS),
            "input_stats": INPUT_STATS,
            "precision": PRECISIONS,
        }
        for key, known in options.items():
            if getattr(self, key) not in known:
                listed = ", ".join(str(value) for value in known)
                raise ValueError(f"{key}={getattr(self, key)!r}; must be one of {listed}")
        for key in VIT_PROBABILITIES:
            if not 0 <= getattr(self, key) < 1:
                raise ValueError(
                    f"{key}={getattr(self, key)}; must be a probability from 0 to below 1"
                )
        if not self.layer_norm_eps > 0:
            raise ValueError(f"layer_norm_eps={self.layer_norm_eps}; must be positive")
        if self.encoder_embed_dim % self.encoder_attention_heads:
            raise ValueError(
                f"encoder_embed_dim={self.encoder_embed_dim}; must be divisible by the number of "
                f"attention heads (encoder_attention_heads={self.encoder_attention_heads})"
            )

    def check_no_overlap(self) -> None:
        """Check that patches do not overlap, as pretraining requires.

        Raises:
            ValueError: a stride differs from the size of the patches.
        """
        for axis in ("chan", "time"):
            size = getattr(self, f"ast_kernel_size_{axis}")
            stride = getattr(self, f"ast_kernel_stride_{axis}")
            if size != stride:
                raise ValueError(
                    f"ast_kernel_stride_{axis}={stride} differs from ast_kernel_size_{axis}="
                    f"{size}; must be equal, since patches must not overlap in pretraining"
                )

    @classmethod
    def from_mapping(cls: type[C], values: Mapping[str, Any]) -> C:
        """Build the configuration from a checkpoint's or a preset's mapping; ignore other keys."""
        known = {f.name for f in dataclasses.fields(cls)}
        return cls(**{key: value for key, value in values.items() if key in known})


def mask_ratio_field(default: float) -> Any:
    """Return the dataclass field ``random_mask_prob`` with a system's own default."""
    return field(default=default, metadata={"help": MASK_RATIO_HELP})


@dataclass
class MaskedVitConfig(VitConfig):
    """Encoder that is pretrained by masking, which requires patches without overlap."""

    random_mask_prob: float = mask_ratio_field(0.75)
    mask_length: int = field(
        default=10,
        metadata={"help": "length of a span in tokens; used with mask_type retain_spans"},
    )

    def validate(self, mask_type: Optional[str] = None) -> None:  # noqa: UP045
        """Check the values of all fields.

        Args:
            mask_type: masking strategy; if given, also check that pretraining with it works.

        Raises:
            ValueError: a value is invalid; the message names the key, the value and what is valid.
        """
        super().validate()
        if not isinstance(self.mask_length, int) or self.mask_length < 1:
            raise ValueError(f"mask_length={self.mask_length!r}; must be an integer >= 1")
        if mask_type is not None:
            self.check_no_overlap()
            check_mask(mask_type, self.random_mask_prob, self.patch_shape.per_column)


@dataclass
class SsastConfig(MaskedVitConfig):
    """Configuration of SSAST."""

    random_mask_prob: float = mask_ratio_field(0.78125)  # 400 of 512 patches, as published
    two_pass: bool = field(
        default=False,
        metadata={
            "help": "run the encoder once per loss, as in the original SSAST implementation; gives "
            "the same losses at twice the cost"
        },
    )


POOLS = ("prefix", "tokens")


@dataclass
class AstArchitecture(VitArchitecture):
    """Architecture of AST: the shared ViT with overlapping patches."""

    ast_kernel_stride_chan: int = field(
        default=10,
        metadata={
            "help": "mel bins between the starts of adjacent patches; less than "
            "ast_kernel_size_chan: patches overlap"
        },
    )
    ast_kernel_stride_time: int = field(
        default=10,
        metadata={
            "help": "10 ms frames between the starts of successive patches; less than "
            "ast_kernel_size_time: patches overlap"
        },
    )


@dataclass
class AstConfig(AstArchitecture, VitConfig):
    """Configuration of AST: the encoder with overlapping patches, and its classification head."""

    num_classes: int = field(default=527, metadata={"help": "number of classes; AudioSet has 527"})
    pool: str = field(
        default="prefix",
        metadata={
            "help": "tokens that are averaged for classification: 'prefix': CLS and distillation "
            "token; 'tokens': the patch tokens, as in the fine-tuning of SSAST"
        },
    )
    head_layer_norm_eps: float = field(
        default=1e-5,
        metadata={
            "help": "epsilon of the classification head's layer norm; 1e-12 in Hugging Face's AST"
        },
    )

    def validate(self) -> None:
        """Check the values of all fields.

        Raises:
            ValueError: a value is invalid; the message names the key, the value and what is valid.
        """
        super().validate()
        if not isinstance(self.num_classes, int) or self.num_classes < 1:
            raise ValueError(f"num_classes={self.num_classes!r}; must be an integer >= 1")
        if self.pool not in POOLS:
            raise ValueError(f"pool={self.pool!r}; must be one of {', '.join(POOLS)}")
        if not self.head_layer_norm_eps > 0:
            raise ValueError(f"head_layer_norm_eps={self.head_layer_norm_eps}; must be positive")


DECODER_ATTENTIONS = ("global", "local", "hybrid")
WINDOW = (4, 4)  # patches of an attention window along time and mel
SHIFTS = {"none": (0, 0), "time": (2, 0), "both": (2, 2)}  # window offset, every second local layer


@dataclass
class AudioMaeConfig(MaskedVitConfig):
    """Configuration of Audio-MAE: an encoder with fixed positions and a deep, narrow decoder."""

    # Fixed here, configurable in SSAST and AST. Position embeddings are computed, for clips of any
    # length; published checkpoints contain them as a table for 1024 frames.
    prefix_tokens: ClassVar[int] = 1  # type: ignore[misc]
    position_frames: ClassVar[int] = 1024  # type: ignore[misc]

    decoder_layers: int = field(
        default=16, metadata={"help": "number of decoder layers; 0: encoder only"}
    )
    decoder_embed_dim: int = field(
        default=512, metadata={"help": "width of the decoder (embedding dimension)"}
    )
    decoder_ffn_embed_dim: int = field(
        default=2048, metadata={"help": "hidden width of the decoder's feed-forward blocks"}
    )
    decoder_attention_heads: int = field(
        default=16, metadata={"help": "number of attention heads in the decoder"}
    )
    decoder_attention: str = field(
        default="local",
        metadata={
            "help": "attention of the decoder: 'global'; 'local': within windows of 4 x 4 patches; "
            "'hybrid': local, except for the last decoder_global_layers layers, which are global"
        },
    )
    decoder_shift: str = field(
        default="time",
        metadata={
            "help": "shift of the attention windows in every second local decoder layer: 'time': 2 "
            "patches along time; 'both': 2 patches along time and mel; 'none': no shift"
        },
    )
    decoder_global_layers: int = field(
        default=4,
        metadata={
            "help": "number of layers with global attention at the end of the decoder; used with "
            "decoder_attention=hybrid"
        },
    )
    normalise_targets: bool = field(
        default=True,
        metadata={"help": "normalise each target patch by its own mean and std"},
    )
    random_mask_prob: float = mask_ratio_field(0.8)

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

    def validate(self, mask_type: Optional[str] = None) -> None:  # noqa: UP045
        """Check the values of all fields.

        Args:
            mask_type: masking strategy; if given, also check that pretraining with it works.

        Raises:
            ValueError: a value is invalid; the message names the key, the value and what is valid.
        """
        super().validate(mask_type)
        for key in ("decoder_embed_dim", "decoder_ffn_embed_dim", "decoder_attention_heads"):
            if not isinstance(getattr(self, key), int) or getattr(self, key) < 1:
                raise ValueError(f"{key}={getattr(self, key)!r}; must be an integer >= 1")
        if not isinstance(self.decoder_layers, int) or self.decoder_layers < 0:
            raise ValueError(f"decoder_layers={self.decoder_layers!r}; must be an integer >= 0")
        for key, known in (("decoder_attention", DECODER_ATTENTIONS), ("decoder_shift", SHIFTS)):
            if getattr(self, key) not in known:
                raise ValueError(f"{key}={getattr(self, key)!r}; must be one of {', '.join(known)}")
        if self.decoder_attention == "hybrid" and not (
            0 < self.decoder_global_layers < self.decoder_layers
        ):
            raise ValueError(
                f"decoder_global_layers={self.decoder_global_layers} with decoder_layers="
                f"{self.decoder_layers}; decoder_attention=hybrid needs at least one global and "
                "one local layer"
            )
        for part in ("encoder", "decoder"):
            width, heads = (
                getattr(self, f"{part}_{key}") for key in ("embed_dim", "attention_heads")
            )
            if width % 4 or width % heads:
                raise ValueError(
                    f"{part}_embed_dim={width}; must be divisible by 4 (for sinusoidal positions "
                    f"on a grid) and by the number of attention heads "
                    f"({part}_attention_heads={heads})"
                )
        if mask_type is not None and self.decoder_layers == 0:
            raise ValueError("decoder_layers=0; pretraining needs a decoder (16 layers are usual)")
