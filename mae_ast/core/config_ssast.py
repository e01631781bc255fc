"""What describes a SSAST model: the keys of ``model.*``."""

# No postponed annotations here: fairseq reads the types of the fields.
from dataclasses import dataclass, field
from typing import Optional

from mae_ast.core.config_vit import VitConfig
from mae_ast.core.masking import check_mask


@dataclass
class SsastConfig(VitConfig):
    """SSAST: the encoder, and how it is pretrained. Pretraining wants patches without overlap."""

    random_mask_prob: float = field(
        default=0.78125,  # 400 of 512 patches, as published
        metadata={"help": "fraction of patches hidden; for retain_spans the span density"},
    )
    mask_length: int = field(default=10, metadata={"help": "tokens of a span in retain_spans"})
    two_pass: bool = field(
        default=False,
        metadata={
            "help": "a pass through the encoder for each loss, as SSAST's authors did; the same "
            "losses at twice the cost"
        },
    )

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
        if mask_type is None:
            return
        self.check_no_overlap()
        check_mask(mask_type, self.random_mask_prob, self.patch_shape.per_column)
