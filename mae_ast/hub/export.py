"""Export models: released layouts (s3prl), safetensors folders, Hugging Face AST, ONNX."""

from __future__ import annotations

import dataclasses
import json
import logging
import math
import os
import shutil
import tempfile
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import Tensor, nn

from mae_ast.core.checkpoints import ast_release, audio_mae_release, hf_ast, hf_ast_config
from mae_ast.core.checkpoints.mae_ast_release import to_released
from mae_ast.core.checkpoints.reader import CONFIG_FILE, PREPROCESSOR_FILE, WEIGHTS_FILE
from mae_ast.core.checkpoints.wrappers import unwrap
from mae_ast.core.frontend.fbank import NUM_MEL_BINS
from mae_ast.core.models.registry import system_name
from mae_ast.core.nn.positions import sinusoidal_positions
from mae_ast.hub.load import (
    ENCODER_ONLY,
    Pretrained,
    PretrainedAst,
    PretrainedAudioMae,
    PretrainedMaeAst,
    PretrainedSsast,
    write_safetensors,
)

# Settings that code reading the published layouts assumes.
_ASSUMED_KEYS = (
    *("encoder_attention_heads", "decoder_attention_heads", "layer_norm_eps", "window_type"),
    *("ast_kernel_stride_time", "ast_kernel_stride_chan"),
)
# Files of an exported folder; a folder with other files is never overwritten.
_MODEL_FILES = (CONFIG_FILE, PREPROCESSOR_FILE, WEIGHTS_FILE, "README.md")
ONNX_OPSET = 18
ONNX_TOLERANCE = 1e-3
# Batch sizes and numbers of frames used to check an exported file.
ONNX_CHECKS = ((1, 998), (3, 100), (2, 1_537))


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
    state = _released_state(model)
    unsaved = _unsaved_settings(model, state)
    with _replacing(path, False, overwrite) as part:
        torch.save(state, part)
    return unsaved


def to_hugging_face(model: Pretrained, path: Path, overwrite: bool = False) -> None:
    """Write a folder for transformers' ``ASTForAudioClassification`` and its feature extractor.

    Raises:
        ValueError: transformers' AST cannot represent the model.
        FileExistsError: as :func:`check_target`.
    """
    if not isinstance(model, PretrainedAst):
        raise ValueError(
            f"a model of kind {system_name(model.config)!r}; only 'ast' exists in transformers"
        )
    if model.encoder_only:
        raise ValueError(ENCODER_ONLY)
    mean, std = _statistics(model)  # fine-tuning may have changed them
    config = dataclasses.replace(model.config, input_mean=mean, input_std=std)
    fields, preprocessor = hf_ast_config.config_to_hugging_face(
        config, model.labels, model.independent
    )
    weights = hf_ast.to_hugging_face(config, model.state_dict())
    with _replacing(path, True, overwrite) as part:
        part.mkdir()
        for name, values in ((CONFIG_FILE, fields), (PREPROCESSOR_FILE, preprocessor)):
            (part / name).write_text(json.dumps(values, indent=2) + "\n", encoding="utf-8")
        contiguous = {name: value.contiguous() for name, value in weights.items()}
        write_safetensors(contiguous, part / WEIGHTS_FILE)


def to_safetensors(model: Pretrained, path: Path, overwrite: bool = False) -> None:
    """Write a folder in the hub's layout: ``model.safetensors``, ``config.json``, README.md.

    Raises:
        FileExistsError: as :func:`check_target`.
    """
    with _replacing(path, True, overwrite) as part:
        model.save_pretrained(part)


def to_onnx(model: Pretrained, path: Path, overwrite: bool = False) -> float:
    """Write an ONNX file, log-mel (B, T, 128) -> last hidden state (B, N, D), and check it.

    The dynamic axes are named batch and frames in the input, batch and tokens in the output. The
    input is the output of :func:`mae_ast.core.frontend.fbank.fbank`, not normalised.

    Returns:
        The largest absolute difference between onnxruntime and PyTorch.

    Raises:
        ValueError: onnxruntime's output differs from PyTorch's; packages are missing; or the model
            is not MAE-AST.
        FileExistsError: as :func:`check_target`.
    """
    if not isinstance(model, PretrainedMaeAst):
        raise ValueError(
            f"a model of kind {system_name(model.config)!r}; only 'mae_ast' can be exported to ONNX"
        )
    if any(find_spec(name) is None for name in ("onnx", "onnxscript", "onnxruntime")):
        raise ValueError("ONNX export needs more packages: pip install 'mae-ast[onnx]'")
    encoder = LastHiddenState(model).eval()
    example = torch.randn(2, 40 * model.patch_shape.time, NUM_MEL_BINS)
    with _replacing(path, False, overwrite) as part:
        with _quiet_exporter():
            program = torch.onnx.export(
                encoder,
                (example,),
                dynamo=True,
                opset_version=ONNX_OPSET,
                dynamic_shapes={"log_mel": {0: "batch", 1: "frames"}},
                input_names=["log_mel"],
                output_names=["last_hidden_state"],
                verbose=False,
            )
        assert program is not None
        (states,) = program.model.graph.outputs
        assert states.shape is not None
        states.shape[1] = "tokens"  # instead of torch's formula of "frames"
        program.save(str(part))
        if len(os.listdir(part.parent)) > 1:
            raise ValueError(f"{path}: the weights exceed the limit of one ONNX file (1.5 GiB)")
        return check_onnx(encoder, part)


def check_onnx(encoder: nn.Module, path: Path) -> float:
    """Compare an ONNX file with its PyTorch module on several input sizes.

    Returns:
        The largest absolute difference.

    Raises:
        ValueError: shapes differ, or values by more than 1e-3.
    """
    import onnxruntime

    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    max_error = 0.0
    generator = torch.Generator().manual_seed(0)
    for batch, frames in ONNX_CHECKS:
        log_mel = torch.randn(batch, frames, NUM_MEL_BINS, generator=generator) * 4 - 7
        (found,) = session.run(None, {"log_mel": log_mel.numpy()})
        with torch.no_grad():
            expected = encoder(log_mel)
        if found.shape != tuple(expected.shape):
            raise ValueError(
                f"{path}: output of shape {found.shape}; expected {tuple(expected.shape)}"
            )
        max_error = max(max_error, float((torch.from_numpy(found) - expected).abs().max()))
    if not max_error <= ONNX_TOLERANCE:
        raise ValueError(f"{path}: differs from PyTorch by {max_error:.2g}")
    return max_error


class LastHiddenState(nn.Module):
    """The encoder as a graph without branches: log-mel (B, T, 128) -> (B, N, D)."""

    def __init__(self, model: PretrainedMaeAst) -> None:
        super().__init__()
        self.model = model

    def forward(self, log_mel: Tensor) -> Tensor:
        """Encode all patches (none is masked)."""
        model = self.model
        patches = model.patches(log_mel)
        tokens = model.embed(patches) + sinusoidal_positions(
            patches.shape[1], model.config.encoder_embed_dim
        )
        encoded: Tensor = model.encoder(tokens)
        return encoded


def _released_state(model: Pretrained) -> dict[str, Any]:
    weights = model.state_dict()
    if model.encoder_only:
        raise ValueError(ENCODER_ONLY)
    if isinstance(model, PretrainedMaeAst):
        return to_released(model.config, model.mask_type, weights)
    if isinstance(model, PretrainedSsast):
        return ast_release.write_ssast(model.config, weights)
    if isinstance(model, PretrainedAst):
        return ast_release.write_ast(model.config, weights)
    if isinstance(model, PretrainedAudioMae):
        return dict(audio_mae_release.write_audio_mae(model.config, weights))
    raise ValueError(f"a model of kind {system_name(model.config)!r} has no released layout")


def _unsaved_settings(model: Pretrained, state: dict[str, Any]) -> dict[str, Any]:
    """Return the settings of a model that a file in a published layout does not store.

    Raises:
        ValueError: a setting that reading code assumes is not as published; it is named.
    """
    if isinstance(model, PretrainedSsast):
        read: Any = ast_release.read_ssast(unwrap(state))[0]
    elif isinstance(model, PretrainedAst):
        read = ast_release.read_ast(unwrap(state), model.config.ast_kernel_stride_time)[0]
    elif isinstance(model, PretrainedAudioMae):
        read = audio_mae_release.read_audio_mae(state)[0]
    else:
        return {}  # MAE-AST's layout stores all settings
    for key in _ASSUMED_KEYS:
        ours, theirs = getattr(model.config, key, None), getattr(read, key, None)
        if ours != theirs:
            raise ValueError(f"{key}={ours}: the released layout supports {theirs} only")
    mean, std = _statistics(model)
    ours = {"input_mean": mean, "input_std": std, "input_frames": model.config.input_frames}
    unsaved = {
        key: value
        for key, value in ours.items()
        if value != getattr(read, key)
        and not (isinstance(value, float) and math.isclose(value, getattr(read, key), rel_tol=1e-6))
    }
    if isinstance(model, PretrainedAst) and model.config.pool != read.pool:
        unsaved["pool"] = model.config.pool
    stride = model.config.ast_kernel_stride_time
    if isinstance(model, PretrainedAst) and stride != ast_release.STRIDE:
        unsaved["ast_kernel_stride_time"] = unsaved["ast_kernel_stride_chan"] = stride
    return unsaved


def _statistics(model: Pretrained) -> tuple[float, float]:
    """Return the mean and std that the input is normalised with."""
    norm = model.batch_norm
    return norm.running_mean.item(), norm.running_var.double().sqrt().item()


@contextmanager
def _quiet_exporter() -> Iterator[None]:
    """Silence torch's messages about its internals and about missing packages."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)


@contextmanager
def _replacing(path: Path, is_folder: bool, overwrite: bool) -> Iterator[Path]:
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
