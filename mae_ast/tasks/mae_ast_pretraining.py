"""fairseq task ``mae_ast_pretraining``."""

# No postponed annotations here: fairseq reads the types of the fields.
import dataclasses
import logging
import os
from dataclasses import dataclass, field
from itertools import islice
from typing import TYPE_CHECKING, Any, Optional

import torch
from fairseq.tasks import register_task
from omegaconf import II
from tensorboardX import SummaryWriter

import mae_ast.criterions.mae_ast  # noqa: F401  (fairseq imports no criterions of a user-dir)
from mae_ast.console import user_errors
from mae_ast.core.frontend.collate import Clip, Collater
from mae_ast.core.frontend.masking import MaskIds
from mae_ast.core.inference.reconstruct import Reconstruction, reconstruct
from mae_ast.core.io.manifest import Manifest
from mae_ast.core.models.encoder import Encoder
from mae_ast.data.pretraining_dataset import PretrainingDataset
from mae_ast.evaluate.plots import reconstruction_figure, to_array
from mae_ast.tasks.audio_task import AudioTask, AudioTaskConfig, absolute

if TYPE_CHECKING:
    from mae_ast.evaluate.feature_monitor import PeriodicMonitor

logger = logging.getLogger(__name__)

FBANK_PLACES = ("auto", "workers", "device")
NUM_PICTURES = 4


@dataclass
class MaeAstPretrainingConfig(AudioTaskConfig):
    """``task.*``. Sizes are in samples at 16 kHz."""

    mask_type: str = field(
        default="random_mask",
        metadata={"help": "random_mask, random_mask_batched, chunk_mask or retain_spans"},
    )
    pad_audio: bool = field(
        default=False,
        metadata={"help": "pad to a batch's longest clip; false: crop to its shortest"},
    )
    fbank: str = field(
        default="auto",
        metadata={
            "help": "where the filterbank runs: 'workers' of the data loader, 'device' (batches "
            "travel as int16), or 'auto': the device where that is a GPU"
        },
    )
    roll_mag: bool = field(
        default=False,
        metadata={
            "help": "rotate training clips by any amount and scale them by 0.5 to 1.5, as "
            "Audio-MAE's authors do"
        },
    )
    probe_interval_updates: int = field(
        default=0,
        metadata={"help": "look at the features every so many updates (RankMe, probe); 0: never"},
    )
    probe_data: Optional[str] = field(  # noqa: UP045
        default=None,
        metadata={
            "help": "folder of labels.csv, train.tsv, train.lbl, valid.tsv, valid.lbl, to probe "
            "the features on; null: RankMe only"
        },
    )
    probe_clips: int = field(
        default=1000,
        metadata={"help": "at most so many clips of each manifest, spread evenly over its rows"},
    )
    cpu: bool = II("common.cpu")
    valid_subset: str = II("dataset.valid_subset")
    tensorboard_logdir: Optional[str] = II("common.tensorboard_logdir")  # noqa: UP045


@register_task("mae_ast_pretraining", dataclass=MaeAstPretrainingConfig)
class MaeAstPretrainingTask(AudioTask):
    """Masked autoencoding of audio."""

    cfg: MaeAstPretrainingConfig

    def __init__(self, cfg: MaeAstPretrainingConfig) -> None:
        super().__init__(cfg)
        if cfg.fbank not in FBANK_PLACES:
            raise ValueError(f"task.fbank={cfg.fbank!r}; it is one of {', '.join(FBANK_PLACES)}")
        self._model: Any = None
        self._writer: SummaryWriter | None = None
        self._health = self._health_monitor(cfg)

    def build_model(self, cfg: Any, from_checkpoint: bool = False) -> Any:
        """Build the model; its patches, masks and filterbank are the data's too."""
        self._model = super().build_model(cfg, from_checkpoint)
        return self._model

    def input_encoder(self) -> Encoder:
        """Return the model, whose input statistics are the encoder's."""
        encoder: Encoder = self._model
        return encoder

    def build_criterion(self, cfg: Any, from_checkpoint: bool = False) -> Any:
        """Build the criterion, and take the head of a loss of weight 0 out of training."""
        with user_errors():
            criterion = super().build_criterion(cfg, from_checkpoint)
            self._model.train_heads(
                reconstruction=criterion.reconstruction_weight > 0,
                classification=criterion.classification_weight > 0,
            )
        return criterion

    def make_dataset(self, split: str, manifest: Manifest) -> PretrainingDataset:
        """Make the data set of a split; the training split is shuffled, the others never."""
        if self._model is None:
            raise RuntimeError("build_model comes first: the data depends on the model's patches")
        return PretrainingDataset(
            manifest,
            Collater(
                self._model.config,
                self.cfg.mask_type,
                pad=self.cfg.pad_audio,
                random_crop=self.cfg.random_crop,
                compute_fbank=self._fbank_in_workers(),
            ),
            seed=self.cfg.seed,
            shuffle=split == self.cfg.train_subset,
            roll_mag=self.cfg.roll_mag,
            min_samples=self.cfg.min_sample_size,
            max_keep_samples=self.cfg.max_keep_size,
            max_samples=self.cfg.max_sample_size,
            max_bad_fraction=self.cfg.max_bad_fraction,
        )

    def post_validate(self, model: Any, stats: dict[str, Any], agg: Any) -> None:
        """Put a picture of a few validation clips into TensorBoard."""
        is_first = not torch.distributed.is_initialized() or torch.distributed.get_rank() == 0
        if not self.cfg.tensorboard_logdir or not is_first:
            return
        if self._writer is None:
            self._writer = SummaryWriter(os.path.join(self.cfg.tensorboard_logdir, "pictures"))
        for split, dataset in self.datasets.items():
            if split == self.cfg.train_subset:
                continue
            rebuilt = _reconstruct_some(model, dataset)
            if rebuilt is not None:
                picture = to_array(reconstruction_figure(rebuilt))
                self._writer.add_image(split, picture, stats["num_updates"], dataformats="HWC")
        self._writer.flush()

    def after_update(self, model: Any, num_updates: int) -> None:
        """Now and then look at the features."""
        if self._health is not None:
            self._health.after_update(model, num_updates)

    def _health_monitor(self, cfg: MaeAstPretrainingConfig) -> "PeriodicMonitor | None":
        if cfg.probe_interval_updates < 0:
            raise ValueError(f"task.probe_interval_updates={cfg.probe_interval_updates}; 0: never")
        if cfg.probe_interval_updates == 0:
            return None
        from mae_ast.evaluate.feature_monitor import (  # scikit-learn takes its time
            FeatureMonitor,
            PeriodicMonitor,
        )

        clips = self.folder / f"{cfg.valid_subset.split(',')[0]}.tsv"
        labelled = None if cfg.probe_data is None else absolute(cfg.probe_data)
        check = FeatureMonitor.read(clips, labelled, cfg.probe_clips)
        return PeriodicMonitor(check, cfg.probe_interval_updates, cfg.tensorboard_logdir)

    def _fbank_in_workers(self) -> bool:
        if self.cfg.fbank == "auto":
            return self.cfg.cpu or not torch.cuda.is_available()
        return self.cfg.fbank == "workers"


@torch.no_grad()
def _reconstruct_some(model: Any, dataset: PretrainingDataset) -> Reconstruction | None:
    """Reconstruct the first few readable clips; ``None`` if none or not finite."""
    read = map(dataset.__getitem__, range(len(dataset)))
    clips = list(islice((clip for clip in read if isinstance(clip, Clip)), NUM_PICTURES))
    if not clips:
        return None
    collate = dataclasses.replace(dataset.collate, pad=False, compute_fbank=False)
    batch = collate(clips)
    device = next(model.parameters()).device
    mask = MaskIds(batch.mask.visible_ids.to(device), batch.mask.masked_ids.to(device))
    try:
        return reconstruct(model.eval(), batch.source.to(device), mask)
    except ValueError as error:  # training diverges, which the trainer says at its next step
        logger.warning("no plot of validation clips: %s", error)
        return None
