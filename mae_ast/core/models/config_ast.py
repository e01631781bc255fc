"""What describes an AST model: the keys of ``model.*``."""

# No postponed annotations here: fairseq reads the types of the fields.
from dataclasses import dataclass, field

from mae_ast.core.models.config_vit import VitArchitecture, VitConfig

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
