"""Fixtures for real trainings through ``fairseq-hydra-train``: a corpus, the command, its log."""

from __future__ import annotations

import json
import logging
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import torch

from mae_ast.trainer.command import module_command
from mae_ast.trainer.presets import share_config_store

from .forked import Fork

REPOSITORY = Path(__file__).parents[2]
CONFIG_DIR = REPOSITORY / "config" / "pretrain"
USER_DIR = REPOSITORY / "mae_ast"
TRAIN_PROGRAM = Path(sys.executable).with_name("fairseq-hydra-train")
LAUNCHER = tuple(module_command("mae_ast.launch"))  # the command that ``mae-ast pretrain`` starts
FORKED_RANKS = tuple(module_command("tests.trainer.forked_ranks"))  # the same; forks the ranks

share_config_store()  # composing settings takes a third of the time then

DEADLINE_S = 300.0  # for one program; several times what a loaded machine takes

# Logged values that are equal if two trainings are equal; times and speeds are not.
VALUES = (
    *("loss", "mse", "info_nce", "info_nce_accuracy", "info_nce_chance"),
    *("gnorm", "audio_hours", "mask_ratio", "lr"),
)
FINETUNING_VALUES = (*VALUES, "accuracy")

SMALL_ENCODER = (
    "model.encoder_layers=2",
    "model.encoder_embed_dim=64",
    "model.encoder_ffn_embed_dim=128",
    "model.encoder_attention_heads=4",
)
SMALL_DECODER = ("model.decoder_layers=1", "model.decoder_embed_dim=64")
SMALL_RUN = (
    "common.cpu=true",
    "common.log_interval=1",
    "lr_scheduler.warmup_updates=4",
    "task.min_sample_size=8000",
    "task.max_sample_size=16000",
    "dataset.max_tokens=64000",
    "dataset.validate_interval_updates=0",
    "dataset.validate_interval=1000",
)
WITHOUT_TENSORBOARD = "common.tensorboard_logdir=null"  # a plot of validation clips takes a second
WITH_TENSORBOARD = "common.tensorboard_logdir=tblog"  # as in the presets
WITHOUT_DROPOUT = (
    "model.dropout=0",
    "model.attention_dropout=0",
    "model.dropout_input=0",
    "model.encoder_layerdrop=0",
    "model.precision=float32",
)
ONLY_TRAINING = ("checkpoint.no_save=true", "dataset.disable_validation=true")
# Keys of every pretraining model that belong to training, not to the model's configuration.
TRAINING_KEYS = {"checkpoint_activations", "compile"}


def preset(name: str) -> dict[str, Any]:
    """Read the settings of a pretraining preset."""
    from mae_ast.trainer.presets import read_preset

    return read_preset(CONFIG_DIR / f"{name}.yaml")


# --- a corpus -----------------------------------------------------------------------------------


def sound(seconds: float, seed: int, sample_rate: int = 16_000) -> np.ndarray:
    """Synthesize a tone that sweeps up and down, plus noise: (L,) int16."""
    rng = np.random.default_rng(seed)
    t = np.arange(round(seconds * sample_rate)) / sample_rate
    base, depth, speed = rng.uniform(200, 900), rng.uniform(0.2, 0.6), rng.uniform(2, 9)
    tone = np.sin(2 * np.pi * base * (t + depth * np.sin(speed * t) / speed))
    return ((0.3 * tone + 0.02 * rng.standard_normal(len(t))) * 32767).astype(np.int16)


def write_manifest(path: Path, rows: Sequence[Sequence[object]]) -> None:
    """Write a manifest whose root is its own folder; a row is path, length[, sample rate]."""
    lines = ["\t".join(map(str, row)) for row in rows]
    path.write_text("\n".join([".", *lines]) + "\n", encoding="utf-8")


def write_clips(folder: Path, split: str, seconds: Sequence[float], first_seed: int = 0) -> None:
    """Write FLAC clips at 16 kHz and ``{split}.tsv``."""
    rows = []
    for number, duration in enumerate(seconds):
        samples = sound(duration, first_seed + number)
        name = f"{split}_{number:02d}.flac"
        soundfile.write(folder / name, samples, 16_000)
        rows.append((name, len(samples), 16_000))
    write_manifest(folder / f"{split}.tsv", rows)


@pytest.fixture(scope="session")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Corpus of 26 + 5 clips of 0.9 to 1.7 s; small runs crop most of them to 1 s."""
    folder = tmp_path_factory.mktemp("corpus")
    write_clips(folder, "train", np.random.default_rng(1).uniform(0.9, 1.7, 26).round(3).tolist())
    write_clips(folder, "valid", [1.3, 1.1, 1.2, 1.5, 0.95], first_seed=100)
    return folder


@pytest.fixture(scope="module")
def tones(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Corpus of labelled tones for fine-tuning."""
    from .classification import write_corpus

    return write_corpus(tmp_path_factory.mktemp("tones"))


@pytest.fixture(scope="module")
def pretrained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Tiny checkpoint to fine-tune from."""
    from .classification import write_pretrained

    return write_pretrained(tmp_path_factory.mktemp("pretrained") / "tiny.pt")


# --- the command --------------------------------------------------------------------------------


def train_command(
    data: Path,
    out: Path,
    *overrides: str,
    config: str = "mae_ast",
    program: Sequence[str] = (str(TRAIN_PROGRAM),),
) -> list[str]:
    """Build a command for a preset with a small model that writes to ``out``."""
    return [
        *program,
        f"--config-dir={CONFIG_DIR}",
        f"--config-name={config}",
        f"common.user_dir={USER_DIR}",
        f"task.data={data}",
        f"hydra.run.dir={out}",
        *SMALL_ENCODER,
        *(SMALL_DECODER if config == "mae_ast" else ()),
        *SMALL_RUN,
        WITHOUT_TENSORBOARD,
        *overrides,
    ]


class Training:
    """Training program in its own process group, and its log.

    Args:
        command: the program and its arguments.
        log: file for its output; its errors are beside it.
        forked: run the program in a fork that has PyTorch and fairseq, see :mod:`.forked`.
        environment: environment variables to set.
    """

    process: subprocess.Popen[bytes] | Fork

    def __init__(
        self, command: Sequence[str] | str, log: Path, forked: bool = False, **environment: str
    ) -> None:
        self.log = log
        self.folder = _run_folder(command, log.parent)
        # Holds sockets, whose paths must be short.
        self.temporary = tempfile.TemporaryDirectory(prefix="t")
        log.parent.mkdir(parents=True, exist_ok=True)
        env = {
            **os.environ,
            "CUDA_VISIBLE_DEVICES": "",
            "OMP_NUM_THREADS": "1",
            "HYDRA_FULL_ERROR": "1",
            "PYTHONFAULTHANDLER": "1",  # see stacks()
            "TMPDIR": self.temporary.name,
            **environment,
        }
        with log.open("wb") as out, log.with_suffix(".stderr").open("wb") as errors:
            if forked:
                self.process = Fork(list(command), log.parent, out.name, errors.name, env)
                return
            # Tests in the background ignore SIGINT; the programs that they start must not.
            default_sigint = ("env", "--default-signal=INT")
            self.process = subprocess.Popen(
                command if isinstance(command, str) else [*default_sigint, *command],
                shell=isinstance(command, str),
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=errors,
                cwd=log.parent,
                env=env,
                start_new_session=True,
            )

    @property
    def output(self) -> str:
        """Stdout so far, followed by stderr."""
        return self.log.read_text(encoding="utf-8", errors="replace") + self.errors

    @property
    def errors(self) -> str:
        """Stderr so far."""
        return self.log.with_suffix(".stderr").read_text(encoding="utf-8", errors="replace")

    def wait(self, deadline_s: float = DEADLINE_S) -> int:
        """Wait for the end and return the exit status, negative if a signal ended the program."""
        try:
            return self.process.wait(deadline_s)
        except subprocess.TimeoutExpired:
            raise AssertionError(f"still runs after {deadline_s} s:\n{self.stacks()}") from None

    def finish(self) -> Training:
        """Wait for the end and check that the exit status is 0."""
        status = self.wait()
        assert status == 0, f"exit status {status}:\n{self.tail}"
        return self

    def wait_for_update(self, number: int, deadline_s: float = DEADLINE_S) -> None:
        """Wait until that update is logged."""
        end = time.monotonic() + deadline_s
        while f'"num_updates": "{number}"' not in self.output:
            assert self.process.poll() is None, f"ended too early:\n{self.tail}"
            assert time.monotonic() < end, f"still waits after {deadline_s} s:\n{self.stacks()}"
            time.sleep(0.01)

    def wait_for_error(self, line: str, deadline_s: float = DEADLINE_S) -> None:
        """Wait until that line is on stderr."""
        end = time.monotonic() + deadline_s
        while line not in self.errors.splitlines():
            assert self.process.poll() is None, f"ended too early:\n{self.tail}"
            assert time.monotonic() < end, f"still waits after {deadline_s} s:\n{self.stacks()}"
            time.sleep(0.01)

    def signal_group(self, number: signal.Signals) -> None:
        """Signal the program and its data workers at once, as a cluster or a terminal does."""
        os.killpg(self.process.pid, number)

    def kill(self) -> None:
        """Kill the process group, unless the program has ended; data workers then end, too."""
        if self.process.poll() is None:  # else the PID may have been reused
            self.signal_group(signal.SIGKILL)
            self.process.wait()
        self.temporary.cleanup()

    def stacks(self) -> str:
        """End all processes of all trainings in this folder; return where each of them waited."""
        for process in _processes_of(self.log.parent):
            os.kill(process, signal.SIGABRT)
            time.sleep(1)  # they share stderr
        self.process.wait(30)
        logs = sorted(self.log.parent.glob("*.stderr"))
        return self.tail + "".join(f"\n{log.name}:\n{log.read_text()[-20_000:]}" for log in logs)

    @property
    def tail(self) -> str:
        """Last lines of the output, for messages."""
        return "\n".join(self.output.splitlines()[-25:])

    def stats(self, tag: str) -> list[dict[str, Any]]:
        """JSON lines printed under ``tag``, with all digits if a log file has them."""
        pattern = re.compile(rf"(\[[^]]*\]\[{tag}\]\[INFO\] - )(\{{.*\}})$", re.MULTILINE)
        exact: dict[str, str] = {}  # by time and tag
        for file in [] if self.folder is None else self.folder.rglob("hydra_train.log"):
            exact |= pattern.findall(file.read_text(encoding="utf-8"))
        return [json.loads(exact.get(key, line)) for key, line in pattern.findall(self.output)]

    @property
    def updates(self) -> dict[int, dict[str, str]]:
        """``FINETUNING_VALUES`` of each update, as logged."""
        return {
            int(stats["num_updates"]): {
                key: stats[key] for key in FINETUNING_VALUES if key in stats
            }
            for stats in self.stats("train_inner")
        }

    @property
    def losses(self) -> list[float]:
        """Loss of each update."""
        return [float(values["loss"]) for values in self.updates.values()]

    @property
    def epochs(self) -> dict[int, dict[str, str]]:
        """Average values of each epoch, as logged."""
        return {
            int(stats["epoch"]): {
                key: stats[f"train_{key}"] for key in FINETUNING_VALUES if f"train_{key}" in stats
            }
            for stats in self.stats("train")
        }


def _processes_of(folder: Path) -> list[int]:
    """PIDs of the programs that were started in a folder, and of their data workers."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):  # it has ended, or it is somebody else's
            if (process / "cwd").resolve().is_relative_to(folder):
                found.append(int(process.name))
    return found


def _run_folder(command: Sequence[str] | str, parent: Path) -> Path | None:
    """Return the folder that a training's command writes to, if it is known."""
    if isinstance(command, str):
        return None
    words = list(map(str, command))
    if "--out" in words:
        return parent / words[words.index("--out") + 1]
    found = [each.partition("=")[2] for each in words if each.startswith("hydra.run.dir=")]
    return parent / found[-1] if found else None


Start = Callable[..., Training]


@contextmanager
def starting(folder: Path) -> Iterator[Start]:
    """Start trainings that write to ``folder / out``; kill those that are left at the end."""
    running: list[Training] = []

    def start(
        data: Path,
        *overrides: str,
        out: str = "out",
        config: str = "mae_ast",
        program: Sequence[str] = (str(TRAIN_PROGRAM),),
        forked: bool = True,
        **environment: str,
    ) -> Training:
        command = train_command(data, folder / out, *overrides, config=config, program=program)
        log = folder / f"{out}_{len(running)}.log"
        is_known = program in ((str(TRAIN_PROGRAM),), LAUNCHER, FORKED_RANKS)
        running.append(Training(command, log, forked=forked and is_known, **environment))
        return running[-1]

    try:
        yield start
    finally:
        for training in running:
            training.kill()


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    with starting(tmp_path) as start:
        yield start


@pytest.fixture(scope="module")
def start_for_all(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Start]:
    """Start trainings that several tests of a module share."""
    with starting(tmp_path_factory.mktemp("trainings")) as start:
        yield start


# --- without a process --------------------------------------------------------------------------


def forget_the_best() -> None:
    """Reset fairseq's best value of another training in this process."""
    import fairseq_cli.train
    from fairseq import checkpoint_utils

    checkpoint_utils.save_checkpoint.__dict__.pop("best", None)
    for name in ("best", "num_runs"):
        fairseq_cli.train.should_stop_early.__dict__.pop(name, None)


@pytest.fixture
def train_here(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> Iterator[Callable[..., list[dict[str, str]]]]:
    """Train in this process like ``fairseq-hydra-train``, and return the log of each update."""
    import fairseq_cli.train
    from fairseq.dataclass.initialize import hydra_init
    from hydra import compose, initialize_config_dir
    from omegaconf import OmegaConf

    from mae_ast import plugin
    from mae_ast.trainer import stop_request

    plugin.register()
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    monkeypatch.chdir(tmp_path)
    caplog.set_level(logging.INFO)
    handlers = {number: signal.getsignal(number) for number in stop_request.SIGNALS}
    num_threads = torch.get_num_threads()
    torch.set_num_threads(1)

    def train(data: Path, *overrides: str, config: str = "mae_ast") -> list[dict[str, str]]:
        _, _, _, *arguments = train_command(data, tmp_path, *overrides, config=config)
        arguments = [each for each in arguments if not each.startswith("hydra.")]
        hydra_init(config)
        with initialize_config_dir(str(CONFIG_DIR), version_base="1.1"):
            cfg = compose(config, overrides=arguments)
        cfg = OmegaConf.create(OmegaConf.to_container(cfg, resolve=True, enum_to_str=True))
        OmegaConf.set_struct(cfg, True)
        caplog.clear()
        forget_the_best()
        fairseq_cli.train.main(cfg)
        return [json.loads(r.getMessage()) for r in caplog.records if r.name == "train_inner"]

    yield train
    torch.set_num_threads(num_threads)
    for number, handler in handlers.items():
        signal.signal(number, handler)


@pytest.fixture
def fp16_without_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let fairseq train in float16 on a CPU; the first gradient overflow is an error there."""
    from mae_ast.trainer.fairseq_patches import distributed

    monkeypatch.setattr(distributed, "configure_devices", lambda cfg: None)


@pytest.fixture
def losses(logged: Callable[..., list[dict[str, str]]]) -> Callable[..., list[float]]:
    """Return the losses of the four updates of a module's own fixture ``logged``."""

    def losses(*overrides: str, **options: str) -> list[float]:
        values = [float(stats["loss"]) for stats in logged(*overrides, **options)]
        assert len(values) == 4
        assert values[0] != values[-1]
        return values

    return losses
