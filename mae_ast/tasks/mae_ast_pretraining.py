"""fairseq task ``mae_ast_pretraining``: masked pretraining on the audio of {split}.tsv."""

# No postponed annotations: fairseq reads the field types at run time.
import dataclasses
import logging
import os
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from itertools import islice
from typing import TYPE_CHECKING, Any, Optional

import torch
from fairseq.logging import metrics
from fairseq.tasks import register_task
from omegaconf import II, MISSING
from tensorboardX import SummaryWriter

import mae_ast.criterions.mae_ast
import mae_ast.optim.adam  # noqa: F401  (fairseq imports nothing but tasks and models)
from mae_ast.core.frontend.collate import Clip, Collater
from mae_ast.core.inference.reconstruct import Reconstruction, reconstruct
from mae_ast.core.io.joined import read_manifests
from mae_ast.core.io.manifest import Manifest
from mae_ast.core.models.encoder import Encoder
from mae_ast.core.settings import setting
from mae_ast.data.mixed_dataset import MixedDataset
from mae_ast.data.mixture import Mixture
from mae_ast.data.pretraining_dataset import PretrainingDataset
from mae_ast.tasks.audio_task import AudioTask, AudioTaskConfig, absolute
from mae_ast.trainer.fairseq_patches import logged_values

if TYPE_CHECKING:
    from mae_ast.evaluate.feature_monitor import PeriodicMonitor

logger = logging.getLogger(__name__)

NUM_PLOTTED_CLIPS = 4
FLUSH_S = 2  # seconds until a plot is on disk


@dataclass
class MaeAstPretrainingConfig(AudioTaskConfig):
    """Settings under ``task.*``. Sizes are in samples at 16 kHz."""

    data: Any = setting(  # noqa: RUF009
        MISSING,
        help="folder that holds the manifests train.tsv, valid.tsv, ..., or a list of such folders",
    )
    mixture: Optional[list[float]] = setting(  # noqa: RUF009, UP045
        None,
        help="share of each folder of task.data in the clips of an epoch, such as [0.7,0.3]; null: "
        "by size, see task.mixture_temperature",
    )
    mixture_temperature: float = setting(
        1.0,
        help="share of each folder of task.data: proportional to (number of clips) ** (1 / this); "
        "1: each clip once per epoch",
        positive=True,
    )
    mask_type: str = setting(
        "random_mask",
        help="masking strategy: random_mask (random tokens of each clip), random_mask_batched (the "
        "same tokens for a whole batch), chunk_mask (square blocks of patches) or "
        "retain_spans (spans of frame tokens, as in wav2vec 2.0)",
    )
    pad_audio: bool = setting(
        False, help="zero-pad clips to the longest of their batch; false: crop them to the shortest"
    )
    batching: str = setting(
        "cropped",
        help="cropped: batches of clips of similar lengths, cropped to the shortest (see "
        "task.pad_audio); packed: clips of any lengths in random order, side by side in rows of "
        "dataset.max_tokens samples, neither padded nor cropped below task.max_sample_size",
        choices=("cropped", "packed"),
    )
    roll_mag: bool = setting(
        False,
        help="shift training clips circularly by a random offset; scale by a random factor from "
        "0.5 to 1.5 (Audio-MAE's roll-mag)",
    )
    probe_interval_updates: int = setting(
        0,
        help="log feature metrics (RankMe; with task.probe_data also a linear probe and k-NN) "
        "every this many updates; 0: never",
        minimum=0,
    )
    probe_data: Optional[str] = setting(  # noqa: UP045
        None,
        help="folder with labels.csv, train.tsv, train.lbl, valid.tsv and valid.lbl for the linear "
        "probe and k-NN; null: log RankMe only",
    )
    probe_clips: int = setting(
        1000,
        help="maximum number of clips per manifest for the feature metrics, spread evenly over its "
        "rows",
    )
    cpu: bool = II("common.cpu")
    fp16: bool = II("common.fp16")
    bf16: bool = II("common.bf16")
    valid_subset: str = II("dataset.valid_subset")
    tensorboard_logdir: Optional[str] = II("common.tensorboard_logdir")  # noqa: UP045


@register_task("mae_ast_pretraining", dataclass=MaeAstPretrainingConfig)
class MaeAstPretrainingTask(AudioTask):
    """Masked pretraining of spectrogram transformers."""

    config = MaeAstPretrainingConfig
    cfg: MaeAstPretrainingConfig

    def __init__(self, cfg: MaeAstPretrainingConfig) -> None:
        super().__init__(cfg)
        self.mixture = Mixture.of(self.folders, cfg.mixture, cfg.mixture_temperature)
        if self.mixture is not None and not cfg.rebuild_batches:
            raise ValueError(
                "task.rebuild_batches=false: a mixture of several data folders draws other clips "
                "in each epoch; set it to true"
            )
        self._model: Any = None
        self._writer: SummaryWriter | None = None
        self._monitor = self._build_monitor(cfg)

    def build_model(self, cfg: Any, from_checkpoint: bool = False) -> Any:
        """Build the model, which the data sets need for its patch size, masks and filterbank."""
        self._model = super().build_model(cfg, from_checkpoint)
        return self._model

    def input_encoder(self) -> Encoder:
        """Return the model itself, which holds the encoder's input statistics."""
        encoder: Encoder = self._model
        return encoder

    def build_criterion(self, cfg: Any, from_checkpoint: bool = False) -> Any:
        """Build the criterion, and disable the head of a loss whose weight is 0."""
        criterion = super().build_criterion(cfg, from_checkpoint)
        weights = criterion.reconstruction_weight, criterion.classification_weight
        try:
            self._model.train_heads(*(weight > 0 for weight in weights))
        except ValueError as error:
            raise ValueError(
                f"{error}; set criterion.classification_weight=0 and "
                "criterion.reconstruction_weight above 0"
            ) from error
        return criterion

    def make_dataset(self, split: str, manifest: Manifest) -> PretrainingDataset:
        """Create the data set of a split; only the training split is shuffled."""
        if self._model is None:
            raise RuntimeError(
                "call build_model before load_dataset: the data depends on the model's patch size"
            )
        if self.cfg.batching == "packed":
            self._check_packing()
        is_training = split == self.cfg.train_subset
        build: Any = PretrainingDataset
        if is_training and self.mixture is not None:
            build = partial(MixedDataset, mixture=self.mixture)
        dataset: PretrainingDataset = build(
            manifest,
            Collater(
                self._model.config,
                self.cfg.mask_type,
                pad=self.cfg.pad_audio,
                random_crop=self.cfg.random_crop,
                compute_fbank=self._fbank_in_workers(),
            ),
            seed=self.cfg.seed,
            shuffle=is_training,
            roll_mag=self.cfg.roll_mag,
            packed=self.cfg.batching == "packed",
            min_samples=self.cfg.min_sample_size,
            max_keep_samples=self.cfg.max_keep_size,
            max_samples=self.cfg.max_sample_size,
            max_bad_fraction=self.cfg.max_bad_fraction,
            shards_at_once=self.cfg.shards_at_once,
        )
        return dataset

    def train_step(
        self, sample: dict[str, Any], *args: Any, **kwargs: Any
    ) -> tuple[torch.Tensor, int, dict[str, Any]]:
        """Run fairseq's step; log the number of clips of each corpus of a mixture."""
        loss, sample_size, logging_output = super().train_step(sample, *args, **kwargs)
        for name, count in sample.get("clips_of", {}).items():
            logging_output[f"clips_{name}"] = float(count)
        return loss, sample_size, logging_output

    def reduce_metrics(self, logging_outputs: Sequence[dict[str, Any]], criterion: Any) -> None:
        """Log the criterion's values and, as sums, the clips of each corpus of a mixture."""
        super().reduce_metrics(logging_outputs, criterion)
        if criterion.training and self.mixture is not None:
            for key in (f"clips_{name}" for name in self.mixture.names):
                count = round(sum(float(log.get(key, 0)) for log in logging_outputs))
                metrics.log_scalar_sum(key, count, priority=161)

    def _check_packing(self) -> None:
        """Refuse settings that rows of clips do not support.

        Raises:
            ValueError: such a setting; the message names it.
        """
        config, on_cpu = self._model.config, self.cfg.cpu or not torch.cuda.is_available()
        problems = (
            (self.cfg.pad_audio, "task.pad_audio=true: nothing is padded"),
            (
                self.cfg.mask_type == "random_mask_batched",
                "task.mask_type=random_mask_batched: clips of different lengths share no mask",
            ),
            (
                config.input_frames is not None,
                f"model.input_frames={config.input_frames}: clips keep their lengths",
            ),
            (
                config.attention_dropout > 0 and not on_cpu,
                f"model.attention_dropout={config.attention_dropout} on a GPU, whose kernel for "
                "clips of different lengths has no dropout; set it to 0",
            ),
        )
        for is_set, problem in problems:
            if is_set:
                raise ValueError(f"task.batching=packed does not support {problem}")

    def post_validate(self, model: Any, stats: dict[str, Any], agg: Any) -> None:
        """Plot the reconstruction of a few validation clips in TensorBoard."""
        is_first = not torch.distributed.is_initialized() or torch.distributed.get_rank() == 0
        if not self.cfg.tensorboard_logdir or not is_first:
            return
        from mae_ast.evaluate.plots import reconstruction_figure, to_array  # imports matplotlib

        if self._writer is None:
            # Its flush() ignores plots that another thread has not yet written to the file.
            folder = os.path.join(self.cfg.tensorboard_logdir, "pictures")
            self._writer = SummaryWriter(folder, flush_secs=FLUSH_S)
        for split, dataset in self.datasets.items():
            if split == self.cfg.train_subset:
                continue
            reconstruction = _reconstruct_first_clips(model, dataset)
            if reconstruction is not None:
                image = to_array(reconstruction_figure(reconstruction))
                self._writer.add_image(split, image, stats["num_updates"], dataformats="HWC")

    def after_update(self, model: Any, num_updates: int) -> None:
        """Log feature metrics every ``task.probe_interval_updates`` updates."""
        if self._monitor is not None:
            found = self._monitor.after_update(model, num_updates)
            if found:
                logged_values.record("health", num_updates, found)

    def _build_monitor(self, cfg: MaeAstPretrainingConfig) -> "PeriodicMonitor | None":
        if cfg.probe_interval_updates == 0:
            return None
        from mae_ast.evaluate.feature_monitor import (  # scikit-learn is slow to import
            FeatureMonitor,
            PeriodicMonitor,
        )

        name = f"{cfg.valid_subset.split(',')[0]}.tsv"
        clips = read_manifests([folder / name for folder in self.folders])
        labelled = None if cfg.probe_data is None else absolute(cfg.probe_data)
        monitor = FeatureMonitor.read(clips, labelled, cfg.probe_clips)
        return PeriodicMonitor(monitor, cfg.probe_interval_updates, cfg.tensorboard_logdir)

    def _fbank_in_workers(self) -> bool:
        """Return whether data workers compute the filterbank, beside a model on the CPU.

        Not in half precision, to which the trainer would cast the log-mel values.
        """
        is_on_cpu = self.cfg.cpu or not torch.cuda.is_available()
        return is_on_cpu and not (self.cfg.fp16 or self.cfg.bf16)


@torch.no_grad()
def _reconstruct_first_clips(model: Any, dataset: PretrainingDataset) -> Reconstruction | None:
    """Reconstruct the first readable clips; ``None`` without any, or if values are not finite."""
    items = map(dataset.__getitem__, range(len(dataset)))
    clips = list(islice((clip for clip in items if isinstance(clip, Clip)), NUM_PLOTTED_CLIPS))
    if not clips:
        return None
    collate = dataclasses.replace(dataset.collate, pad=False, compute_fbank=False)
    batch = collate(clips)
    device = next(model.parameters()).device
    try:
        return reconstruct(model.eval(), batch.source.to(device), batch.mask.to(device))
    except ValueError as error:  # if training has diverged, its next step reports it
        logger.warning("no plot of validation clips: %s", error)
        return None
