"""Count the operations and bytes of a training step per clip, on tensors without data.

Operations are those of matrix products in forward and backward, as PyTorch counts them; computing
attention again in the backward is not counted. Bytes are the activations that the forward saves for
the backward, with fused attention, which saves nothing of size N x N. Dropout is not counted.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.autograd.graph import saved_tensors_hooks
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from mae_ast.core.frontend.fbank import NUM_MEL_BINS, num_frames
from mae_ast.core.frontend.masking import MaskIds, mask_strategy
from mae_ast.core.models.losses import info_nce_loss, reconstruction_loss
from mae_ast.core.models.registry import SYSTEMS, system_name

# Bytes per parameter: float32 weights, gradients, and the two moments of AdamW.
OPTIMIZED_BYTES = 16
GRADIENT_BYTES = 4
INFO_NCE_HEAD = "final_proj_classification"
NO_DROPOUT: dict[str, float] = dict.fromkeys(
    (
        *("dropout", "attention_dropout", "activation_dropout", "dropout_input"),
        *("encoder_layerdrop", "decoder_layerdrop"),
    ),
    0.0,
)


@dataclasses.dataclass(frozen=True)
class Activations:
    """Bytes of a clip's activations.

    Args:
        saved: bytes that the forward saves for the backward.
        transient: further bytes that the loss needs temporarily: gradients and exponentials of the
            logits of InfoNCE.
    """

    saved: float
    transient: float


def pretraining_loss(
    model: nn.Module, source: Tensor, mask: MaskIds, lengths: Tensor | None = None
) -> Tensor:
    """Compute 10 MSE + InfoNCE per masked patch, or 10 MSE if the system has no InfoNCE."""
    out = model(source, lengths, mask)
    loss: Tensor = 10 * reconstruction_loss(out.reconstruction, out.target, out.valid)
    if out.classification is not None:
        loss = loss + info_nce_loss(out.classification, out.target, out.valid, out.ends).loss
    return loss / mask.masked_ids.numel()


def draw_mask(config: Any, mask_type: str, num_samples: int, batch: int = 1) -> MaskIds:
    """Draw the mask of clips of ``num_samples`` at 16 kHz."""
    grid = config.patch_shape.grid(num_frames(num_samples))
    strategy = mask_strategy(mask_type, config.mask_length)
    return strategy(batch, grid, config.random_mask_prob)


def count_flops(config: Any, mask_type: str, num_samples: int) -> int:
    """Count the operations of forward and backward of a clip.

    Args:
        config: configuration of a system that is pretrained by masking.
        mask_type: masking strategy.
        num_samples: length of the clip at 16 kHz.
    """
    with (
        _fake_step(config, mask_type, num_samples, 1) as step,
        # Without a fused kernel, all products of attention are counted, and each of them once.
        sdpa_kernel(SDPBackend.MATH),
        FlopCounterMode(display=False) as counter,
    ):
        pretraining_loss(*step).backward()
    return int(counter.get_total_flops())


def count_activations(config: Any, mask_type: str, num_samples: int, half: bool) -> Activations:
    """Count the bytes of a clip's activations.

    Args:
        config, mask_type, num_samples: see :func:`count_flops`.
        half: whether the transformers run in half precision.
    """
    # Two clips less one: casts of weights are saved once for a batch.
    one, two = (_saved(config, mask_type, num_samples, half, batch) for batch in (1, 2))
    with torch.device("meta"):
        has_info_nce = hasattr(SYSTEMS[system_name(config)].network(config), INFO_NCE_HEAD)
    num_masked = draw_mask(config, mask_type, num_samples).masked_ids.shape[1]
    return Activations(two - one, 8.0 * num_masked**2 if has_info_nce else 0.0)


def peak_bytes(num_parameters: int, each: Activations, batch: int, half: bool) -> float:
    """Estimate the peak memory of a step in bytes.

    The peak is reached at the start of the backward, or at its end, when all gradients exist. Under
    autocast, half-precision copies of the weights are saved for the backward, too.
    """
    copies = 2 if half else 0
    start = float(num_parameters * (OPTIMIZED_BYTES - GRADIENT_BYTES + copies))
    start += batch * (each.saved + each.transient)
    return max(start, float(num_parameters * OPTIMIZED_BYTES))


def _saved(config: Any, mask_type: str, num_samples: int, half: bool, batch: int) -> int:
    """Count the bytes of all tensors that a forward saves, except parameters and input."""
    kept: dict[int, torch.UntypedStorage] = {}

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        kept[storage._cdata] = storage  # held, so that no other storage gets its address
        return tensor

    with _fake_step(config, mask_type, num_samples, batch) as (model, source, mask):
        given = (*model.parameters(), *model.buffers(), source, mask.visible_ids, mask.masked_ids)
        # In float16, as on a GPU; in bfloat16, attention on a CPU does without the fused kernel.
        with (
            sdpa_kernel([SDPBackend.FLASH_ATTENTION, SDPBackend.MATH]),
            torch.autocast("cpu", torch.float16, enabled=half),
            saved_tensors_hooks(keep, lambda tensor: tensor),
        ):
            pretraining_loss(model, source, mask)
    for tensor in given:
        kept.pop(tensor.untyped_storage()._cdata, None)
    return sum(storage.nbytes() for storage in kept.values())


@contextmanager
def _fake_step(
    config: Any, mask_type: str, num_samples: int, batch: int
) -> Iterator[tuple[nn.Module, Tensor, MaskIds]]:
    """Build model, log-mel input and mask; operations within the context compute shapes only."""
    own = {field.name for field in dataclasses.fields(config)}
    changes: dict[str, Any] = {key: value for key, value in NO_DROPOUT.items() if key in own}
    config = dataclasses.replace(config, **changes, precision="float32")
    mask = draw_mask(config, mask_type, num_samples, batch)
    with FakeTensorMode() as mode:
        # In torch 2.14 it draws until the values lie within its bounds; here there are no values.
        with patch.object(nn.init, "trunc_normal_", lambda tensor, **_: tensor):
            model = SYSTEMS[system_name(config)].network(config).train()
        source = torch.empty(batch, num_frames(num_samples), NUM_MEL_BINS)
        fake = MaskIds(mode.from_tensor(mask.visible_ids), mode.from_tensor(mask.masked_ids))
        yield model, source, fake
