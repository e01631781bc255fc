"""Memory of the training state on each GPU: weights, gradients and moments, without activations.

With data parallelism (DDP) every GPU holds the whole state. Sharding (FSDP, ZeRO) divides it, at
the price of more communication; it is needed only if the state leaves no room for activations.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

GPU_SIZES_GB = (8, 12, 16, 24, 32, 40, 48, 80, 141)
_MOMENTS_BYTES = 8  # two float32 of Adam; no other optimizer of fairseq keeps more
_PYTORCH_DDP = ("pytorch_ddp", "c10d")


@dataclass(frozen=True)
class StateMemory:
    """Training state of a model on one GPU.

    Args:
        parameters: number of parameters.
        bytes_each: bytes per parameter of each part of the state, by its name.
    """

    parameters: int
    bytes_each: dict[str, int]

    @property
    def bytes_per_parameter(self) -> int:
        """Bytes of the whole state per parameter."""
        return sum(self.bytes_each.values())

    @property
    def gigabytes(self) -> float:
        """Size of the whole state in GB."""
        return self.parameters * self.bytes_per_parameter / 1e9

    @property
    def smallest_gpu(self) -> int | None:
        """Size in GB of the smallest GPU that the state fills to at most a half, if there is one.

        The other half is for activations, which a smaller batch with a larger
        ``optimization.update_freq`` reduces.
        """
        return next((size for size in GPU_SIZES_GB if size >= 2 * self.gigabytes), None)

    def describe(self) -> str:
        """Return size and parts in words."""
        parts = ", ".join(f"{number} {name}" for name, number in self.bytes_each.items())
        return (
            f"{self.gigabytes:.2f} GB: {self.parameters / 1e6:.1f} M parameters x "
            f"{self.bytes_per_parameter} bytes ({parts})"
        )

    def advise(self) -> str:
        """Return whether data parallelism suffices, in words."""
        if self.smallest_gpu is None:
            return (
                "the state fills more than half of the largest GPUs "
                f"({GPU_SIZES_GB[-1]} GB); shard it (FSDP, ZeRO)"
            )
        return (
            "DDP suffices, no sharding (FSDP, ZeRO) is needed: a GPU of "
            f"{self.smallest_gpu} GB keeps half of its memory for activations"
        )


def state_memory(settings: Any, parameters: int, gpus: int) -> StateMemory:
    """Return the state of a run.

    Args:
        settings: all settings of the run.
        parameters: number of parameters of the model.
        gpus: number of GPUs.
    """
    common, training = settings.common, settings.distributed_training
    is_half = common.fp16 or common.bf16  # model.precision=bfloat16 keeps float32 parameters
    width = 2 if is_half else 4
    parts = {"weights": width, "gradients": width}
    has_copies = not (common.memory_efficient_fp16 or common.memory_efficient_bf16)
    if is_half and has_copies:
        parts["float32 copies of both"] = 8
    parts["moments"] = _MOMENTS_BYTES
    has_buckets = training.ddp_backend in _PYTORCH_DDP and not training.gradient_as_bucket_view
    if gpus > 1 and has_buckets:
        parts["buckets of DDP"] = width
    return StateMemory(parameters, parts)
