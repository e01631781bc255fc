"""fairseq task ``mae_ast_classification``: labels.csv, {split}.tsv and {split}.lbl."""

# No postponed annotations here: fairseq reads the types of the fields.
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Optional

from fairseq.tasks import register_task

import mae_ast.criterions.classification
import mae_ast.optim.adamw  # noqa: F401  (fairseq imports nothing but tasks and models)
from mae_ast.console import user_errors
from mae_ast.core.checkpoints.classifier import ClassifierSpec
from mae_ast.core.checkpoints.reader import FINETUNING
from mae_ast.core.frontend.augment import Augmentation, StructuredDrop
from mae_ast.core.io.labels import LABELS_FILE, ClipLabels, LabelError, Labels
from mae_ast.core.io.manifest import Manifest
from mae_ast.core.models.encoder import Encoder
from mae_ast.criterions.score_meter import log_scores
from mae_ast.data.audio_clips import AudioClips
from mae_ast.data.classification_dataset import ClassificationDataset, check_one_label
from mae_ast.data.clip_warnings import crop_warning
from mae_ast.tasks.audio_task import AudioTask, AudioTaskConfig


@dataclass
class MaeAstClassificationConfig(AudioTaskConfig):
    """``task.*``. Sizes are in samples at 16 kHz; validation sees whole clips."""

    multi_label: bool = field(
        default=False,
        metadata={
            "help": "clips have several labels: sigmoid per class, mAP and AUC; false: accuracy"
        },
    )
    balanced: bool = field(
        default=False, metadata={"help": "draw clips of rare classes more often in training"}
    )
    mixup: float = field(
        default=0.0, metadata={"help": "probability that a clip is mixed with another one"}
    )
    mixup_alpha: float = field(
        default=10.0,
        metadata={"help": "alpha of Beta(alpha, alpha), from which the mixing ratio is drawn"},
    )
    freq_mask: int = field(
        default=0, metadata={"help": "SpecAugment hides fewer mel bins than this"}
    )
    time_mask: int = field(
        default=0, metadata={"help": "SpecAugment hides fewer frames of 10 ms than this"}
    )
    shift_samples: int = field(
        default=0, metadata={"help": "rotate waveforms by at most this many samples, either way"}
    )
    noise_snr_db: Optional[float] = field(  # noqa: UP045
        default=None,
        metadata={"help": "add white noise from this ratio of clip to noise to 30 dB fainter"},
    )
    roll_mag: bool = field(
        default=False,
        metadata={"help": "rotate waveforms by any amount and scale them by 0.5 to 1.5"},
    )
    drop_time: float = field(
        default=0.0,
        metadata={"help": "fraction of columns of patches that the encoder does not see"},
    )
    drop_mel: float = field(
        default=0.0, metadata={"help": "fraction of rows of patches that the encoder does not see"}
    )


@register_task("mae_ast_classification", dataclass=MaeAstClassificationConfig)
class MaeAstClassificationTask(AudioTask):
    """Classes of clips."""

    cfg: MaeAstClassificationConfig

    def __init__(self, cfg: MaeAstClassificationConfig) -> None:
        super().__init__(cfg)
        self.labels = Labels.read(self.folder / LABELS_FILE)
        if len(self.labels) < 2 and not cfg.multi_label:
            raise LabelError(
                f"{self.folder / LABELS_FILE}: lists one class, which any model gets right; give "
                "two or more, or set task.multi_label=true"
            )
        self.augmentation = Augmentation(
            cfg.mixup,
            cfg.mixup_alpha,
            cfg.freq_mask,
            cfg.time_mask,
            cfg.shift_samples,
            cfg.noise_snr_db,
            cfg.roll_mag,
        )

    def build_model(self, cfg: Any, from_checkpoint: bool = False) -> Any:
        """Build the model, whose shortest clip is the data's too."""
        self._model = super().build_model(cfg, from_checkpoint)
        encoder = self._model.encoder
        self._drop = None
        if self.cfg.drop_time or self.cfg.drop_mel:
            with user_errors():
                self._model.check_drop()
                self._drop = StructuredDrop(
                    encoder.patch_shape,
                    encoder.config.input_frames,
                    self.cfg.drop_time,
                    self.cfg.drop_mel,
                )
        return self._model

    def input_encoder(self) -> Encoder:
        """Return the classifier's encoder."""
        encoder: Encoder = self._model.encoder
        return encoder

    def data_warnings(self, dataset: AudioClips) -> list[str]:
        """Add a warning if clips are cropped to a fraction of their length."""
        frames = self.input_encoder().config.input_frames
        cropped = crop_warning(dataset, frames, self.cfg.max_sample_size)
        return [*super().data_warnings(dataset), *([] if cropped is None else [cropped])]

    def build_criterion(self, cfg: Any, from_checkpoint: bool = False) -> Any:
        """Build the criterion; now all is known that checkpoints say of the classifier."""
        with user_errors():
            criterion = super().build_criterion(cfg, from_checkpoint)
        description = ClassifierSpec(
            self._model.system,
            self._model.encoder_fields,
            self._model.head_config,
            self.labels,
            criterion.independent,
            self.cfg.multi_label,
            self.cfg.max_sample_size or 0,
        )
        self.state.merge_state_dict({FINETUNING: description.to_dict()})
        return criterion

    def make_dataset(self, split: str, manifest: Manifest) -> ClassificationDataset:
        """Add the labels of ``{split}.lbl``; only the training split is augmented."""
        is_training = split == self.cfg.train_subset
        path = self.folder / f"{split}.lbl"
        labels = ClipLabels.read(path, self.labels, len(manifest))
        if not self.cfg.multi_label:
            check_one_label(labels, path)
        return ClassificationDataset(
            manifest,
            labels,
            self._model.encoder.patch_shape.min_samples,
            self.cfg.seed,
            is_training,
            self.augmentation,
            self.cfg.balanced,
            self.cfg.random_crop,
            self._drop,
            min_samples=self.cfg.min_sample_size,
            max_keep_samples=self.cfg.max_keep_size,
            max_samples=self.cfg.max_sample_size if is_training else None,
            max_bad_fraction=self.cfg.max_bad_fraction,
        )

    def reduce_metrics(self, logging_outputs: Sequence[dict[str, Any]], criterion: Any) -> None:
        """Log the criterion's values, and in validation figures over all clips."""
        super().reduce_metrics(logging_outputs, criterion)
        if not criterion.training:
            ids, scores, targets = criterion.outputs
            log_scores(ids, scores, targets, self.cfg.multi_label)
