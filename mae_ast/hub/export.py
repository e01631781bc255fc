"""Export models: released layouts (s3prl), safetensors folders."""

from __future__ import annotations

import dataclasses
import math
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError

from mae_ast.core.checkpoints.hub_files import (
    CODE_FILES,
    CONFIG_FILE,
    PREPROCESSOR_FILE,
    WEIGHTS_FILE,
)
from mae_ast.core.checkpoints.layout import Checkpoint, Layout
from mae_ast.core.checkpoints.reader import LAYOUTS, holds_classifier
from mae_ast.core.checkpoints.wrappers import unwrap
from mae_ast.core.models.encoder import Encoder
from mae_ast.core.models.registry import system_name
from mae_ast.finetune.checkpoint import FineTuned, load_finetuned
from mae_ast.hub.load import ENCODER_ONLY, Pretrained, from_file, locate

# Files of an exported folder; a folder with other files is never overwritten.
_MODEL_FILES = (CONFIG_FILE, PREPROCESSOR_FILE, WEIGHTS_FILE, "README.md", *CODE_FILES)


def load_with_head(source: str) -> Pretrained | FineTuned:
    """Load a model with its classification head, if it has one.

    Args:
        source: as in :func:`mae_ast.load`.

    Raises:
        ValueError, FileNotFoundError, CheckpointError, DownloadError: as :func:`mae_ast.load`.
    """
    path = locate(source)
    return load_finetuned(path) if holds_classifier(path) else from_file(path)


def check_target(path: Path, is_folder: bool, overwrite: bool = False) -> None:
    """Refuse to overwrite existing files.

    Args:
        path: file or folder to write.
        is_folder: True to write a folder, False to write a file.
        overwrite: replace a file, or a folder that contains only the files of a model.

    Raises:
        FileExistsError: ``path`` exists and may not be replaced.
    """
    if not path.exists() or (path.is_dir() and not any(path.iterdir())):
        return
    if path.is_dir() != is_folder:
        raise FileExistsError(
            f"{path}: is a {'folder' if path.is_dir() else 'file'}, but the output is a "
            f"{'folder' if is_folder else 'file'}; choose another name"
        )
    if is_folder and not {each.name for each in path.iterdir()} <= set(_MODEL_FILES):
        raise FileExistsError(
            f"{path}: the folder contains files that are not a model's; choose another name"
        )
    if not overwrite:
        raise FileExistsError(f"{path}: exists already; --force overwrites it")


def to_released_file(model: Pretrained, path: Path, overwrite: bool = False) -> dict[str, Any]:
    """Write a file in the released layout, as the authors' code and s3prl load it.

    Returns:
        Settings of the model that the layout does not store, by their names in the configuration;
        the code that reads the file must be given them.

    Raises:
        ValueError: the layout cannot represent the model, or its system has no released layout.
        FileExistsError: as :func:`check_target`.
    """
    if model.encoder_only:
        raise ValueError(ENCODER_ONLY)
    name = system_name(model.config)
    layout = next((each for each in LAYOUTS if each.system == name and each.write), None)
    if layout is None or layout.write is None:
        raise ValueError(f"a model of kind {name!r} has no released layout")
    content = layout.write(Checkpoint(model.config, model.mask_type, model.state_dict()))
    unstored = _unstored_settings(model, layout, content)
    with replacing(path, False, overwrite) as part:
        torch.save(content, part)
    return unstored


def to_safetensors(model: Pretrained, path: Path, overwrite: bool = False, **card: Any) -> None:
    """Write a folder in the hub's layout: ``model.safetensors``, ``config.json``, README.md.

    Args:
        model: model of any system.
        path: folder to write.
        overwrite: as in :func:`check_target`.
        card: ``scores`` and ``license`` of :func:`mae_ast.hub.model_card.model_card`.

    Raises:
        FileExistsError: as :func:`check_target`.
    """
    with replacing(path, True, overwrite) as part:
        model.save_pretrained(part, model_card_kwargs=card)


def _unstored_settings(
    model: Pretrained, layout: Layout, content: dict[str, Any]
) -> dict[str, Any]:
    """Return the settings of a model that a file in a published layout does not store.

    Raises:
        ValueError: a setting that code reading the layout assumes has another value; it is named.
    """
    if not layout.fixed:
        return {}
    mean, std = statistics(model)  # fine-tuning may have changed them
    config = dataclasses.replace(model.config, input_mean=mean, input_std=std)
    stored = unwrap(content)
    assumed = (
        layout.assumed(stored, config) if layout.assumed else layout.read(stored, Path()).config
    )
    for key in layout.fixed:
        ours, theirs = getattr(config, key), getattr(assumed, key)
        if ours != theirs:
            raise ValueError(f"{key}={ours}: the released layout supports {theirs} only")
    pairs = {key: (getattr(config, key), getattr(assumed, key)) for key in layout.unstored}
    return {key: ours for key, (ours, theirs) in pairs.items() if not _are_equal(ours, theirs)}


def _are_equal(ours: Any, theirs: Any) -> bool:
    """Compare two settings; statistics that were stored in float32 differ by rounding."""
    if isinstance(ours, float) and isinstance(theirs, float):
        return math.isclose(ours, theirs, rel_tol=1e-6)
    return bool(ours == theirs)


def statistics(model: Encoder) -> tuple[float, float]:
    """Return the mean and std that the input is normalised with."""
    norm = model.batch_norm
    return norm.running_mean.item(), norm.running_var.double().sqrt().item()


@contextmanager
def replacing(path: Path, is_folder: bool, overwrite: bool) -> Iterator[Path]:
    """Yield a temporary path for a file or folder, which is renamed once it is complete.

    Raises:
        FileExistsError: as :func:`check_target`.
        OSError: the output could not be written, usually because the disk is full.
    """
    check_target(path, is_folder, overwrite)
    path.parent.mkdir(parents=True, exist_ok=True)
    folder = Path(tempfile.mkdtemp(prefix=f".{path.name}.", dir=path.parent))
    try:
        part = folder / path.name
        yield part
        if path.is_dir():  # empty, or with an earlier model
            os.replace(path, folder / "earlier")
        os.replace(part, path)
    # Each library reports a full disk differently.
    except (OSError, RuntimeError, SafetensorError) as error:
        free = shutil.disk_usage(folder).free / 1e6
        reason = " ".join(str(error).split())
        raise OSError(
            f"{path}: could not be written, with {free:.1f} MB free ({reason})"
        ) from error
    finally:
        shutil.rmtree(folder, ignore_errors=True)
