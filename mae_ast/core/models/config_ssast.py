"""What describes a SSAST model: the keys of ``model.*``."""

# No postponed annotations here: fairseq reads the types of the fields.
from dataclasses import dataclass, field

from mae_ast.core.models.config_vit import MaskedVitConfig, hidden_share


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
