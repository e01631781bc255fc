"""A model to a file of another kind: for stock s3prl, for the hub, for ONNX runtimes."""

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
    ENCODER_ALONE,
    Pretrained,
    PretrainedAst,
    PretrainedAudioMae,
    PretrainedMaeAst,
    PretrainedSsast,
    write_safetensors,
)

# What readers of the published layouts take for granted.
_AS_PUBLISHED = (
    *("encoder_attention_heads", "decoder_attention_heads", "layer_norm_eps", "window_type"),
    *("ast_kernel_stride_time", "ast_kernel_stride_chan"),
)
# Files of a folder written here; nothing else is ever removed.
_FILES_OF_A_FOLDER = (CONFIG_FILE, PREPROCESSOR_FILE, WEIGHTS_FILE, "README.md")
ONNX_OPSET = 18
ONNX_TOLERANCE = 1e-3
# Batch sizes and frames that an exported file is checked with.
ONNX_CHECKS = ((1, 998), (3, 100), (2, 1_537))


def check_target(path: Path, is_folder: bool, overwrite: bool = False) -> None:
    """Refuse to overwrite what is already there.

    Args:
        path: file or folder to write.
        is_folder: True to write a folder, False to write a file.
        overwrite: replace a file, or a folder that contains only a model's files.

    Raises:
        FileExistsError: ``path`` exists and may not be replaced.
    """
    if not path.exists() or (path.is_dir() and not any(path.iterdir())):
        return
    if path.is_dir() != is_folder:
        raise FileExistsError(
            f"{path}: is a {'folder' if path.is_dir() else 'file'} already, but a "
            f"{'folder' if is_folder else 'file'} is to be written; choose another name"
        )
    if is_folder and not {each.name for each in path.iterdir()} <= set(_FILES_OF_A_FOLDER):
        raise FileExistsError(
            f"{path}: the folder exists and holds other files than a model's; choose another name"
        )
    if not overwrite:
        raise FileExistsError(f"{path}: exists already; --force overwrites it")


def to_released_file(model: Pretrained, path: Path, overwrite: bool = False) -> dict[str, Any]:
    """Write the file that the authors' programs and stock s3prl load.

    Returns:
        Settings of this model, by their names in its configuration, that the layout cannot store
        and that the reading code must be given.

    Raises:
        ValueError: the model has what the layout has no field for, or lacks what it asks for, or is
            of a system without one.
        FileExistsError: as :func:`check_target`; so do the other functions.
    """
    state = _released_state(model)
    untold = _untold(model, state)
    with _whole(path, False, overwrite) as part:
        torch.save(state, part)
    return untold


def to_hugging_face(model: Pretrained, path: Path, overwrite: bool = False) -> None:
    """Write a folder that transformers' ``ASTForAudioClassification`` and its extractor load.

    Raises:
        ValueError: theirs has no such model.
    """
    if not isinstance(model, PretrainedAst):
        raise ValueError(
            f"a model of kind {system_name(model.config)!r}; transformers' AST is 'ast'"
        )
    if model.encoder_only:
        raise ValueError(ENCODER_ALONE)
    mean, std = _statistics(model)  # fine-tuning may have set others than the configuration has
    config = dataclasses.replace(model.config, input_mean=mean, input_std=std)
    fields, preprocessor = hf_ast_config.config_to_hugging_face(
        config, model.labels, model.independent
    )
    weights = hf_ast.to_hugging_face(config, model.state_dict())
    with _whole(path, True, overwrite) as part:
        part.mkdir()
        for name, values in ((CONFIG_FILE, fields), (PREPROCESSOR_FILE, preprocessor)):
            (part / name).write_text(json.dumps(values, indent=2) + "\n", encoding="utf-8")
        whole = {name: value.contiguous() for name, value in weights.items()}
        write_safetensors(whole, part / WEIGHTS_FILE)


def to_safetensors(model: Pretrained, path: Path, overwrite: bool = False) -> None:
    """Write a folder in the hub's layout: ``model.safetensors``, ``config.json``, a model card."""
    with _whole(path, True, overwrite) as part:
        model.save_pretrained(part)


def to_onnx(model: Pretrained, path: Path, overwrite: bool = False) -> float:
    """Write an ONNX file, log-mel (B, T, 128) -> last hidden state (B, N, D), and check it.

    The axes of variable size are named batch and frames in the input, batch and tokens in the
    output. The input is what :func:`mae_ast.core.frontend.fbank.fbank` returns, not normalised.

    Returns:
        The largest difference to PyTorch that was seen.

    Raises:
        ValueError: onnxruntime computes something else from the file than PyTorch; packages are
            missing; or the model is not MAE-AST.
    """
    if not isinstance(model, PretrainedMaeAst):
        raise ValueError(
            f"a model of kind {system_name(model.config)!r}; only 'mae_ast' can be exported to ONNX"
        )
    if any(find_spec(name) is None for name in ("onnx", "onnxscript", "onnxruntime")):
        raise ValueError("an ONNX file needs more packages: pip install 'mae-ast[onnx]'")
    encoder = LastHiddenState(model).eval()
    example = torch.randn(2, 40 * model.patch_shape.time, NUM_MEL_BINS)
    with _whole(path, False, overwrite) as part:
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
        states.shape[1] = "tokens"  # torch writes a formula of "frames"
        program.save(str(part))
        if len(os.listdir(part.parent)) > 1:
            raise ValueError(f"{path}: its weights do not fit into one ONNX file (1.5 GiB)")
        return check_onnx(encoder, part)


def check_onnx(encoder: nn.Module, path: Path) -> float:
    """Compare a file with the module that it was made of, on several sizes.

    Raises:
        ValueError: they differ by more than 1e-3.
    """
    import onnxruntime

    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    worst = 0.0
    generator = torch.Generator().manual_seed(0)
    for batch, frames in ONNX_CHECKS:
        log_mel = torch.randn(batch, frames, NUM_MEL_BINS, generator=generator) * 4 - 7
        (found,) = session.run(None, {"log_mel": log_mel.numpy()})
        with torch.no_grad():
            expected = encoder(log_mel)
        if found.shape != tuple(expected.shape):
            raise ValueError(f"{path}: gives {found.shape} for {tuple(expected.shape)}")
        worst = max(worst, float((torch.from_numpy(found) - expected).abs().max()))
    if not worst <= ONNX_TOLERANCE:
        raise ValueError(f"{path}: differs from PyTorch by {worst:.2g}")
    return worst


class LastHiddenState(nn.Module):
    """The encoder as a graph without branches: log-mel (B, T, 128) -> (B, N, D)."""

    def __init__(self, model: PretrainedMaeAst) -> None:
        super().__init__()
        self.model = model

    def forward(self, log_mel: Tensor) -> Tensor:
        """All patches are visible."""
        model = self.model
        patches = model.patches(log_mel)
        tokens = model.embed(patches) + sinusoidal_positions(
            patches.shape[1], model.encoder_positions.dim
        )
        encoded: Tensor = model.encoder(tokens)
        return encoded


def _released_state(model: Pretrained) -> dict[str, Any]:
    weights = model.state_dict()
    if model.encoder_only:
        raise ValueError(ENCODER_ALONE)
    if isinstance(model, PretrainedMaeAst):
        return to_released(model.config, model.mask_type, weights)
    if isinstance(model, PretrainedSsast):
        return ast_release.write_ssast(model.config, weights)
    if isinstance(model, PretrainedAst):
        return ast_release.write_ast(model.config, weights)
    if isinstance(model, PretrainedAudioMae):
        return dict(audio_mae_release.write_audio_mae(model.config, weights))
    raise ValueError(f"a model of kind {system_name(model.config)!r} has no released layout")


def _untold(model: Pretrained, state: dict[str, Any]) -> dict[str, Any]:
    """What a file in a published layout does not say of this model.

    Raises:
        ValueError: it would be taken for another one: what differs has to be as published.
    """
    if isinstance(model, PretrainedSsast):
        read: Any = ast_release.read_ssast(unwrap(state))[0]
    elif isinstance(model, PretrainedAst):
        read = ast_release.read_ast(unwrap(state), model.config.ast_kernel_stride_time)[0]
    elif isinstance(model, PretrainedAudioMae):
        read = audio_mae_release.read_audio_mae(state)[0]
    else:
        return {}  # MAE-AST's holds all
    for key in _AS_PUBLISHED:
        ours, theirs = getattr(model.config, key, None), getattr(read, key, None)
        if ours != theirs:
            raise ValueError(f"{key}={ours}: the released layout supports {theirs} only")
    mean, std = _statistics(model)
    ours = {"input_mean": mean, "input_std": std, "input_frames": model.config.input_frames}
    untold = {
        key: value
        for key, value in ours.items()
        if value != getattr(read, key)
        and not (isinstance(value, float) and math.isclose(value, getattr(read, key), rel_tol=1e-6))
    }
    if isinstance(model, PretrainedAst) and model.config.pool != read.pool:
        untold["pool"] = model.config.pool
    stride = model.config.ast_kernel_stride_time
    if isinstance(model, PretrainedAst) and stride != ast_release.STRIDE:
        untold["ast_kernel_stride_time"] = untold["ast_kernel_stride_chan"] = stride
    return untold


def _statistics(model: Pretrained) -> tuple[float, float]:
    """Mean and deviation that the input is normalised by."""
    norm = model.batch_norm
    return norm.running_mean.item(), norm.running_var.double().sqrt().item()


@contextmanager
def _quiet_exporter() -> Iterator[None]:
    """Without torch's remarks on its own insides and on packages that are not there."""
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
def _whole(path: Path, is_folder: bool, overwrite: bool) -> Iterator[Path]:
    """Yield a temporary path for a file or folder, which is renamed once it is complete.

    Raises:
        FileExistsError: as :func:`check_target`.
        OSError: it could not be written, usually for want of room.
    """
    check_target(path, is_folder, overwrite)
    path.parent.mkdir(parents=True, exist_ok=True)
    folder = Path(tempfile.mkdtemp(prefix=f".{path.name}.", dir=path.parent))
    try:
        part = folder / path.name
        yield part
        if path.is_dir():  # empty, or an earlier model's
            os.replace(path, folder / "earlier")
        os.replace(part, path)
    except (OSError, RuntimeError, SafetensorError) as error:  # as each library calls a full disk
        free = shutil.disk_usage(folder).free / 1e6
        reason = " ".join(str(error).split())
        raise OSError(
            f"{path}: could not be written, with {free:.1f} MB free ({reason})"
        ) from error
    finally:
        shutil.rmtree(folder, ignore_errors=True)
