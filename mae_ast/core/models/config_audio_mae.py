"""What describes an Audio-MAE model: the keys of ``model.*``."""

# No postponed annotations here: fairseq reads the types of the fields.
from dataclasses import dataclass, field
from typing import ClassVar, Optional

from mae_ast.core.models.config_vit import MaskedVitConfig, hidden_share

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
