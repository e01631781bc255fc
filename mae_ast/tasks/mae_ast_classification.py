"""fairseq task ``mae_ast_classification``: fine-tuning on labels.csv, {split}.tsv, {split}.lbl."""

# No postponed annotations: fairseq reads the field types at run time.
from dataclasses import dataclass
from typing import Any

from fairseq.tasks import register_task

import mae_ast.criterions.classification
import mae_ast.optim.adamw  # noqa: F401  (fairseq imports nothing but tasks and models)
from mae_ast.core.checkpoints.classifier import FINETUNING, ClassifierSpec
from mae_ast.core.frontend.augment import (
    Augmentation,
    AugmentationConfig,
    DropConfig,
    StructuredDrop,
)
from mae_ast.core.io.labels import LABELS_FILE, ClipLabels, LabelError, Labels
from mae_ast.core.io.manifest import Manifest
from mae_ast.core.models.encoder import Encoder
from mae_ast.core.settings import setting, take
from mae_ast.criterions.score_meter import log_scores
from mae_ast.data.audio_clips import AudioClips
from mae_ast.data.classification_dataset import ClassificationDataset, check_one_label
from mae_ast.data.clip_warnings import crop_warning
from mae_ast.tasks.audio_task import AudioTask, AudioTaskConfig


@dataclass
class MaeAstClassificationConfig(DropConfig, AugmentationConfig, AudioTaskConfig):
    """Settings under ``task.*``. Sizes are in samples at 16 kHz; validation uses whole clips."""

    multi_label: bool = setting(
        False,
        help="true: clips may have several labels (sigmoid per class; mAP and mAUC); false: "
        "exactly one label per clip (softmax; accuracy)",
    )
    balanced: bool = setting(
        False,
        help="draw training clips with weights inversely proportional to the frequency of their "
        "classes",
    )


@register_task("mae_ast_classification", dataclass=MaeAstClassificationConfig)
class MaeAstClassificationTask(AudioTask):
    """Classification of clips, with one label each or several."""

    config = MaeAstClassificationConfig
    cfg: MaeAstClassificationConfig

    def __init__(self, cfg: MaeAstClassificationConfig) -> None:
        super().__init__(cfg)
        if len(self.folders) > 1:
            raise ValueError(
                f"task.data lists {len(self.folders)} folders; fine-tuning reads one, with one "
                "list of classes"
            )
        (self.folder,) = self.folders
        self.labels = Labels.read(self.folder / LABELS_FILE)
        if len(self.labels) < 2 and not cfg.multi_label:
            raise LabelError(
                f"{self.folder / LABELS_FILE}: lists a single class; list two or more, or set "
                "task.multi_label=true"
            )
        self.augmentation = take(Augmentation, cfg)

    def build_model(self, cfg: Any, from_checkpoint: bool = False) -> Any:
        """Build the model and, if patches are dropped in training, the sampler of visible ones."""
        self._model = super().build_model(cfg, from_checkpoint)
        self._drop = None
        if self.cfg.drop_time or self.cfg.drop_mel:
            if self._model.head_config.pool == "time_steps":
                raise ValueError(
                    "task.drop_time and task.drop_mel drop patches, of which no whole time "
                    "steps are left; set model.pool=tokens instead of time_steps"
                )
            encoder = self._model.encoder
            self._drop = StructuredDrop(
                encoder.patch_shape, encoder.config.input_frames, take(DropConfig, self.cfg)
            )
        return self._model

    def input_encoder(self) -> Encoder:
        """Return the classifier's encoder."""
        encoder: Encoder = self._model.encoder
        return encoder

    def data_warnings(self, dataset: AudioClips) -> list[str]:
        """Add a warning if training sees a small fraction of each clip."""
        frames = self.input_encoder().config.input_frames
        warning = crop_warning(dataset, frames, self.cfg.max_sample_size)
        return [*super().data_warnings(dataset), *([] if warning is None else [warning])]

    def build_criterion(self, cfg: Any, from_checkpoint: bool = False) -> Any:
        """Build the criterion, and put the classifier's description into the task's state."""
        criterion = super().build_criterion(cfg, from_checkpoint)
        spec = ClassifierSpec(
            self._model.encoder.config,
            self._model.head_config,
            self.labels,
            criterion.uses_sigmoid,
            self.cfg.multi_label,
            self.cfg.max_sample_size or 0,
        )
        self.state.merge_state_dict({FINETUNING: spec.to_dict()})
        return criterion

    def make_dataset(self, split: str, manifest: Manifest) -> ClassificationDataset:
        """Create the data set with the labels of ``{split}.lbl``; only training is augmented."""
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
            shards_at_once=self.cfg.shards_at_once,
        )

    def valid_step(
        self, sample: dict[str, Any], model: Any, criterion: Any, **kwargs: Any
    ) -> tuple[Any, int, dict[str, Any]]:
        """Run the step, and log the scores of its clips for metrics over all of them."""
        loss, num_clips, logging_output = super().valid_step(sample, model, criterion, **kwargs)
        ids, scores, targets = logging_output.pop("scores")
        log_scores(ids, scores, targets, self.cfg.multi_label)
        return loss, num_clips, logging_output
