"""Base of this project's fairseq tasks: manifests, bad files, hours of audio, early ends."""

# No postponed annotations here: fairseq reads the types of the fields.
import logging
import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Optional, Self

import torch
from fairseq.dataclass import FairseqDataclass
from fairseq.logging import metrics
from hydra.core.hydra_config import HydraConfig
from omegaconf import II, MISSING

from mae_ast import early_stopping, fairseq_repairs, interruption
from mae_ast.allocator import keep_freed_memory
from mae_ast.core.audio import SAMPLE_RATE
from mae_ast.core.manifest import Manifest
from mae_ast.data.audio_clips import AudioClips
from mae_ast.data.bad_files import TooManyBadFilesError
from mae_ast.errors import user_errors
from mae_ast.interruption import InterruptibleTask
from mae_ast.progress import bar

logger = logging.getLogger(__name__)

# fairseq offers no later moment: next, it reads the options.
fairseq_repairs.apply()


@dataclass
class AudioTaskConfig(FairseqDataclass):  # type: ignore[misc]
    """What all tasks have of ``task.*``. Sizes are in samples at 16 kHz."""

    data: str = field(
        default=MISSING, metadata={"help": "folder of the manifests train.tsv, valid.tsv, ..."}
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
    max_bad_fraction: float = field(
        default=0.01,
        metadata={"help": "stop when more than this share of the files read (and 20) are bad"},
    )
    rebuild_batches: bool = field(
        default=True,
        metadata={"help": "put other clips together in each epoch (read by fairseq)"},
    )
    seed: int = II("common.seed")
    train_subset: str = II("dataset.train_subset")
    best_checkpoint_metric: str = II("checkpoint.best_checkpoint_metric")


class AudioTask(InterruptibleTask):
    """A task whose data are manifests of audio files."""

    cfg: AudioTaskConfig
    datasets: dict[str, AudioClips]

    def __init__(self, cfg: AudioTaskConfig) -> None:
        super().__init__(cfg)
        if not 0 <= cfg.max_bad_fraction <= 1:
            raise ValueError(f"task.max_bad_fraction={cfg.max_bad_fraction}; a share from 0 to 1")
        _check_sizes(cfg)
        self.folder = absolute(cfg.data)
        self.audio_seconds = 0.0  # of all workers, since the first update

    @classmethod
    def setup_task(cls, cfg: AudioTaskConfig, **kwargs: Any) -> Self:
        """Called by fairseq at the start of each training process."""
        interruption.listen()
        if not torch.cuda.is_available():
            keep_freed_memory()
        with user_errors():
            return cls(cfg)

    def build_criterion(self, cfg: Any, from_checkpoint: bool = False) -> Any:
        """Build the criterion, which has to say in ``valid_metrics`` what validation logs.

        Raises:
            ValueError: what the best checkpoint is chosen by is none of them. fairseq would find
                out after an epoch, and save nothing.
        """
        criterion = super().build_criterion(cfg, from_checkpoint)
        metric, known = self.cfg.best_checkpoint_metric, criterion.valid_metrics
        if metric not in known:
            raise ValueError(
                f"checkpoint.best_checkpoint_metric={metric}: validation says {', '.join(known)}"
            )
        return criterion

    def manifest(self, split: str) -> Manifest:
        """``{split}.tsv``."""
        return Manifest.load(self.folder / f"{split}.tsv", bar("reading sample rates", "file"))

    def get_batch_iterator(
        self,
        dataset: AudioClips,
        max_tokens: int | None = None,
        max_sentences: int | None = None,
        max_positions: int | None = None,
        ignore_invalid_inputs: bool = False,
        *args: Any,
        **kwargs: Any,
    ) -> Any:
        """Return fairseq's batches.

        Clips longer than ``max_tokens`` are skipped and counted. Where none may be skipped, as in
        the validation of fine-tuning, batches hold as much as the longest clip, so that it can be
        one, and no batch needs more memory than that.
        """
        longest_clip = int(dataset.sizes.max())
        if max_tokens is not None and max_tokens < longest_clip and not ignore_invalid_inputs:
            logger.info(
                "%s: batches hold %d samples, as its longest clip has, instead of %d "
                "(dataset.max_tokens_valid)",
                *(dataset.manifest.path, longest_clip, max_tokens),
            )
            max_tokens = longest_clip
        longest = max_tokens if max_positions is None else max_positions
        if longest is not None and longest < dataset.sizes.min():
            raise SystemExit(
                f"mae-ast: error: dataset.max_tokens={longest} is below the shortest clip of "
                f"{dataset.manifest.path} ({dataset.sizes.min()} samples at 16 kHz)"
            )
        return super().get_batch_iterator(
            dataset, max_tokens, max_sentences, longest, ignore_invalid_inputs, *args, **kwargs
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

    def get_checkpoint_dict(self) -> dict[str, dict[str, Any]]:
        """Return what a checkpoint holds of this task."""
        state = {
            "audio_seconds": self.audio_seconds,
            "early_stopping": early_stopping.state(),
            "interrupted": self.should_stop,
        }
        return {type(self).__name__: state}

    def set_checkpoint_dict(self, state: dict[str, Any]) -> None:
        """Restore what :meth:`get_checkpoint_dict` returned."""
        self.audio_seconds = state["audio_seconds"]
        early_stopping.restore(state.get("early_stopping", {}))

    def _too_many_bad_files(self) -> TooManyBadFilesError | None:
        for dataset in self.datasets.values():
            try:
                dataset.bad_files.check()
            except TooManyBadFilesError as reason:
                return reason
        return None


def _check_sizes(cfg: AudioTaskConfig) -> None:
    for key in ("max_keep_size", "max_sample_size", "min_sample_size"):
        value = getattr(cfg, key)
        if value is not None and value < 1:
            raise ValueError(f"task.{key}={value}; a number of samples at 16 kHz, or null")
        if value is not None and key != "min_sample_size" and value < (cfg.min_sample_size or 0):
            raise ValueError(
                f"task.{key}={value} is below task.min_sample_size={cfg.min_sample_size}"
            )


def absolute(folder: str) -> Path:
    """Resolve against the folder that the program was started in; hydra leaves that."""
    path = Path(folder).expanduser()
    if path.is_absolute():
        return path
    if HydraConfig.initialized():
        return Path(HydraConfig.get().runtime.cwd) / path
    # A process that the trainer spawned knows the place from the shell only.
    return Path(os.environ.get("PWD", ".")) / path
