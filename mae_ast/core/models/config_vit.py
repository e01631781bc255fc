"""What describes the AST family (AST, SSAST): names, defaults and help, once.

Plain dataclasses like :class:`mae_ast.core.models.config.MaeAstConfig`, with its keys where they
mean the same; a fairseq adapter inherits them, and checkpoints carry them as dictionaries.
"""

# No postponed annotations here: fairseq reads the types of the fields.
import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Optional, TypeVar

from mae_ast.core.frontend.fbank import WINDOW_POWERS
from mae_ast.core.frontend.masking import check_mask
from mae_ast.core.frontend.patches import PatchShape
from mae_ast.core.models.config import INPUT_STATS
from mae_ast.core.nn.precision import PRECISIONS

AUDIOSET_MEAN, AUDIOSET_STD = -4.2677393, 4.5689974  # of log-mel with hanning windows

COUNTS = (
    *("encoder_layers", "encoder_embed_dim", "encoder_ffn_embed_dim", "encoder_attention_heads"),
    *("position_frames", "input_frames"),
)
PROBABILITIES = ("dropout", "attention_dropout", "activation_dropout", "encoder_layerdrop")

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
        for key in COUNTS:
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
        for key in PROBABILITIES:
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
