"""Load fine-tuned classifiers.

A fine-tuned checkpoint contains a :class:`ClassifierSpec` with the architecture and the class
names, so that neither the pretrained checkpoint nor the label file is needed to load it.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mae_ast.core.checkpoints.ast_release import AST
from mae_ast.core.checkpoints.classifier import (
    ClassifierSpec,
    classifier_weights,
    spec_of_ast,
)
from mae_ast.core.checkpoints.reader import (
    CONFIG_FILE,
    CheckpointError,
    build_with_weights,
    read_checkpoint,
    read_exported_classifier,
    read_state,
)
from mae_ast.core.checkpoints.run_files import LAST, latest
from mae_ast.core.checkpoints.training_record import training_record
from mae_ast.core.inference.whole_clips import clip_logits
from mae_ast.core.io.near_files import suggestion
from mae_ast.core.io.plural import plural
from mae_ast.core.models.classifier import Classifier, to_scores
from mae_ast.core.models.config import AstConfig
from mae_ast.core.nn.packed import packed_weights
from mae_ast.finetune.averaging import average


class FineTuned:
    """A fine-tuned classifier in eval mode, with its class names.

    Args:
        model: the classifier.
        description: its architecture, class names and type of scores.
        training: what is recorded about its training, as in
            :class:`mae_ast.core.checkpoints.layout.Checkpoint`.
        files: names of the checkpoint files that the weights are from.
    """

    def __init__(
        self,
        model: Classifier,
        description: ClassifierSpec,
        training: Mapping[str, Any] | None = None,
        files: Sequence[str] = (),
    ) -> None:
        self.model = model.eval()
        self.description = description
        self.labels = description.labels
        self.training_record = dict(training or {})
        self.files = tuple(files)

    @torch.no_grad()
    def scores(self, source: Tensor, lengths: Tensor | None = None) -> Tensor:
        """Return the scores (B, C) of whole clips, from 0 to 1.

        The scores of a clip longer than the model's maximum input are the mean over its windows,
        see :func:`mae_ast.core.inference.whole_clips.clip_logits`.

        Args:
            source: (B, L) int16 or float waveforms at 16 kHz.
            lengths: (B,) int64, valid samples of each clip; default: all.
        """
        device = next(self.model.parameters()).device
        lengths = None if lengths is None else lengths.to(device)
        independent, trained = self.description.independent, self.description.clip_samples
        encoder = self.model.encoder
        with packed_weights(encoder.encoder.layers, encoder.precision):
            logits = clip_logits(self.model, source.to(device), lengths, independent, trained)
        return to_scores(logits, independent).cpu()


def load_finetuned(source: str | os.PathLike[str], num_averaged: int = 1) -> FineTuned:
    """Read a fine-tuned classifier.

    Args:
        source: a checkpoint of ``mae-ast finetune``; the folder of a run, whose last checkpoint is
            read; a classifier exported for transformers; or an AST trained elsewhere, from any
            source of :func:`mae_ast.load`.
        num_averaged: average the weights of the last N epoch checkpoints of a run.

    Raises:
        FileNotFoundError: the file does not exist, or the run has no checkpoint.
        CheckpointError: the file is not a fine-tuned checkpoint.
        ValueError: the run has too few checkpoints to average.
    """
    if _is_published(source):
        return _published(source)
    paths = _files(Path(source), num_averaged)
    spec, training = _read_spec(paths[-1])
    model = build_with_weights(spec.build, average(paths), paths[-1])
    return FineTuned(model, spec, training, [path.name for path in paths])


def _is_published(source: str | os.PathLike[str]) -> bool:
    """Return whether a source is for :func:`mae_ast.load`: not a checkpoint or run of ours."""
    path = Path(source)
    if path.is_dir():
        return (path / CONFIG_FILE).is_file()
    if path.suffix == ".safetensors" or not path.is_file():
        return not os.fspath(source).endswith(".pt")
    return AST.matches(read_state(path))


def _published(source: str | os.PathLike[str]) -> FineTuned:
    """Load a published AST, or a classifier exported for transformers."""
    from mae_ast.hub.load import locate  # imports the hub's client; pretraining needs none

    path = locate(source)
    if (found := read_exported_classifier(path)) is not None:
        spec, weights, training = found
        return FineTuned(build_with_weights(spec.build, weights, path), spec, training)
    ast = read_checkpoint(path)
    if not isinstance(ast.config, AstConfig) or ast.encoder_only:
        raise CheckpointError(
            f"{os.fspath(source)}: not a fine-tuned checkpoint, as 'mae-ast finetune' writes it"
        )
    spec = spec_of_ast(ast.config, ast.labels, ast.independent)
    weights = classifier_weights(ast.weights)
    return FineTuned(build_with_weights(spec.build, weights, path), spec, ast.training)


def _read_spec(path: Path) -> tuple[ClassifierSpec, dict[str, Any]]:
    try:
        state = read_state(path)
        return ClassifierSpec.from_state(state), training_record(state, "fine-tuning")
    except CheckpointError:
        raise
    except (KeyError, TypeError) as error:
        raise CheckpointError(
            f"{path}: not a fine-tuned checkpoint, as 'mae-ast finetune' writes it"
        ) from error
    except ValueError as error:
        raise CheckpointError(f"{path}: {error}") from error


def _files(source: Path, num_averaged: int) -> Sequence[Path]:
    """Return the checkpoints to average, oldest first."""
    if num_averaged < 1:
        raise ValueError(f"--average {num_averaged}: must be at least 1")
    if not source.is_dir():
        if num_averaged > 1:
            raise ValueError(
                f"--average {num_averaged}: {source} is a file, not the folder of a run"
            )
        if not source.is_file():
            raise FileNotFoundError(f"{source}: no such checkpoint or run{suggestion(source)}")
        return [source]
    folder = source / "checkpoints" if (source / "checkpoints").is_dir() else source
    if num_averaged == 1:
        last = latest(folder)
        if last is None:
            raise FileNotFoundError(f"{folder / LAST}: no such file; {source} has no checkpoint")
        return [last]
    epoch_files = sorted(
        (path for path in folder.glob("checkpoint*.pt") if path.stem[10:].isdigit()),
        key=lambda path: int(path.stem[10:]),
    )
    if len(epoch_files) < num_averaged:
        raise ValueError(
            f"--average {num_averaged}: {folder} has "
            f"{plural(len(epoch_files), 'epoch checkpoint')}; "
            "train with checkpoint.no_epoch_checkpoints=false and checkpoint.keep_last_epochs"
        )
    return epoch_files[-num_averaged:]
