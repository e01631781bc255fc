"""Read weights from ``torch.save`` and safetensors files without executing code from them."""

from __future__ import annotations

import os
import re
import warnings
from argparse import Namespace
from contextlib import suppress
from pathlib import Path
from typing import Any
from zipfile import is_zipfile

import numpy as np
import torch
from numpy._core import multiarray
from torch import Tensor
from torch.serialization import get_unsafe_globals_in_checkpoint, safe_globals

from mae_ast.core.checkpoints.state_dict import listing
from mae_ast.core.checkpoints.wrappers import unwrap
from mae_ast.core.io.file_kinds import describe, is_safetensors

# Plain data that training code stores with the weights: options, and NumPy 1 and 2 numbers.
_DATA: list[Any] = [
    *(Namespace, np.ndarray, np.dtype),
    *(type(np.dtype(code)) for code in "?" + np.typecodes["AllInteger"] + np.typecodes["AllFloat"]),
    *(
        (getattr(multiarray, function), f"{module}.multiarray.{function}")
        for module in ("numpy.core", "numpy._core")
        for function in ("scalar", "_reconstruct")
    ),
]
_MODULES = "torch.nn.modules."  # prefix of the classes in pickled modules
_REFUSED = re.compile(r"GLOBAL (\S+) (?:was not an allowed global|whose module)")  # torch's message


class CheckpointError(ValueError):
    """A file that is not a usable checkpoint; the message names the file and the reason."""


def read_state(path: str | os.PathLike[str]) -> dict[str, Any]:
    """Read the dictionary in a ``torch.save`` file; tensors are memory-mapped where possible.

    Returns:
        The file's content, with its state dict under ``model`` and the wrappers' prefixes removed
        (:func:`mae_ast.core.checkpoints.wrappers.unwrap`).

    Raises:
        CheckpointError: the file is damaged, of another format, or contains objects
            that cannot be restored without executing code.
    """
    path = Path(path)
    check_format(path)
    if is_safetensors(path):
        raise CheckpointError(f"{path}: a safetensors file; its name must end in .safetensors")
    with safe_globals(_DATA), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch warns about files that it then refuses
        try:
            state = _load(path)
        except Exception as error:  # damaged files raise exceptions of many classes
            raise CheckpointError(f"{path}: {_reason(path, error)}") from error
    if not isinstance(state, dict):
        raise CheckpointError(f"{path}: holds a {type(state).__name__}, not a state dict")
    return unwrap(state)


def _load(path: Path) -> Any:
    if path.suffix == ".safetensors":  # torch >= 2.14 decides by the name, not by the content
        with path.open("rb") as file:
            return torch.load(file, map_location="cpu", weights_only=True)
    return torch.load(path, map_location="cpu", weights_only=True, mmap=is_zipfile(path))


def read_safetensors(path: Path) -> dict[str, Tensor]:
    """Read the tensors of a safetensors file.

    Raises:
        CheckpointError: the file is damaged or of another format.
    """
    from safetensors.torch import load_file

    try:
        return load_file(path)
    except Exception as error:
        check_format(path)
        reason = " ".join(str(error).split())
        raise CheckpointError(f"{path}: not a readable safetensors file ({reason})") from error


def check_format(path: Path) -> None:
    """Refuse a file whose content is recognised as something other than a checkpoint.

    Raises:
        CheckpointError: names the kind of file.
    """
    if kind := describe(path):
        raise CheckpointError(f"{path}: not a checkpoint but {kind}")


def _reason(path: Path, error: Exception) -> str:
    """Explain why torch cannot read a file, without torch's advice to execute its content."""
    objects = _refused_objects(path, error)
    classes = [name for name in objects if not name.startswith(_MODULES)] or objects
    if any(name.startswith(_MODULES) for name in objects):
        return f"holds a pickled module ({listing(classes)}); save its state_dict() instead"
    if objects:
        return (
            f"not read, because it holds objects that could run code ({listing(classes)}); only "
            "tensors, numbers, strings and containers of them are supported"
        )
    return f"damaged or incomplete, or not a checkpoint ({path.stat().st_size:,} bytes)"


def _refused_objects(path: Path, error: Exception) -> list[str]:
    """List the classes and functions in a file that are not plain data."""
    if is_zipfile(path):
        with suppress(Exception):  # damaged archives raise exceptions of many classes
            return sorted(get_unsafe_globals_in_checkpoint(path))
    refused = _REFUSED.search(str(error))
    return [] if refused is None else [refused[1]]
