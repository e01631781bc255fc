"""Cases of the conformance tests: small configurations of each system, and batches of clips."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from mae_ast.core.frontend.fbank import fbank
from mae_ast.core.frontend.masking import MaskIds
from mae_ast.core.models.encoder import Encoder, MaskedEncoder
from mae_ast.core.models.registry import SYSTEMS, System
from tests.core.vits import FRAME_TOKENS, Clips, with_random_weights
from tests.systems import slow, toy

# Sizes of all cases; a system ignores the keys that it does not have.
SMALL: dict[str, Any] = {
    **{"encoder_layers": 2, "encoder_embed_dim": 24, "encoder_ffn_embed_dim": 40},
    **{"encoder_attention_heads": 3, "position_frames": 128, "num_classes": 5},
    **{"decoder_layers": 2, "decoder_embed_dim": 16, "decoder_ffn_embed_dim": 32},
    **{"decoder_attention_heads": 2, "decoder_global_layers": 1},
    **{"dropout": 0.0, "attention_dropout": 0.0, "random_mask_prob": 0.75},
    **{"input_stats": "fixed", "input_mean": -8.0, "input_std": 4.0},
}
SQUARE_8 = {
    **{"ast_kernel_size_chan": 32, "ast_kernel_stride_chan": 32},
    **{"ast_kernel_size_time": 8, "ast_kernel_stride_time": 8},
}
FIXED_LENGTH = {"input_frames": 128}


# See tests/systems/slow.py.
Predict = Callable[[Any, Tensor, list[int]], list[Tensor | None]]


@dataclass(frozen=True)
class Case:
    """A small configuration of a system."""

    system: System
    fields: Mapping[str, Any] = field(default_factory=dict)
    predict: Predict | None = None

    def config(self, **fields: Any) -> Any:
        return self.system.config.from_mapping(SMALL | dict(self.fields) | fields)

    def build(self, **fields: Any) -> Any:
        """Build the network, with random weights that make errors visible."""
        return with_random_weights(self.system.network(self.config(**fields)))


# The variants of each system, and its slow prediction if it is pretrained by masking.
VARIANTS: dict[str, tuple[Predict | None, dict[str, dict[str, Any]]]] = {
    "mae_ast": (
        slow.mae_ast,
        {
            "patches": {},
            "frames": FRAME_TOKENS,
            "8 x 32": SQUARE_8,
            "pre-norm": {"layer_norm_first": True},
            "equal widths": {"decoder_embed_dim": 24, "decoder_attention_heads": None},
            "batch statistics": {"input_stats": "batch"},
            "fixed length": FIXED_LENGTH,
        },
    ),
    "ssast": (
        slow.ssast,
        {
            "patches": {},
            "frames": FRAME_TOKENS,
            "two passes": {"two_pass": True},
            "CLS only": {"prefix_tokens": 1, "window_type": "povey"},
            "batch statistics": {"input_stats": "batch"},
        },
    ),
    "audio_mae": (
        slow.audio_mae,
        {
            "global": {"decoder_attention": "global"},
            "local": {"decoder_attention": "local"},
            "local, not shifted": {"decoder_attention": "local", "decoder_shift": "none"},
            "local, shifted": {"decoder_attention": "local", "decoder_shift": "both"},
            "hybrid": {"decoder_attention": "hybrid", "normalise_targets": False},
            "fixed length": FIXED_LENGTH | {"decoder_attention": "local"},
        },
    ),
    "ast": (None, {"CLS": {"prefix_tokens": 1}, "two": {}, "tokens": {"pool": "tokens"}}),
    "vit": (None, {"plain": {}, "fixed length": FIXED_LENGTH}),
    "toy": (slow.toy, {"patches": {}, "batch statistics": {"input_stats": "batch"}}),
}
ALL_SYSTEMS = {**SYSTEMS, "toy": toy.SYSTEM}
assert VARIANTS.keys() == ALL_SYSTEMS.keys(), "a system has no cases"
CASES = {
    f"{name}: {variant}": Case(ALL_SYSTEMS[name], fields, predict)
    for name, (predict, variants) in VARIANTS.items()
    for variant, fields in variants.items()
}
MASKED = {n: case for n, case in CASES.items() if issubclass(case.system.network, MaskedEncoder)}
FIRST = {name: CASES[f"{name}: {next(iter(variants))}"] for name, (_, variants) in VARIANTS.items()}

# One of each, and with frame tokens.
SOME = FIRST | {name: CASES[name] for name in ("mae_ast: frames", "ssast: frames")}

all_cases = pytest.mark.parametrize("case", CASES.values(), ids=CASES)
some_cases = pytest.mark.parametrize("case", SOME.values(), ids=SOME)
one_of_each = pytest.mark.parametrize("case", FIRST.values(), ids=FIRST)
masked_cases = pytest.mark.parametrize("case", MASKED.values(), ids=MASKED)
EQUAL, UNEQUAL = (9_000, 9_000), (16_000, 9_000, 2_800)
lengths_of_clips = pytest.mark.parametrize("lengths", [EQUAL, UNEQUAL], ids=["equal", "unequal"])


def system_of(case: Case) -> str:
    """Return the name of a case's system."""
    return next(name for name, system in ALL_SYSTEMS.items() if system is case.system)


@torch.no_grad()
def slow_loss(case: Case, model: Any, clips: Clips) -> float:
    """Compute the loss clip by clip and patch by patch."""
    assert case.predict is not None
    total = 0.0
    for patches, mask in zip(slow_patches(model, clips), clips.masks, strict=True):
        masked = mask.masked_ids[0].tolist()
        target, *heads = case.predict(model, patches, masked)
        reconstruction, classification = heads
        for row in range(len(masked)):
            if reconstruction is not None:
                total += 10 * float((reconstruction[row] - target[row]).square().mean())
            if classification is not None:
                scores = torch.stack([classification[row] @ other for other in target])
                total -= float(scores.log_softmax(0)[row])
    return total


def slow_patches(model: Any, clips: Clips) -> list[Tensor]:
    """Return the normalised patches (N, P) of each clip, without those of padding."""
    config = model.config
    spectra = [fbank(wave[None], config.window_type)[0] for wave in clips.waves]
    mean, var = model.batch_norm.running_mean, model.batch_norm.running_var
    if model.training and config.input_stats == "batch":
        values = torch.cat([spectrum.flatten() for spectrum in spectra]).double()
        mean, var = values.mean().float(), values.var(correction=0).float()
    time, mel = config.ast_kernel_size_time, config.ast_kernel_size_chan
    return [
        torch.stack(
            [
                0.5 * ((spectrum[t : t + time, f : f + mel] - mean) / (var + 1e-5).sqrt()).flatten()
                for t in range(0, len(spectrum) - time + 1, time)
                for f in range(0, 128, mel)
            ]
        )
        for spectrum in spectra
    ]


def hidden_places(model: Encoder, mask: MaskIds, num_frames: int) -> Tensor:
    """Return the values (B, T, 128) bool of a spectrogram that are in masked patches."""
    shape = model.patch_shape
    along_time, along_mel = shape.grid(num_frames)
    hidden = torch.zeros(len(mask.masked_ids), along_time * along_mel, dtype=torch.bool)
    hidden = hidden.scatter(1, mask.masked_ids, True).view(-1, along_time, along_mel)
    return hidden.repeat_interleave(shape.time, 1).repeat_interleave(shape.mel, 2)


def names_without_gradient(model: nn.Module) -> list[str]:
    """Return the trained parameters whose gradient is missing, zero or not finite.

    Biases of keys are omitted: they shift all scores of a query equally, and have no effect.
    """
    return [
        name
        for name, value in model.named_parameters()
        if value.requires_grad
        and not name.endswith("k_proj.bias")
        and (value.grad is None or not value.grad.any() or not value.grad.isfinite().all())
    ]
