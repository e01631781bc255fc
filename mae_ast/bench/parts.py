"""Registry of the parts by name, in the order in which they run."""

from __future__ import annotations

from mae_ast.bench.files import DECODING, LOADING
from mae_ast.bench.kernels import FBANK, MASKS
from mae_ast.bench.setting import Part
from mae_ast.bench.steps import LENGTHS, PACKING, STEPS
from mae_ast.bench.training import TRAINING

PARTS: dict[str, Part] = {
    "masks": MASKS,
    "fbank": FBANK,
    "decoding": DECODING,
    "loading": LOADING,
    "training": TRAINING,
    "steps": STEPS,
    "packing": PACKING,
    "lengths": LENGTHS,
}
