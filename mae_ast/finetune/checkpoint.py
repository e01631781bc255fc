"""Classifiers: built on a checkpoint to be trained, and read back from what training wrote.

A fine-tuned checkpoint holds, beside its weights, a :class:`ClassifierSpec`: the network and the
names of its outputs. So it needs neither the checkpoint it was started from nor the labels' file.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from mae_ast.core.checkpoints import ast_release
from mae_ast.core.checkpoints.classifier import ClassifierSpec
from mae_ast.core.checkpoints.reader import (
    CONFIG_FILE,
    FINETUNING,
    CheckpointError,
    check_weights,
    read_state,
)
from mae_ast.core.checkpoints.run_files import LAST, latest
from mae_ast.core.frontend.fbank import num_samples_of_frames
from mae_ast.core.inference.whole_clips import clip_logits
from mae_ast.core.io.labels import Labels
from mae_ast.core.io.near_files import suggestion
from mae_ast.core.io.plural import plural
from mae_ast.core.models.classifier import Classifier, HeadConfig, to_scores
from mae_ast.core.models.encoder import Encoder, encoder_only
from mae_ast.core.models.registry import SYSTEMS, system_name
from mae_ast.finetune.averaging import average
from mae_ast.hub.load import PretrainedAst, load


class FineTuned:
    """A classifier in eval mode, and what its outputs are called.

    Args:
        model: the classifier.
        description: of it.
    """

    def __init__(self, model: Classifier, description: ClassifierSpec) -> None:
        self.model = model.eval()
        self.description = description
        self.labels = description.labels

    @torch.no_grad()
    def scores(self, source: Tensor, lengths: Tensor | None = None) -> Tensor:
        """Score whole clips, (B, C) from 0 to 1.

        The scores of a clip longer than the network takes at once are the mean over its windows,
        see :func:`mae_ast.core.inference.whole_clips.clip_logits`.

        Args:
            source: (B, L) int16 or float waveforms at 16 kHz.
            lengths: (B,) int64, valid samples of each clip; ``None``: all.
        """
        device = next(self.model.parameters()).device
        lengths = None if lengths is None else lengths.to(device)
        independent, trained = self.description.independent, self.description.clip_samples
        logits = clip_logits(self.model, source.to(device), lengths, independent, trained)
        return to_scores(logits, independent).cpu()


def encoder_of(source: str, random_weights: bool = False) -> Encoder:
    """The encoder of a pretrained or fine-tuned model, to be trained further.

    Args:
        source: whatever :func:`mae_ast.load` takes.
        random_weights: the same network and input statistics, with new weights.

    Raises:
        ValueError, FileNotFoundError: as :func:`mae_ast.load`.
    """
    found: Encoder = encoder_only(load(source))
    if not random_weights:
        return found
    fresh: Encoder = encoder_only(SYSTEMS[system_name(found.config)].network(found.config))
    fresh.batch_norm.load_state_dict(found.batch_norm.state_dict())
    return fresh


def load_finetuned(source: str | os.PathLike[str], num_averaged: int = 1) -> FineTuned:
    """Read a fine-tuned classifier.

    Args:
        source: a checkpoint of ``mae-ast finetune``; the folder of a run: its last one; or an AST
            that others trained, which is whatever :func:`mae_ast.load` takes.
        num_averaged: of a run, average the weights of so many of its last epochs.

    Raises:
        FileNotFoundError: there is no such file, or the run has none.
        CheckpointError: it is not a fine-tuned checkpoint.
        ValueError: the run has too few checkpoints to average.
    """
    if _is_published(source):
        return _published(source)
    paths = _files(Path(source), num_averaged)
    description = _description(paths[-1])
    weights = average(paths)
    system = SYSTEMS[description.system]
    encoder = encoder_only(system.network(system.config.from_mapping(description.encoder)))
    width = encoder.config.encoder_embed_dim
    model = Classifier(encoder, width, description.head)
    check_weights(model.state_dict(), weights, paths[-1])
    model.load_state_dict(weights)
    return FineTuned(model, description)


def _is_published(source: str | os.PathLike[str]) -> bool:
    """Whether it is for :func:`mae_ast.load`: not a file of a training of ours, or its folder."""
    path = Path(source)
    if path.is_dir():
        return (path / CONFIG_FILE).is_file()
    if path.suffix == ".safetensors" or not path.is_file():
        return not os.fspath(source).endswith(".pt")
    return ast_release.is_ast(read_state(path))


def _published(source: str | os.PathLike[str]) -> FineTuned:
    """AST as its authors trained it, on its own pooled output; usually every class by itself."""
    model = load(source)
    if not isinstance(model, PretrainedAst) or model.encoder_only:
        raise CheckpointError(
            f"{os.fspath(source)}: is not a fine-tuned checkpoint; 'mae-ast finetune' writes one"
        )
    config = model.config
    mids = tuple(f"class_{n}" for n in range(config.num_classes))
    head = HeadConfig(config.num_classes, pool="encoder")
    frames = config.input_frames or config.position_frames
    description = ClassifierSpec(
        "ast",
        dataclasses.asdict(config),
        head,
        Labels(mids, model.labels or mids),
        independent=model.independent,
        multi_label=model.independent,
        clip_samples=num_samples_of_frames(frames),
    )
    norm, linear = model.head.layer_norm, model.head.linear
    classifier = Classifier(encoder_only(model), config.encoder_embed_dim, head)
    for layer, weights in ((classifier.head[0], norm), (classifier.head[-1], linear)):
        layer.load_state_dict(weights.state_dict())
    classifier.head[0].eps = config.head_layer_norm_eps  # type: ignore[assignment]
    return FineTuned(classifier, description)


def _description(path: Path) -> ClassifierSpec:
    try:
        values = read_state(path)["task_state"][FINETUNING]
        description = ClassifierSpec.from_dict(values)
        if description.system not in SYSTEMS:
            raise ValueError(f"is made of {description.system!r}; {', '.join(SYSTEMS)} are known")
        return description
    except CheckpointError:
        raise
    except (KeyError, TypeError) as error:
        raise CheckpointError(
            f"{path}: is not a fine-tuned checkpoint; 'mae-ast finetune' writes one"
        ) from error
    except ValueError as error:
        raise CheckpointError(f"{path}: {error}") from error


def _files(source: Path, num_averaged: int) -> Sequence[Path]:
    """The checkpoints to average, oldest first."""
    if num_averaged < 1:
        raise ValueError(f"--average {num_averaged}; at least 1")
    if not source.is_dir():
        if num_averaged > 1:
            raise ValueError(f"--average {num_averaged}: {source} is no run's folder but one file")
        if not source.is_file():
            raise FileNotFoundError(f"{source}: no such checkpoint or run{suggestion(source)}")
        return [source]
    folder = source / "checkpoints" if (source / "checkpoints").is_dir() else source
    if num_averaged == 1:
        last = latest(folder)
        if last is None:
            raise FileNotFoundError(f"{folder / LAST}: no such file; {source} has no checkpoint")
        return [last]
    of_epochs = sorted(
        (path for path in folder.glob("checkpoint*.pt") if path.stem[10:].isdigit()),
        key=lambda path: int(path.stem[10:]),
    )
    if len(of_epochs) < num_averaged:
        raise ValueError(
            f"--average {num_averaged}: {folder} has {plural(len(of_epochs), 'epoch checkpoint')}; "
            "train with checkpoint.no_epoch_checkpoints=false and checkpoint.keep_last_epochs"
        )
    return of_epochs[-num_averaged:]
