"""Base class of the fairseq tasks: manifests, bad files, hours of audio, graceful shutdown."""

# No postponed annotations: fairseq reads the field types at run time.
import hashlib
import logging
import os
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Optional

import numpy as np
import torch
from fairseq.dataclass import FairseqDataclass
from fairseq.logging import metrics
from hydra.core.hydra_config import HydraConfig
from omegaconf import II, MISSING
from typing_extensions import Self

from mae_ast.console import bar
from mae_ast.core.io.audio import SAMPLE_RATE
from mae_ast.core.io.joined import load_manifests, read_manifests
from mae_ast.core.io.manifest import Manifest
from mae_ast.core.io.remote.patience import patience_s
from mae_ast.core.models.encoder import Encoder
from mae_ast.core.nn.malloc import keep_freed_memory
from mae_ast.core.settings import check_fields, setting
from mae_ast.data.audio_clips import AudioClips
from mae_ast.data.bad_files import FilesRead
from mae_ast.data.clip_warnings import log_too_long, statistics_warning
from mae_ast.trainer import ranks, stop_request
from mae_ast.trainer.best_metric import AUTO, direction_warning
from mae_ast.trainer.fairseq_patches import early_stopping, training_loop
from mae_ast.trainer.preemption import InterruptibleTask
from mae_ast.trainer.schedule import schedule_warning

SPARE_WAIT_S = 600.0  # that ranks wait for each other, beyond the time to wait for a server

logger = logging.getLogger(__name__)

# fairseq imports this module just before it parses the options; there is no later hook.
training_loop.apply()


@dataclass
class AudioTaskConfig(FairseqDataclass):  # type: ignore[misc]
    """Settings under ``task.*`` that all tasks share. Sizes are in samples at 16 kHz."""

    data: Any = setting(  # noqa: RUF009  (a text or, in pretraining, also a list)
        MISSING, help="folder that holds the manifests train.tsv, valid.tsv, ..."
    )
    max_keep_size: Optional[int] = setting(  # noqa: UP045
        None, help="skip clips longer than this many samples at 16 kHz; null: no limit", minimum=1
    )
    max_sample_size: Optional[int] = setting(  # noqa: UP045
        None,
        help="crop clips longer than this many samples at 16 kHz (in fine-tuning, training clips "
        "only); null: no cropping",
        minimum=1,
    )
    min_sample_size: Optional[int] = setting(  # noqa: UP045
        None,
        help="skip clips shorter than this many samples at 16 kHz; null: skip none, and a clip "
        "shorter than one patch is an error",
        minimum=1,
    )
    random_crop: bool = setting(
        True, help="crop clips at a random position; false: keep their beginning"
    )
    max_bad_fraction: float = setting(
        0.01,
        help="stop training when more than this fraction of the files read in an epoch, and more "
        "than 20 files, cannot be decoded",
    )
    shards_at_once: Optional[int] = setting(  # noqa: UP045
        None,
        help="number of tar shards whose clips are shuffled together, so that each is read in one "
        "part of the epoch only; null: 8 if shards are remote, else all",
        minimum=1,
    )
    rebuild_batches: bool = setting(
        True,
        help="group clips into new batches in each epoch; false: keep the batches of the first "
        "epoch (read by fairseq)",
    )
    batches_per_update: Optional[int] = setting(  # noqa: UP045
        None,
        help="number of batches of an update over all processes; a run keeps it if it resumes on "
        "another number of processes, since optimization.update_freq is set to this divided by "
        "the number of processes; null: optimization.update_freq batches per process",
        minimum=1,
    )
    save_in_background: bool = setting(
        False,
        help="write checkpoints while training continues, from a copy of weights and optimizer "
        "state in host memory (12 bytes per parameter); false: training waits, without a copy",
    )
    seed: int = II("common.seed")
    train_subset: str = II("dataset.train_subset")
    best_checkpoint_metric: str = II("checkpoint.best_checkpoint_metric")


class AudioTask(InterruptibleTask):
    """Base class of tasks that read audio files listed in manifests."""

    config: ClassVar[type[AudioTaskConfig]]  # settings under ``task.*``
    cfg: AudioTaskConfig
    datasets: dict[str, AudioClips]

    def __init__(self, cfg: AudioTaskConfig) -> None:
        super().__init__(cfg)
        check_fields(cfg, type(self).config, "task.")
        if not 0 <= cfg.max_bad_fraction <= 1:
            raise ValueError(f"task.max_bad_fraction={cfg.max_bad_fraction}; must be from 0 to 1")
        for key in ("max_keep_size", "max_sample_size"):
            value, least = getattr(cfg, key), cfg.min_sample_size or 0
            if value is not None and value < least:
                raise ValueError(f"task.{key}={value} is less than task.min_sample_size={least}")
        self.folders = data_folders(cfg.data)
        self.audio_seconds = 0.0  # of all workers, since the first update
        self._num_loads = 0
        self._is_checked = False
        self._logged_long: set[str] = set()
        self._tallied_update = -1
        self._is_unreachable = False  # the problem is a server that cannot be reached
        self._problem = ""  # error that must stop training; "": none

    @classmethod
    def setup_task(cls, cfg: AudioTaskConfig, **kwargs: Any) -> Self:
        """Create the task; fairseq calls this at the start of each training process."""
        stop_request.listen()
        if not torch.distributed.is_initialized():
            stop_request.trains_alone()
        if not torch.cuda.is_available():
            keep_freed_memory()
        return cls(cfg)

    def build_criterion(self, cfg: Any, from_checkpoint: bool = False) -> Any:
        """Build the criterion, whose ``valid_metrics`` lists the metrics that validation logs.

        Raises:
            ValueError: ``checkpoint.best_checkpoint_metric`` is not among them. fairseq would only
                fail after an epoch, without saving a checkpoint.
        """
        criterion = super().build_criterion(cfg, from_checkpoint)
        metric, known = self.cfg.best_checkpoint_metric, criterion.valid_metrics
        if metric not in known:
            raise ValueError(
                f"checkpoint.best_checkpoint_metric={metric}: validation logs {', '.join(known)}; "
                f"use one of these, or {AUTO} for the task's default"
            )
        return criterion

    def load_dataset(self, split: str, **kwargs: Any) -> None:
        """Read ``{split}.tsv`` and check that all processes list the same clips.

        Only the first process reads sample rates from file headers; it sends them to the others.
        """
        key = f"mae_ast/{split}/{self._num_loads}"
        self._num_loads += 1

        def load() -> bytes:
            manifest = self._manifest(split, key)
            dataset = self.datasets[split] = self.make_dataset(split, manifest)
            dataset.split = split
            digest = hashlib.sha256(manifest.digest())
            digest.update(dataset.rows.tobytes())
            digest.update(dataset.sizes.tobytes())
            return digest.digest()

        ranks.agree(f"{key}/clips", f"{split}.tsv: the clips and their lengths", load)
        # The preflight check disables warnings: its model may be without weights to measure with.
        logs_warnings = ranks.is_first() and logger.isEnabledFor(logging.WARNING)
        if logs_warnings and split == self.cfg.train_subset:
            for warning in self.data_warnings(self.datasets[split]):
                logger.warning("%s", warning)

    def data_warnings(self, dataset: AudioClips) -> list[str]:
        """Return warnings about settings that do not suit the training clips, one line each."""
        found = statistics_warning(dataset, self.input_encoder())
        return [] if found is None else [found]

    def input_encoder(self) -> Encoder:
        """Return the encoder to be trained."""
        raise NotImplementedError

    def before_training(self, cfg: Any, epoch_itr: Any) -> None:
        """Warn once about settings of the run; called before each epoch."""
        if self._is_checked or not ranks.is_first():
            return
        self._is_checked = True
        found = schedule_warning(cfg, len(epoch_itr)), direction_warning(cfg.checkpoint)
        for warning in filter(None, found):
            logger.warning("%s", warning)

    def make_dataset(self, split: str, manifest: Manifest) -> AudioClips:
        """Create the data set of a split."""
        raise NotImplementedError

    def _manifest(self, split: str, key: str) -> Manifest:
        paths = [folder / f"{split}.tsv" for folder in self.folders]
        loaded = []

        def sample_rates() -> bytes:
            loaded.append(load_manifests(paths, bar("reading sample rates", "file")))
            return zlib.compress(loaded[0].sample_rates.tobytes())

        rates = ranks.from_first(f"{key}/rates", sample_rates)
        if loaded:
            return loaded[0]
        manifest = read_manifests(paths)
        manifest.check_paths()
        found = np.frombuffer(zlib.decompress(rates), dtype=np.int32)
        if len(found) != len(manifest):
            raise ValueError(
                f"{manifest.path}: lists {len(manifest)} files, but {len(found)} on rank 0"
            )
        manifest.sample_rates = found.copy()
        return manifest

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
        """Return fairseq's iterator over batches.

        Clips longer than ``max_tokens`` are skipped and counted. If no clip may be skipped, as in
        the validation of fine-tuning, ``max_tokens`` is raised to the longest clip.
        """
        longest_clip = int(dataset.sizes.max())
        if max_tokens is not None and max_tokens < longest_clip and not ignore_invalid_inputs:
            logger.info(
                "%s: dataset.max_tokens_valid raised from %d to %d samples, the length of the "
                "longest clip",
                *(dataset.manifest.path, max_tokens, longest_clip),
            )
            max_tokens = longest_clip
        longest = max_tokens if max_positions is None else max_positions
        if longest is not None and longest < dataset.sizes.min():
            raise ValueError(
                f"dataset.max_tokens={longest} is less than the shortest clip of "
                f"{dataset.manifest.path} ({dataset.sizes.min()} samples at 16 kHz)"
            )
        iterator = super().get_batch_iterator(
            dataset, max_tokens, max_sentences, longest, ignore_invalid_inputs, *args, **kwargs
        )
        if dataset.shard_order is not None:
            dataset.shard_order.keep(iterator)
        return iterator

    def filter_indices_by_size(
        self, indices: np.ndarray, dataset: AudioClips, max_positions: int, *args: Any
    ) -> np.ndarray:
        """Skip clips longer than ``max_positions`` samples; log their number in the first epoch."""
        kept, too_long = dataset.filter_indices_by_size(indices, max_positions)
        if too_long and dataset.split not in self._logged_long and ranks.is_first():
            log_too_long(logger, dataset, len(too_long), max_positions)
        self._logged_long.add(dataset.split)
        return np.asarray(kept)

    def max_positions(self) -> None:
        """Return ``None``: there is no limit besides ``dataset.max_tokens``."""
        return

    def begin_epoch(self, epoch: int, model: Any) -> None:
        """Reset the counts of bad files; the trainer calls this on all processes each epoch."""
        super().begin_epoch(epoch, model)
        if any(dataset.manifest.may_be_remote for dataset in self.datasets.values()):
            ranks.allow_waits(patience_s() + SPARE_WAIT_S)
        for split in sorted(self.datasets):
            bad_files = self.datasets[split].bad_files
            if split == self.cfg.train_subset:
                bad_files.begin_epoch()
            known = torch.from_numpy(bad_files.logged)
            bad_files.logged[:] = ranks.maximum(known).numpy()

    def train_step(
        self,
        sample: dict[str, Any],
        model: Any,
        criterion: Any,
        optimizer: Any,
        update_num: int,
        ignore_grad: bool = False,
        **kwargs: Any,
    ) -> tuple[torch.Tensor, int, dict[str, Any]]:
        """Run fairseq's step; log the number of bad files and of files read."""
        self._tally(sample["files"])
        loss, sample_size, logging_output = super().train_step(
            sample, model, criterion, optimizer, update_num, ignore_grad, **kwargs
        )
        # Once per update: fairseq sums the values logged by all batches of an update.
        counts_now = update_num != self._tallied_update
        self._tallied_update = update_num
        for split, dataset in self.datasets.items():
            num_bad, num_read = dataset.bad_files.counts() if counts_now else (0, 0)
            logging_output[f"num_bad_{split}"] = float(num_bad)
            logging_output[f"num_read_{split}"] = float(num_read)
            logging_output[f"unreachable_{split}"] = float(bool(dataset.bad_files.unreachable))
        return loss, sample_size, logging_output

    def valid_step(
        self, sample: dict[str, Any], model: Any, criterion: Any, **kwargs: Any
    ) -> tuple[torch.Tensor, int, dict[str, Any]]:
        """Run fairseq's step and count the files of the batch."""
        self._tally(sample["files"])
        result: tuple[torch.Tensor, int, dict[str, Any]] = super().valid_step(
            sample, model, criterion, **kwargs
        )
        return result

    def before_exit(self) -> None:
        """Exit with the error that stopped the run, and list the bad files of this process."""
        if not self._problem:
            super().before_exit()
            return
        if self._is_unreachable:
            raise SystemExit(f"mae-ast: error: {self._problem}")
        found = [
            dataset.manifest.segment(row)
            for dataset in self.datasets.values()
            for row in dataset.bad_files.rows
        ]
        title = "Bad files" if ranks.num_ranks() == 1 else "Bad files that this process read"
        listed = "".join(f"\n  {path}" for path in found)
        raise SystemExit(f"mae-ast: error: {self._problem}. {title}:{listed or ' none'}")

    def reduce_metrics(self, logging_outputs: Sequence[dict[str, Any]], criterion: Any) -> None:
        """Log the criterion's values and the hours of audio seen since the first update."""
        super().reduce_metrics(logging_outputs, criterion)
        if criterion.training:
            samples = sum(float(log["num_samples"]) for log in logging_outputs)
            self.audio_seconds += samples / SAMPLE_RATE
            hours = self.audio_seconds / 3600
            metrics.log_scalar("audio_hours", hours, weight=0, priority=160, round=4)
            self._check_bad_files(logging_outputs)

    def get_checkpoint_dict(self) -> dict[str, dict[str, Any]]:
        """Return the task's state to save in a checkpoint."""
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

    def _tally(self, files: FilesRead) -> None:
        self.datasets[files.split].bad_files.add(files)

    def _check_bad_files(self, logging_outputs: Sequence[dict[str, Any]]) -> None:
        """Stop training if too many files are bad.

        The counts are sums over all processes, so all of them reach the same decision.
        """

        def total(key: str) -> int:
            return round(sum(float(log.get(key, 0)) for log in logging_outputs))

        for split, dataset in self.datasets.items():
            numbers = total(f"num_bad_{split}"), total(f"num_read_{split}"), dataset.num_used
            self._problem = self._problem or dataset.bad_files.problem(*numbers)
            if total(f"unreachable_{split}"):
                self._is_unreachable = True
                self._problem = dataset.bad_files.unreachable or (
                    f"{dataset.manifest.path}: another process could not fetch a shard; see its "
                    "message"
                )
        if self._problem:
            self.failed = self.should_stop = True


def data_folders(data: Any) -> list[Path]:
    """Return the folders that ``task.data`` names, a path or a list of paths, as absolute paths.

    Raises:
        ValueError: there is none.
    """
    given = list(data) if isinstance(data, Sequence) and not isinstance(data, str) else [data]
    if not given or any(folder is None for folder in given):
        raise ValueError(f"task.data={'null' if data is None else data}; a folder is needed")
    return [absolute(str(folder)) for folder in given]


def absolute(folder: str) -> Path:
    """Resolve a path against the folder in which the command was started; hydra changes it."""
    path = Path(folder).expanduser()
    if path.is_absolute():
        return path
    if HydraConfig.initialized():
        return Path(HydraConfig.get().runtime.cwd) / path
    # In a process spawned by the trainer only the shell's variable still holds that folder.
    return Path(os.environ.get("PWD", ".")) / path
