"""fairseq task ``mae_ast_pretraining``."""

# No postponed annotations here: fairseq reads the types of the fields.
import dataclasses
import logging
import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any, Optional

import torch
from fairseq.dataclass import FairseqDataclass
from fairseq.logging import metrics
from fairseq.tasks import register_task
from hydra.core.hydra_config import HydraConfig
from omegaconf import II, MISSING
from tensorboardX import SummaryWriter

import mae_ast.criterions.mae_ast  # noqa: F401  (fairseq imports no criterions of a user-dir)
from mae_ast import fairseq_repairs, interruption
from mae_ast.core.audio import SAMPLE_RATE
from mae_ast.core.batch import Collater
from mae_ast.core.config import MaeAstConfig
from mae_ast.core.manifest import Manifest
from mae_ast.core.masking import MaskIds
from mae_ast.core.reconstruct import Reconstruction, reconstruct
from mae_ast.data.bad_files import TooManyBadFilesError
from mae_ast.data.pretraining_dataset import PretrainingDataset
from mae_ast.errors import user_errors
from mae_ast.interruption import InterruptibleTask
from mae_ast.pictures import reconstruction_figure, to_array
from mae_ast.progress import bar

logger = logging.getLogger(__name__)

# fairseq offers no later moment: next, it reads the options.
fairseq_repairs.apply()

FBANK_PLACES = ("auto", "workers", "device")
NUM_PICTURES = 4


@dataclass
class MaeAstPretrainingConfig(FairseqDataclass):  # type: ignore[misc]
    """``task.*``. Sizes are in samples at 16 kHz."""

    data: str = field(
        default=MISSING, metadata={"help": "folder of the manifests train.tsv, valid.tsv, ..."}
    )
    mask_type: str = field(
        default="random_mask",
        metadata={"help": "random_mask, random_mask_batched, chunk_mask or retain_spans"},
    )
    max_keep_size: Optional[int] = field(  # noqa: UP045
        default=None, metadata={"help": "leave out longer clips"}
    )
    max_sample_size: Optional[int] = field(  # noqa: UP045
        default=None, metadata={"help": "crop longer clips to this"}
    )
    min_sample_size: Optional[int] = field(  # noqa: UP045
        default=None, metadata={"help": "leave out shorter clips"}
    )
    random_crop: bool = field(
        default=True, metadata={"help": "crop anywhere; false: at the beginning"}
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
    max_bad_fraction: float = field(
        default=0.01,
        metadata={"help": "stop when more than this share of the files read (and 20) are bad"},
    )
    rebuild_batches: bool = field(
        default=True,
        metadata={"help": "put other clips together in each epoch (read by fairseq)"},
    )
    seed: int = II("common.seed")
    cpu: bool = II("common.cpu")
    train_subset: str = II("dataset.train_subset")
    tensorboard_logdir: Optional[str] = II("common.tensorboard_logdir")  # noqa: UP045


@register_task("mae_ast_pretraining", dataclass=MaeAstPretrainingConfig)
class MaeAstPretrainingTask(InterruptibleTask):
    """Masked autoencoding of audio."""

    cfg: MaeAstPretrainingConfig

    def __init__(self, cfg: MaeAstPretrainingConfig) -> None:
        super().__init__(cfg)
        if cfg.fbank not in FBANK_PLACES:
            raise ValueError(f"task.fbank={cfg.fbank!r}; it is one of {', '.join(FBANK_PLACES)}")
        if not 0 <= cfg.max_bad_fraction <= 1:
            raise ValueError(f"task.max_bad_fraction={cfg.max_bad_fraction}; a share from 0 to 1")
        _check_sizes(cfg)
        self.folder = _absolute(cfg.data)
        self.audio_seconds = 0.0  # of all workers, since the first update
        self._model_config: MaeAstConfig | None = None
        self._writer: SummaryWriter | None = None

    @classmethod
    def setup_task(cls, cfg: MaeAstPretrainingConfig, **kwargs: Any) -> "MaeAstPretrainingTask":
        """Called by fairseq at the start of each training process."""
        interruption.listen()
        with user_errors():
            return cls(cfg)

    def build_model(self, cfg: Any, from_checkpoint: bool = False) -> Any:
        """Build the model; its patches and mask ratio are the data's too."""
        model = super().build_model(cfg, from_checkpoint)
        self._model_config = MaeAstConfig.from_mapping(cfg)
        self._model = model
        return model

    def build_criterion(self, cfg: Any, from_checkpoint: bool = False) -> Any:
        """Build the criterion, and take the head of a loss of weight 0 out of training."""
        with user_errors():
            criterion = super().build_criterion(cfg, from_checkpoint)
        self._model.train_heads(
            reconstruction=criterion.reconstruction_weight > 0,
            classification=criterion.classification_weight > 0,
        )
        return criterion

    def load_dataset(self, split: str, **kwargs: Any) -> None:
        """Read ``{split}.tsv``; the training split is shuffled, the others never."""
        if self._model_config is None:
            raise RuntimeError("build_model comes first: the data depends on the model's patches")
        with user_errors():
            self.datasets[split] = PretrainingDataset(
                Manifest.load(self.folder / f"{split}.tsv", bar("reading sample rates", "file")),
                Collater(
                    self._model_config,
                    self.cfg.mask_type,
                    pad=self.cfg.pad_audio,
                    random_crop=self.cfg.random_crop,
                    compute_fbank=self._fbank_in_workers(),
                ),
                seed=self.cfg.seed,
                shuffle=split == self.cfg.train_subset,
                min_samples=self.cfg.min_sample_size,
                max_keep_samples=self.cfg.max_keep_size,
                max_samples=self.cfg.max_sample_size,
                max_bad_fraction=self.cfg.max_bad_fraction,
            )

    def get_batch_iterator(
        self,
        dataset: PretrainingDataset,
        max_tokens: int | None = None,
        max_sentences: int | None = None,
        max_positions: int | None = None,
        *args: Any,
        **kwargs: Any,
    ) -> Any:
        """fairseq's; clips that are longer than a whole batch may be are left out and counted."""
        longest = max_tokens if max_positions is None else max_positions
        if longest is not None and longest < dataset.sizes.min():
            raise SystemExit(
                f"mae-ast: error: dataset.max_tokens={longest} is below the shortest clip of "
                f"{dataset.manifest.path} ({dataset.sizes.min()} samples at 16 kHz)"
            )
        return super().get_batch_iterator(
            dataset, max_tokens, max_sentences, longest, *args, **kwargs
        )

    def max_positions(self) -> None:
        """No limit but ``dataset.max_tokens``."""
        return

    def has_failed(self) -> bool:
        """When too many files are bad."""
        return self._too_many_bad_files() is not None

    def before_exit(self) -> None:
        """Say why a run ended early."""
        reason = self._too_many_bad_files()
        if reason is not None:
            raise SystemExit(f"mae-ast: error: {reason}")
        super().before_exit()

    def reduce_metrics(self, logging_outputs: Sequence[dict[str, Any]], criterion: Any) -> None:
        """Log the criterion's values, and the hours of audio seen since the first update."""
        super().reduce_metrics(logging_outputs, criterion)
        if criterion.training:
            samples = sum(float(log["num_samples"]) for log in logging_outputs)
            self.audio_seconds += samples / SAMPLE_RATE
            hours = self.audio_seconds / 3600
            metrics.log_scalar("audio_hours", hours, weight=0, priority=160, round=4)

    def get_checkpoint_dict(self) -> dict[str, dict[str, float]]:
        """What a checkpoint keeps of this task."""
        return {type(self).__name__: {"audio_seconds": self.audio_seconds}}

    def set_checkpoint_dict(self, state: dict[str, float]) -> None:
        """Take it up again."""
        self.audio_seconds = state["audio_seconds"]

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

    def _fbank_in_workers(self) -> bool:
        if self.cfg.fbank == "auto":
            return self.cfg.cpu or not torch.cuda.is_available()
        return self.cfg.fbank == "workers"

    def _too_many_bad_files(self) -> TooManyBadFilesError | None:
        for dataset in self.datasets.values():
            try:
                dataset.bad_files.check()
            except TooManyBadFilesError as reason:
                return reason
        return None


def _check_sizes(cfg: MaeAstPretrainingConfig) -> None:
    for key in ("max_keep_size", "max_sample_size", "min_sample_size"):
        value = getattr(cfg, key)
        if value is not None and value < 1:
            raise ValueError(f"task.{key}={value}; a number of samples at 16 kHz, or null")
        if value is not None and key != "min_sample_size" and value < (cfg.min_sample_size or 0):
            raise ValueError(
                f"task.{key}={value} is below task.min_sample_size={cfg.min_sample_size}"
            )


def _absolute(folder: str) -> Path:
    """Resolve against the folder that the program was started in; hydra leaves that."""
    path = Path(folder).expanduser()
    if path.is_absolute():
        return path
    if HydraConfig.initialized():
        return Path(HydraConfig.get().runtime.cwd) / path
    # A process that the trainer spawned knows the place from the shell only.
    return Path(os.environ.get("PWD", ".")) / path


@torch.no_grad()
def _reconstruct_some(model: Any, dataset: PretrainingDataset) -> Reconstruction | None:
    """The first few clips that can be read; ``None`` where there is none."""
    readable = (clip for clip in map(dataset.__getitem__, range(len(dataset))) if clip is not None)
    clips = list(islice(readable, NUM_PICTURES))
    if not clips:
        return None
    collate = dataclasses.replace(dataset.collate, pad=False, compute_fbank=False)
    batch = collate(clips)
    device = next(model.parameters()).device
    mask = MaskIds(batch.mask.visible_ids.to(device), batch.mask.masked_ids.to(device))
    return reconstruct(model.eval(), batch.source.to(device), mask)
