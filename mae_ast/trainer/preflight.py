"""Check the settings, manifests and initial checkpoint of a run before it creates any file."""

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

from mae_ast.core.checkpoints.run_files import list_checkpoints
from mae_ast.core.io.joined import read_manifests
from mae_ast.core.io.labels import LABELS_FILE
from mae_ast.data.mixture import corpus_names
from mae_ast.tasks.audio_task import AudioTask, data_folders
from mae_ast.tasks.mae_ast_classification import MaeAstClassificationTask
from mae_ast.trainer import console_filter, resume_guard
from mae_ast.trainer.fairseq_patches.checkpoint_loading import find_start


def apply() -> None:
    """Check each run after hydra has composed its settings and before it creates the folder."""
    # Not a callback named in the settings: hydra turns the errors of those into warnings.
    begin, begin_several = Callbacks.on_run_start, Callbacks.on_multirun_start

    def on_run_start(self: Callbacks, config: Any, **kwargs: Any) -> None:
        logging.disable(logging.WARNING)  # training repeats these messages
        try:
            check(config)
        finally:
            logging.disable(logging.NOTSET)
        guard_resume(config)
        if not config.hydra.verbose:
            console_filter.quiet_handlers()
        begin(self, config=config, **kwargs)

    def on_multirun_start(self: Callbacks, config: Any, **kwargs: Any) -> None:
        console_filter.quiet_handlers()
        with read_write(config.hydra), open_dict(config.hydra):
            if not config.hydra.verbose:
                console_filter.quiet_job(config.hydra.hydra_logging)
        guard_resume(config)
        begin_several(self, config=config, **kwargs)

    Callbacks.on_run_start = on_run_start  # type: ignore[method-assign]
    Callbacks.on_multirun_start = on_multirun_start  # type: ignore[method-assign]


def check(config: Any) -> None:
    """Refuse a run that cannot start.

    Args:
        config: composed settings, with hydra's own in ``config.hydra``.

    Raises:
        ValueError, FileNotFoundError: names the setting or file and what would be valid.
    """
    HydraConfig.instance().set_config(config)  # knows the original working directory
    cfg = _with_defaults(config)
    cfg = OmegaConf.create(OmegaConf.to_container(cfg, resolve=True, enum_to_str=True))
    kind = TASK_REGISTRY.get(cfg.task._name)
    if kind is None or not issubclass(kind, AudioTask):
        return  # one of fairseq's tasks, which have their own checks
    if OmegaConf.is_missing(cfg.task, "data"):
        raise ValueError("task.data is missing: the folder of the manifests")
    if cfg.dataset.max_tokens is None and cfg.dataset.batch_size is None:
        raise ValueError("set dataset.max_tokens or dataset.batch_size, the size of a batch")
    _check_start(cfg.checkpoint, Path(config.hydra.run.dir))
    _check_parts(kind, cfg)


def guard_resume(config: Any) -> None:
    """Refuse to resume a run whose manifests, labels, mixture or initial weights are others.

    Raises:
        SystemExit: with one line that names the file or setting, then and now.
    """
    cfg = _with_defaults(config)
    inputs: dict[str, Any] = {}
    if data := OmegaConf.select(cfg, "task.data"):  # None if it is missing
        splits = _splits(cfg)
        names = [f"{split}.tsv" for split in splits]
        if TASK_REGISTRY.get(cfg.task._name) is MaeAstClassificationTask:
            names += [LABELS_FILE, *(f"{split}.lbl" for split in splits)]
        folders = data_folders(data)
        if len(folders) == 1:
            inputs |= resume_guard.inputs_of(folders[0], names)
        else:
            for folder, corpus in zip(folders, corpus_names(folders), strict=True):
                inputs |= resume_guard.inputs_of(folder, names, f"{corpus}/")
            for key in ("mixture", "mixture_temperature"):
                value = cfg.task.get(key)
                inputs[f"task.{key}"] = list(value) if OmegaConf.is_list(value) else value
    inputs[resume_guard.START_KEY] = cfg.checkpoint.finetune_from_model
    resume_guard.check_or_record(inputs)


def _with_defaults(config: Any) -> Any:
    """Return settings with the defaults of fairseq's dataclasses, and without hydra's own."""
    cfg = copy.deepcopy(config)
    with read_write(cfg), open_dict(cfg):
        del cfg["hydra"]
    fairseq_cli.hydra_train.add_defaults(cfg)
    return cfg


def _splits(cfg: Any) -> list[str]:
    """Return the names of the splits that a run reads."""
    splits: list[str] = cfg.dataset.train_subset.split(",")
    if not cfg.dataset.disable_validation:
        splits += cfg.dataset.valid_subset.split(",")
    return splits


def _check_start(checkpoint: Any, folder: Path) -> None:
    """Look for the checkpoint that a new run starts from; a run that resumes has its own."""
    save_dir = folder.absolute() / checkpoint.save_dir
    if list_checkpoints(save_dir):
        return
    with open_dict(checkpoint):
        find_start(OmegaConf.merge(checkpoint, {"save_dir": str(save_dir)}))


def _check_parts(kind: type[AudioTask], cfg: Any) -> None:
    """Build the task, model, criterion and datasets as training does.

    Raises:
        ValueError, FileNotFoundError: settings contradict one another, or a file is invalid.
    """
    task = kind(cfg.task)
    is_pretraining = not hasattr(task, "labels")
    # On the meta device a model takes no memory; a classifier, however, reads its checkpoint.
    with torch.device("meta") if is_pretraining else nullcontext():
        task.build_model(cfg.model)
    task.build_criterion(cfg.criterion)
    for split in _splits(cfg):
        if cfg.distributed_training.distributed_world_size > 1:  # rank 0 reads the headers, later
            paths = [folder / f"{split}.tsv" for folder in task.folders]
            read_manifests(paths).check_paths()
        else:
            task.load_dataset(split)
