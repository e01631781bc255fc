"""Derive settings of fine-tuning from the training data: batch, epochs, learning rate, balancing.

Published recipes guided the rules: batches of 48 and 25 epochs for ESC-50 (1,600 clips of 5 s),
128 and 30 for Speech Commands (85,000 of 1 s), 12 and 25 for AudioSet's balanced set (20,000 of
10 s), 12 and 5 for the full set (2 million).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from mae_ast.core.frontend.fbank import num_frames
from mae_ast.core.io.audio import SAMPLE_RATE
from mae_ast.core.io.labels import LABELS_FILE, UNEVEN, ClipLabels, Labels
from mae_ast.core.io.manifest import Manifest
from mae_ast.core.io.plural import plural
from mae_ast.core.models.config import EncoderConfig

NOTE_KEY = "from_data"  # in the record of a run
MAX_CLIP_S = 10.0  # training clips are cropped to this length
MAX_BATCH_S = 160.0  # audio in a batch
MAX_BATCH, MIN_BATCH = 128, 8
MIN_BATCHES = 8  # of an epoch, if the batch is not smaller than MIN_BATCH then
EPOCHS_OF_ONE_CLIP = 2_000  # epochs are inversely proportional to the square root of the clips
MAX_EPOCHS, MIN_EPOCHS = 100, 5
LR, LR_BATCH, LR_WIDTH = 2e-4, 32, 768  # learning rate for this batch size and encoder width
WARMUP = 0.1  # ratio of the updates
NUM_VALIDATIONS = 20
MASKED_TIME = 0.2  # maximum ratio of a clip's frames that SpecAugment masks
FRAMES_MULTIPLE = 16  # for clips of a fixed length

_BATCH, _UPDATES, _EPOCHS = (
    "dataset.batch_size",
    "optimization.max_update",
    "optimization.max_epoch",
)
_WORLD, _FREQ = "distributed_training.distributed_world_size", "optimization.update_freq"
_SAMPLES, _BATCHES = "task.max_sample_size", "task.batches_per_update"


@dataclass(frozen=True)
class TrainingData:
    """Statistics of a training split.

    Args:
        num_clips: number of clips.
        hours: total duration.
        longest_samples: length of the longest clip in samples at 16 kHz.
        counts: number of clips of each class.
        multi_label: clips of the training or validation split have several labels.
    """

    num_clips: int
    hours: float
    longest_samples: int
    counts: tuple[int, ...]
    multi_label: bool

    @classmethod
    def read(cls, data: Path) -> TrainingData:
        """Read the manifests and labels of a folder.

        Raises:
            FileNotFoundError, ValueError: a file does not exist or is invalid.
        """
        folds = sorted(path.name for path in data.glob("fold*") if path.is_dir())
        if folds and not (data / "train.tsv").is_file():
            raise FileNotFoundError(
                f"{data}: has {plural(len(folds), 'fold')}; fine-tune on one of them, such as "
                f"{data / folds[0]}, or on all with 'mae-ast crossvalidate'"
            )
        labels = Labels.read(data / LABELS_FILE)
        several = False
        for split in ("valid", "train"):
            if split == "valid" and not (data / f"{split}.lbl").is_file():
                continue
            manifest = Manifest.load(data / f"{split}.tsv")
            clips = ClipLabels.read(data / f"{split}.lbl", labels, len(manifest))
            several = several or bool(clips.counts.sum() > len(clips))
        lengths = manifest.num_samples
        return cls(
            len(manifest),
            float(lengths.sum()) / SAMPLE_RATE / 3600,
            int(lengths.max()),
            tuple(clips.counts.tolist()),
            several,
        )

    @property
    def is_uneven(self) -> bool:
        """``True`` if the largest class has several times the clips of the smallest."""
        present = [count for count in self.counts if count]
        return max(present) > UNEVEN * min(present)

    def describe(self) -> str:
        """Return number and duration of the clips, and number of classes."""
        classes = plural(len(self.counts), "class", "classes")
        return f"{plural(self.num_clips, 'clip')}, {self.hours:.2f} h, {classes}"


def settings_of_run(
    recorded: Any, data: Path, source: str, overrides: Sequence[str]
) -> tuple[dict[str, Any], str]:
    """Return the settings of a run from its data, and their origin.

    Args:
        recorded: these settings of the run that resumes; ``None`` for a new run.
        data: folder of the manifests.
        source: initial checkpoint.
        overrides: hydra's overrides.

    Raises:
        FileNotFoundError, ValueError: the data or the checkpoint is invalid.
    """
    if isinstance(recorded, dict):
        return recorded, "as at the start of the run"
    if source.startswith("timm:"):
        raise ValueError(
            f"{source}: image weights initialise AST; give one of its presets, such as --config "
            "ast_esc50 (see the presets that begin with ast_)"
        )
    found = TrainingData.read(data)
    return derive(found, _encoder_config(source), overrides), found.describe()


def derive(
    data: TrainingData, encoder: EncoderConfig, overrides: Sequence[str] = ()
) -> dict[str, Any]:
    """Return the settings of the preset ``own`` that depend on the data and the model.

    Args:
        data: the training data.
        encoder: configuration of the pretrained encoder.
        overrides: hydra's overrides, which are respected: their keys are not in the result, and
            other settings follow from their values.
    """
    given = _numbers(overrides)
    samples = int(given.get(_SAMPLES, min(data.longest_samples, MAX_CLIP_S * SAMPLE_RATE)))
    batch = int(given.get(_BATCH, _batch_size(data.num_clips, samples / SAMPLE_RATE)))
    batches = given.get(_BATCHES) or given.get(_WORLD, 1) * given.get(_FREQ, 1)
    per_update = batch * batches
    per_epoch = math.ceil(data.num_clips / max(per_update, 1))
    epochs = given.get(_EPOCHS) or round(EPOCHS_OF_ONE_CLIP / math.sqrt(data.num_clips))
    if not given.get(_EPOCHS):
        epochs = min(max(epochs, MIN_EPOCHS), MAX_EPOCHS)
    updates = int(given.get(_UPDATES) or epochs * per_epoch)
    interval = math.ceil(updates / per_epoch / NUM_VALIDATIONS)
    rate = LR * math.sqrt(per_update / LR_BATCH) * LR_WIDTH / encoder.encoder_embed_dim
    frames = num_frames(samples)
    settings: dict[str, Any] = {
        _BATCH: batch,
        _UPDATES: updates,
        "optimization.lr": [float(f"{rate:.2g}")],
        "lr_scheduler.warmup_updates": round(WARMUP * updates),
        "dataset.validate_interval": interval,
        "checkpoint.save_interval": interval,
        _SAMPLES: samples,
        "task.time_mask": round(MASKED_TIME * frames),
        "task.multi_label": data.multi_label,
        "task.balanced": data.is_uneven,
    }
    if encoder.input_frames is not None:  # do not pad short clips to the length of pretraining
        padded = math.ceil(frames / FRAMES_MULTIPLE) * FRAMES_MULTIPLE
        settings["model.input_frames"] = min(encoder.input_frames, padded)
    return {key: value for key, value in settings.items() if key not in _keys(overrides)}


def as_overrides(settings: Mapping[str, Any], overrides: Sequence[str]) -> list[str]:
    """Return settings as hydra's overrides, except those that ``overrides`` set."""
    given = _keys(overrides)
    return [f"{key}={_text(value)}" for key, value in settings.items() if key not in given]


@cache
def _encoder_config(source: str) -> EncoderConfig:
    """Return the configuration of a model's encoder; the folds of a data set share it."""
    from mae_ast.hub.load import read_encoder  # imports the hub's client

    return read_encoder(source)[0]


def _batch_size(num_clips: int, clip_s: float) -> int:
    """Return a power of two."""
    limit = min(MAX_BATCH, MAX_BATCH_S / clip_s, num_clips / MIN_BATCHES)
    return int(2 ** math.floor(math.log2(max(limit, MIN_BATCH))))


def _numbers(overrides: Sequence[str]) -> dict[str, float]:
    """Return the overrides that are a number, or a list of one."""
    found = {}
    for override in overrides:
        key, _, value = override.partition("=")
        try:
            found[key.lstrip("+")] = float(value.strip(" []"))
        except ValueError:
            continue
    return found


def _keys(overrides: Sequence[str]) -> set[str]:
    return {override.partition("=")[0].lstrip("+") for override in overrides}


def _text(value: Any) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, list):
        return f"[{','.join(map(_text, value))}]"
    return str(value)
