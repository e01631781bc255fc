"""Write ONNX files, check them against PyTorch, and quantise them to 8 bits.

The input is a waveform (B, L) or log-mel (B, T, 128), and the output the last hidden state
(B, N, D) or scores (B, C); see :mod:`mae_ast.hub.onnx_graph`.
"""

from __future__ import annotations

import json
import logging
import os
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mae_ast import __version__
from mae_ast.console import require
from mae_ast.core.checkpoints.classifier import classifier_weights, spec_of_ast
from mae_ast.core.frontend.fbank import fbank
from mae_ast.core.io.audio import SAMPLE_RATE
from mae_ast.core.models.ast import Ast
from mae_ast.core.models.encoder import Encoder
from mae_ast.core.models.registry import system_name
from mae_ast.finetune.checkpoint import FineTuned
from mae_ast.hub.export import replacing
from mae_ast.hub.load import HubModel
from mae_ast.hub.onnx_graph import Graph, LastHiddenState, Scores

# Inputs of a graph: names of the tensor and of its second axis.
INPUTS = {
    "log-mel": ("log_mel", "frames"),
    "waveform": ("waveform", "samples"),
    "waveform-int16": ("waveform", "samples"),
}
OPSET = 20
TOLERANCE = 1e-3
CHECKS = ((1, 160_000), (3, 16_000), (2, 250_000))  # clips and samples used to check a file
TIMED_RUNS = 3
_SCOPES = "pkg.torch.onnx.name_scopes"  # where torch stores the modules that a node comes from


@dataclass(frozen=True)
class Measured:
    """An ONNX file compared with PyTorch in float32.

    Args:
        max_difference: largest absolute difference of the outputs.
        mean_difference: mean absolute difference.
        mean_output: mean absolute output of PyTorch.
        seconds: time for a clip of 10 s with onnxruntime on the CPU.
        size: bytes of the file.
    """

    max_difference: float
    mean_difference: float
    mean_output: float
    seconds: float
    size: int


@dataclass(frozen=True)
class Written:
    """Measurements of an exported file.

    Args:
        float32: the file in float32.
        int8: the quantised file, if one was written; then it is the only one that is kept.
    """

    float32: Measured
    int8: Measured | None


def to_onnx(
    model: Encoder | FineTuned,
    path: Path,
    overwrite: bool = False,
    source: str = "log-mel",
    int8: bool = False,
) -> Written:
    """Write an ONNX file: an encoder to its last hidden state, or a classifier to its scores.

    Args:
        model: encoder of any system, an AST with its head, or a classifier of
            :func:`mae_ast.finetune.checkpoint.load_finetuned`.
        path: file to write.
        overwrite: as in :func:`mae_ast.hub.export.check_target`.
        source: input, a key of :data:`INPUTS`.
        int8: quantise the linear layers of the transformer to 8 bits.

    Raises:
        ValueError: onnxruntime's output differs from PyTorch's, or packages are missing.
        FileExistsError: as :func:`mae_ast.hub.export.check_target`.
    """
    require("onnx", "onnxscript", "onnxruntime")
    model = _with_head(model)
    graph = Scores(model) if isinstance(model, FineTuned) else LastHiddenState(model)
    graph.eval()
    with replacing(path, False, overwrite) as part:
        linear = _export(graph, part, source, _metadata(model, graph))
        in_float = measure(graph, part, source)
        if not in_float.max_difference <= TOLERANCE:
            raise ValueError(f"{path}: differs from PyTorch by {in_float.max_difference:.2g}")
        if not int8:
            return Written(in_float, None)
        _quantise(part, linear)
        quantised = measure(graph, part, source)
        _add_metadata(part, {"int8_mean_difference": f"{quantised.mean_difference:.3g}"})
        return Written(in_float, quantised)


def _with_head(model: Encoder | FineTuned) -> Encoder | FineTuned:
    """Return an AST with its head as a classifier, and any other model as it is."""
    if not (isinstance(model, HubModel) and isinstance(model, Ast)) or model.encoder_only:
        return model
    spec = spec_of_ast(model.config, model.labels, model.independent)
    classifier = spec.build()
    classifier.load_state_dict(classifier_weights(model.state_dict()))
    return FineTuned(classifier, spec)


def _metadata(model: Encoder | FineTuned, graph: Graph) -> dict[str, str]:
    """Return what programs that run the file need to know."""
    found = {
        "sample_rate": str(SAMPLE_RATE),
        "min_samples": str(graph.min_samples),
        "written_by": f"mae-ast {__version__}",
    }
    if not isinstance(model, FineTuned):
        return found | {"system": system_name(model.config)}
    return found | {
        "system": system_name(model.description.encoder),
        "labels": json.dumps(model.labels.names),
        "multi_label": str(model.description.independent).lower(),
    }


def measure(graph: Graph, path: Path, source: str) -> Measured:
    """Compare an ONNX file with its PyTorch module on several input sizes, and time it.

    Args:
        graph: the module.
        path: the file.
        source: its input, a key of :data:`INPUTS`.

    Raises:
        ValueError: shapes differ, or the output is not finite.
    """
    import onnxruntime

    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    name, _ = INPUTS[source]
    found, expected = [], []
    for batch, num_samples in CHECKS:
        clips = example(batch, num_samples, source)
        found.append(session.run(None, {name: clips.numpy()})[0])
        with torch.no_grad():
            expected.append(graph(clips).numpy())
        if (shape := found[-1].shape) != (other := expected[-1].shape):
            raise ValueError(f"{path}: output of shape {shape}; expected {other}")
    wanted = np.concatenate([each.ravel() for each in expected])
    differences = np.abs(np.concatenate([each.ravel() for each in found]) - wanted)
    if not np.isfinite(differences).all():
        raise ValueError(f"{path}: the output is not finite")
    return Measured(
        float(differences.max()),
        float(differences.mean()),
        float(np.abs(wanted).mean()),
        _seconds(session, {name: example(1, 10 * SAMPLE_RATE, source).numpy()}),
        path.stat().st_size,
    )


def example(batch: int, num_samples: int, source: str) -> Tensor:
    """Return an input of a graph: clips of noise whose level rises and falls."""
    generator = torch.Generator().manual_seed(0)
    envelope = torch.linspace(0, 20, num_samples).sin().square() * 0.2 + 1e-3
    waves = torch.randn(batch, num_samples, generator=generator) * envelope
    pcm = (waves.clamp(-1, 1) * 32767).to(torch.int16)
    if source == "waveform-int16":
        return pcm
    return fbank(pcm) if source == "log-mel" else pcm.float() / 32768


def _export(graph: Graph, path: Path, source: str, metadata: dict[str, str]) -> list[str]:
    """Export a graph.

    Returns:
        Names of the linear layers in the transformer layers.

    Raises:
        ValueError: the weights do not fit one file.
    """
    name, axis = INPUTS[source]
    clips = example(2, 250_000, source)  # several windows
    with torch.no_grad():
        graph(clips)  # computes the constants of the filterbank, which would otherwise be traced
    with _quiet():
        program: Any = torch.onnx.export(
            graph,
            (clips,),
            dynamo=True,
            opset_version=OPSET,
            dynamic_shapes={"source": {0: "batch", 1: axis}},
            input_names=[name],
            output_names=[graph.output],
            verbose=False,
        )
    (output,) = program.model.graph.outputs
    for number, size in enumerate(graph.axes):
        output.shape[number] = size  # instead of torch's formulas of the input's axes
    nodes = list(program.model.graph)
    linear = [
        node.name
        for node in nodes
        if node.op_type == "MatMul"
        and node.inputs[1].const_value is not None
        and ".layers." in node.metadata_props.get(_SCOPES, "")
    ]
    for node in nodes:
        node.metadata_props.clear()  # contains stack traces, with paths of this machine
    program.model.metadata_props.update(metadata)
    program.save(str(path))
    if len(os.listdir(path.parent)) > 1:
        raise ValueError(f"{path}: the weights exceed the limit of one ONNX file (1.5 GiB)")
    return linear


def _quantise(path: Path, linear: list[str]) -> None:
    """Quantise linear layers to int8, in place, with a scale per output channel.

    Their inputs are quantised when the file is run (dynamically). The rest remains in float32: the
    filterbank loses quiet bands in 8 bits, and patch projection and head are small.
    """
    import onnx
    from onnxruntime.quantization import QuantType, quantize_dynamic

    quantised = path.with_name(f"{path.name}.int8")
    model = onnx.load(path)
    # The quantiser transposes the weight of a classifier's head, but not the shape noted here.
    del model.graph.value_info[:]
    with _quiet():
        quantize_dynamic(
            model,
            quantised,
            nodes_to_quantize=linear,
            weight_type=QuantType.QInt8,
            per_channel=True,
        )
    os.replace(quantised, path)


def _add_metadata(path: Path, values: dict[str, str]) -> None:
    import onnx

    model = onnx.load(path)
    onnx.helper.set_model_props(
        model, {each.key: each.value for each in model.metadata_props} | values
    )
    onnx.save(model, path)


def _seconds(session: Any, clips: dict[str, np.ndarray]) -> float:
    """Return the shortest of several runs."""
    times = []
    for _ in range(TIMED_RUNS):
        begin = time.perf_counter()
        session.run(None, clips)
        times.append(time.perf_counter() - begin)
    return min(times)


@contextmanager
def _quiet() -> Iterator[None]:
    """Silence messages of exporter and quantiser about their internals and missing packages."""
    loggers = [logging.getLogger(name) for name in ("torch.onnx", "onnxscript", "onnx_ir", None)]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
