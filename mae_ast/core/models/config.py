"""What describes a MAE-AST model: names, defaults and help, once, for programs and presets.

A plain dataclass; the fairseq adapter inherits it, and checkpoints carry it as a dictionary.
"""

# No postponed annotations here: fairseq reads the types of the fields.
import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar, Optional, TypeVar

from mae_ast.core.frontend.fbank import WINDOW_POWERS
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


AUDIOSET_MEAN, AUDIOSET_STD = -4.2677393, 4.5689974  # of log-mel with hanning windows

VIT_COUNTS = (
    *("encoder_layers", "encoder_embed_dim", "encoder_ffn_embed_dim", "encoder_attention_heads"),
    *("position_frames", "input_frames"),
)
VIT_PROBABILITIES = ("dropout", "attention_dropout", "activation_dropout", "encoder_layerdrop")

C = TypeVar("C", bound="VitConfig")


# Optional[...] rather than X | None: the configuration library behind fairseq reads these types.
@dataclass
class VitArchitecture:
    """The network that AST and SSAST share: a pre-norm ViT on patches of a log-mel spectrogram."""

    ast_kernel_size_chan: int = field(default=16, metadata={"help": "mel bins of a patch"})
    ast_kernel_size_time: int = field(default=16, metadata={"help": "10 ms frames of a patch"})
    ast_kernel_stride_chan: int = field(
        default=16,
        metadata={"help": "mel bins from a patch to the next; less than its size: overlap"},
    )
    ast_kernel_stride_time: int = field(
        default=16,
        metadata={"help": "frames from a patch to the next; less than its size: overlap"},
    )
    position_frames: int = field(
        default=1024,
        metadata={
            "help": "frames of which the learned positions are a grid; shorter clips get its "
            "middle, longer ones get it stretched"
        },
    )
    input_frames: Optional[int] = field(  # noqa: UP045
        default=None,
        metadata={
            "help": "cut or zero-pad each clip to so many frames and attend to all of them, as "
            "published weights were trained; default: a clip's own frames only"
        },
    )
    prefix_tokens: int = field(
        default=2, metadata={"help": "1: CLS; 2: CLS and distillation token, as DeiT distilled"}
    )

    encoder_layers: int = field(default=12, metadata={"help": "layers of the encoder"})
    encoder_embed_dim: int = field(default=768, metadata={"help": "width of the encoder"})
    encoder_ffn_embed_dim: int = field(
        default=3072, metadata={"help": "hidden width of the encoder's feed-forward blocks"}
    )
    encoder_attention_heads: int = field(
        default=12, metadata={"help": "attention heads of the encoder"}
    )
    layer_norm_eps: float = field(
        default=1e-6,
        metadata={"help": "epsilon of the encoder's layer norms; Hugging Face's AST has 1e-12"},
    )
    window_type: str = field(
        default="hanning", metadata={"help": "window of the filterbank: 'hanning' or 'povey'"}
    )


@dataclass
class VitConfig(VitArchitecture):
    """The encoder that AST and SSAST share: its network, regularisation, and input statistics."""

    dropout: float = field(default=0.0, metadata={"help": "dropout in the transformer"})
    attention_dropout: float = field(default=0.0, metadata={"help": "dropout of attention weights"})
    activation_dropout: float = field(
        default=0.0, metadata={"help": "dropout after the activation in feed-forward blocks"}
    )
    encoder_layerdrop: float = field(
        default=0.0, metadata={"help": "probability of skipping a layer in a training step"}
    )

    input_stats: str = field(
        default="fixed",
        metadata={
            "help": "'fixed': normalise by input_mean and input_std ('mae-ast stats MANIFEST' "
            "computes them); 'batch': by each batch's mean and deviation, and track them"
        },
    )
    input_mean: float = field(
        default=AUDIOSET_MEAN, metadata={"help": "mean log-mel; default: AudioSet's"}
    )
    input_std: float = field(
        default=AUDIOSET_STD, metadata={"help": "its deviation; default: AudioSet's"}
    )
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
            ValueError: the kernel does not divide the mel bins, or a stride leaves gaps.
        """
        return PatchShape(
            self.ast_kernel_size_time,
            self.ast_kernel_size_chan,
            self.ast_kernel_stride_time,
            self.ast_kernel_stride_chan,
        )

    @property
    def position_grid(self) -> tuple[int, int]:
        """Learned positions along time and along mel."""
        return self.patch_shape.grid(self.position_frames)

    def validate(self) -> None:
        """Refuse what cannot work.

        Raises:
            ValueError: with the key, its value and what would be right.
        """
        for key in VIT_COUNTS:
            count = getattr(self, key)
            if count is None and key == "input_frames":
                continue
            if not isinstance(count, int) or count < 1:
                raise ValueError(f"{key}={count!r}; a whole number, at least 1, is needed")
        for axis in ("chan", "time"):
            stride = getattr(self, f"ast_kernel_stride_{axis}")
            if stride < 1:
                raise ValueError(f"ast_kernel_stride_{axis}={stride}; at least 1 is needed")
        for key in ("position_frames", "input_frames"):
            frames = getattr(self, key)
            if frames is not None and frames < self.patch_shape.time:
                raise ValueError(
                    f"{key}={frames} is less than one patch of ast_kernel_size_time="
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
                raise ValueError(f"{key}={getattr(self, key)!r}; it is one of {listed}")
        for key in VIT_PROBABILITIES:
            if not 0 <= getattr(self, key) < 1:
                raise ValueError(f"{key}={getattr(self, key)}; a probability from 0 to below 1")
        if not self.layer_norm_eps > 0:
            raise ValueError(f"layer_norm_eps={self.layer_norm_eps}; it must be positive")
        if self.encoder_embed_dim % self.encoder_attention_heads:
            raise ValueError(
                f"encoder_embed_dim={self.encoder_embed_dim} is not divided by its "
                f"{self.encoder_attention_heads} attention heads (encoder_attention_heads)"
            )

    def check_no_overlap(self) -> None:
        """Refuse patches that overlap, for pretraining.

        Raises:
            ValueError: a stride differs from the patches' size.
        """
        for axis in ("chan", "time"):
            size = getattr(self, f"ast_kernel_size_{axis}")
            stride = getattr(self, f"ast_kernel_stride_{axis}")
            if size != stride:
                raise ValueError(
                    f"ast_kernel_stride_{axis}={stride} differs from ast_kernel_size_{axis}="
                    f"{size}; pretraining wants patches without overlap: set both alike"
                )

    @classmethod
    def from_mapping(cls: type[C], values: Mapping[str, Any]) -> C:
        """Take the fields of this class out of a checkpoint's or a preset's dictionary."""
        known = {f.name for f in dataclasses.fields(cls)}
        return cls(**{key: value for key, value in values.items() if key in known})


def hidden_share(default: float) -> Any:
    """The field ``random_mask_prob``, whose default is each system's own."""
    return field(
        default=default,
        metadata={"help": "fraction of patches hidden; for retain_spans the span density"},
    )


@dataclass
class MaskedVitConfig(VitConfig):
    """One of the family that is pretrained, and how; that wants patches without overlap."""

    random_mask_prob: float = hidden_share(0.75)
    mask_length: int = field(default=10, metadata={"help": "tokens of a span in retain_spans"})

    def validate(self, mask_type: Optional[str] = None) -> None:  # noqa: UP045
        """Refuse what cannot work.

        Args:
            mask_type: also check that pretraining with this masking works.

        Raises:
            ValueError: with the key, its value and what would be right.
        """
        super().validate()
        if not isinstance(self.mask_length, int) or self.mask_length < 1:
            raise ValueError(f"mask_length={self.mask_length!r}; a whole number, at least 1")
        if mask_type is not None:
            self.check_no_overlap()
            check_mask(mask_type, self.random_mask_prob, self.patch_shape.per_column)


@dataclass
class SsastConfig(MaskedVitConfig):
    """SSAST: the encoder, and how it is pretrained."""

    random_mask_prob: float = hidden_share(0.78125)  # 400 of 512 patches, as published
    two_pass: bool = field(
        default=False,
        metadata={
            "help": "a pass through the encoder for each loss, as SSAST's authors did; the same "
            "losses at twice the cost"
        },
    )


POOLS = ("prefix", "tokens")


@dataclass
class AstArchitecture(VitArchitecture):
    """AST's network: patches overlap."""

    ast_kernel_stride_chan: int = field(
        default=10, metadata={"help": "mel bins from a patch to the next"}
    )
    ast_kernel_stride_time: int = field(
        default=10, metadata={"help": "frames from a patch to the next"}
    )


@dataclass
class AstConfig(AstArchitecture, VitConfig):
    """AST: the encoder with overlapping patches, and the classifier on it."""

    num_classes: int = field(default=527, metadata={"help": "outputs; AudioSet has 527 classes"})
    pool: str = field(
        default="prefix",
        metadata={
            "help": "tokens that the classifier averages: 'prefix' (CLS and distillation token), "
            "or 'tokens' (those of the patches), as SSAST's authors fine-tune"
        },
    )
    head_layer_norm_eps: float = field(
        default=1e-5,
        metadata={"help": "epsilon of the classifier's layer norm; Hugging Face's AST has 1e-12"},
    )

    def validate(self) -> None:
        """Refuse what cannot work.

        Raises:
            ValueError: with the key, its value and what would be right.
        """
        super().validate()
        if not isinstance(self.num_classes, int) or self.num_classes < 1:
            raise ValueError(f"num_classes={self.num_classes!r}; a whole number, at least 1")
        if self.pool not in POOLS:
            raise ValueError(f"pool={self.pool!r}; it is one of {', '.join(POOLS)}")
        if not self.head_layer_norm_eps > 0:
            raise ValueError(f"head_layer_norm_eps={self.head_layer_norm_eps}; it must be positive")


DECODER_ATTENTIONS = ("global", "local", "hybrid")
WINDOW = (4, 4)  # patches along time and along mel
SHIFTS = {"none": (0, 0), "time": (2, 0), "both": (2, 2)}  # of every second local layer


@dataclass
class AudioMaeConfig(MaskedVitConfig):
    """Audio-MAE: the encoder with fixed positions, and the deep, narrow decoder of pretraining."""

    # What others of the family let one choose. Positions are computed, for clips of any length;
    # those of published files are a table of so many frames.
    prefix_tokens: ClassVar[int] = 1  # type: ignore[misc]
    position_frames: ClassVar[int] = 1024  # type: ignore[misc]

    decoder_layers: int = field(
        default=16, metadata={"help": "layers of the decoder; 0: no decoder, the encoder alone"}
    )
    decoder_embed_dim: int = field(default=512, metadata={"help": "width of the decoder"})
    decoder_ffn_embed_dim: int = field(
        default=2048, metadata={"help": "hidden width of the decoder's feed-forward blocks"}
    )
    decoder_attention_heads: int = field(
        default=16, metadata={"help": "attention heads of the decoder"}
    )
    decoder_attention: str = field(
        default="local",
        metadata={
            "help": "'global'; 'local': within windows of 4 x 4 patches; 'hybrid': local, and "
            "global in the last decoder_global_layers"
        },
    )
    decoder_shift: str = field(
        default="time",
        metadata={
            "help": "how windows of every second local layer are shifted: 'time': by 2 patches "
            "along time; 'both': along time and mel; 'none'"
        },
    )
    decoder_global_layers: int = field(
        default=4, metadata={"help": "global layers at the end of a hybrid decoder"}
    )
    normalise_targets: bool = field(
        default=True,
        metadata={"help": "predict each patch less its mean, over its deviation"},
    )
    random_mask_prob: float = hidden_share(0.8)

    @property
    def shifts(self) -> tuple[Optional[tuple[int, int]], ...]:  # noqa: UP045
        """For each layer of the decoder where its windows begin; ``None``: it is global."""
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
        """Refuse what cannot work.

        Args:
            mask_type: also check that pretraining with this masking works.

        Raises:
            ValueError: with the key, its value and what would be right.
        """
        super().validate(mask_type)
        for key in ("decoder_embed_dim", "decoder_ffn_embed_dim", "decoder_attention_heads"):
            if not isinstance(getattr(self, key), int) or getattr(self, key) < 1:
                raise ValueError(f"{key}={getattr(self, key)!r}; a whole number, at least 1")
        if not isinstance(self.decoder_layers, int) or self.decoder_layers < 0:
            raise ValueError(f"decoder_layers={self.decoder_layers!r}; a whole number, at least 0")
        for key, known in (("decoder_attention", DECODER_ATTENTIONS), ("decoder_shift", SHIFTS)):
            if getattr(self, key) not in known:
                raise ValueError(f"{key}={getattr(self, key)!r}; it is one of {', '.join(known)}")
        if self.decoder_attention == "hybrid" and not (
            0 < self.decoder_global_layers < self.decoder_layers
        ):
            raise ValueError(
                f"decoder_global_layers={self.decoder_global_layers} of {self.decoder_layers} "
                "leaves no hybrid; at least one layer is global and one local"
            )
        for part in ("encoder", "decoder"):
            width, heads = (
                getattr(self, f"{part}_{of}") for of in ("embed_dim", "attention_heads")
            )
            if width % 4 or width % heads:
                raise ValueError(
                    f"{part}_embed_dim={width} is not divided by 4 (two sines and two cosines a "
                    f"position) or by its {heads} attention heads ({part}_attention_heads)"
                )
        if mask_type is not None and self.decoder_layers == 0:
            raise ValueError("decoder_layers=0: there is nothing to pretrain with; 16 is usual")
