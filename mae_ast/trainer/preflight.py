"""Check settings, manifests and starting point of a run before anything is created for it."""

from __future__ import annotations

import copy
import logging
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import fairseq_cli.hydra_train
import torch
from fairseq.tasks import TASK_REGISTRY
from hydra._internal.callbacks import Callbacks
from hydra.core.hydra_config import HydraConfig
from omegaconf import OmegaConf, open_dict, read_write

from mae_ast.console import user_errors
from mae_ast.core.checkpoints.run_files import list_checkpoints
from mae_ast.core.io.manifest import Manifest
from mae_ast.tasks.audio_task import AudioTask
from mae_ast.trainer import console_filter, resume_guard
from mae_ast.trainer.fairseq_patches.checkpoint_loading import find_start


def apply() -> None:
    """Check each run once hydra has composed its settings, before it creates the folder."""
    # Errors of a callback that the settings name become warnings, so it is not one of those.
    begin, begin_several = Callbacks.on_run_start, Callbacks.on_multirun_start

    def on_run_start(self: Callbacks, config: Any, **kwargs: Any) -> None:
        logging.disable(logging.WARNING)  # training says the same again
        try:
            check(config)
        finally:
            logging.disable(logging.NOTSET)
        if not config.hydra.verbose:
            console_filter.quiet_handlers()
        begin(self, config=config, **kwargs)
        resume_guard.write_pending()

    def on_multirun_start(self: Callbacks, config: Any, **kwargs: Any) -> None:
        console_filter.quiet_handlers()
        with read_write(config.hydra), open_dict(config.hydra):
            if not config.hydra.verbose:
                console_filter.quiet_job(config.hydra.hydra_logging)
        begin_several(self, config=config, **kwargs)
        resume_guard.write_pending()

    Callbacks.on_run_start = on_run_start  # type: ignore[method-assign]
    Callbacks.on_multirun_start = on_multirun_start  # type: ignore[method-assign]


def check(config: Any) -> None:
    """Refuse a run that cannot start.

    Args:
        config: hydra's, with ``config.hydra``.

    Raises:
        SystemExit: with one line that names the setting or file, and what would be right.
    """
    HydraConfig.instance().set_config(config)  # says where the program was started
    cfg = copy.deepcopy(config)
    with read_write(cfg), open_dict(cfg):
        del cfg["hydra"]
    fairseq_cli.hydra_train.add_defaults(cfg)
    cfg = OmegaConf.create(OmegaConf.to_container(cfg, resolve=True, enum_to_str=True))
    kind = TASK_REGISTRY.get(cfg.task._name)
    if kind is None or not issubclass(kind, AudioTask):
        return  # of fairseq; it has its own checks
    if OmegaConf.is_missing(cfg.task, "data"):
        raise SystemExit("mae-ast: error: task.data is missing: the folder of the manifests")
    with user_errors():
        if cfg.dataset.max_tokens is None and cfg.dataset.batch_size is None:
            raise ValueError("set dataset.max_tokens or dataset.batch_size, the size of a batch")
        _check_start(cfg.checkpoint, Path(config.hydra.run.dir))
        _check_parts(kind, cfg)


def _check_start(checkpoint: Any, folder: Path) -> None:
    """Look for the file that a new run starts from; one that resumes finds its own."""
    save_dir = folder.absolute() / checkpoint.save_dir
    if list_checkpoints(save_dir):
        return
    with open_dict(checkpoint):
        find_start(OmegaConf.merge(checkpoint, {"save_dir": str(save_dir)}))


def _check_parts(kind: type[AudioTask], cfg: Any) -> None:
    """Build task, model, criterion and data sets as training does.

    Raises:
        ValueError, FileNotFoundError: settings do not fit together, or a file is wrong.
    """
    task = kind(cfg.task)
    is_pretraining = not hasattr(task, "labels")
    # A pretraining model needs no memory for that; a classifier reads its checkpoint.
    with torch.device("meta") if is_pretraining else nullcontext():
        task.build_model(cfg.model)
    task.build_criterion(cfg.criterion)
    splits = cfg.dataset.train_subset.split(",")
    if not cfg.dataset.disable_validation:
        splits += cfg.dataset.valid_subset.split(",")
    for split in splits:
        if cfg.distributed_training.distributed_world_size > 1:  # one process reads headers, later
            Manifest.read(task.folder / f"{split}.tsv").check_paths()
        else:
            task.load_dataset(split)
