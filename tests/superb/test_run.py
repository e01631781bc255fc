"""Test ``mae-ast superb`` with s3prl's runner, on the CPU."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch

from mae_ast.core.models.config import MaeAstConfig
from tests.superb.conftest import (
    write_checkpoint,
    write_iemocap,
    write_speech_commands,
    write_voxceleb,
)

REPOSITORY = Path(__file__).parents[2]
DEADLINE_S = 180.0
TINY = MaeAstConfig(
    encoder_layers=2,
    encoder_embed_dim=32,
    encoder_ffn_embed_dim=64,
    encoder_attention_heads=2,
    decoder_layers=1,
    decoder_embed_dim=32,
)
DATARC = "config.downstream_expert.datarc"
FEW = f"{DATARC}.num_workers=0,,config.runner.log_step=1"

Superb = Callable[..., tuple[int, str]]


class Server:
    """Client of ``tests/superb/server.py`` that runs commands in a folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.errors = (folder / "server.stderr").open("w")
        self.process = subprocess.Popen(
            [sys.executable, "-m", "tests.superb.server"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self.errors,
            text=True,
            cwd=REPOSITORY,
            env={**os.environ, "CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1"},
        )
        self.count = 0

    def start(self, *arguments: object) -> tuple[int, Path]:
        """Start a run; return its process id and log."""
        assert self.process.stdin is not None
        self.count += 1
        log = self.folder / f"{self.count}.log"
        request = [str(log), str(self.folder), *map(str, arguments)]
        self.process.stdin.write(json.dumps(request) + "\n")
        self.process.stdin.flush()
        return int(self.answer()), log

    def answer(self) -> str:
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        assert line, (self.folder / "server.stderr").read_text()
        return line

    def run(self, *arguments: object) -> tuple[int, str]:
        """Run a command; return its exit status and output."""
        _, log = self.start(*arguments)
        status = int(self.answer())
        return status, log.read_text(errors="replace")

    def finish(self, *arguments: object) -> str:
        """Run a command that succeeds; return its output."""
        status, output = self.run(*arguments)
        assert status == 0, output[-4_000:]
        return output

    def close(self) -> None:
        assert self.process.stdin is not None
        self.process.stdin.close()
        self.process.kill()  # no command is running
        self.process.wait()
        self.errors.close()


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    folder = tmp_path_factory.mktemp("superb")
    write_checkpoint(folder / "tiny.pt", TINY)
    server = Server(folder)
    yield server
    server.close()


def steps_of(out: Path) -> list[int]:
    return sorted(int(path.stem.split("-")[1]) for path in out.glob("states-*.ckpt"))


def killed_after(server: Server, step: int, *arguments: object, out: Path) -> None:
    """Start a run and kill it once it has saved this step."""
    process, log = server.start(*arguments)
    end = time.monotonic() + DEADLINE_S
    while max(steps_of(out), default=0) < step:
        assert time.monotonic() < end, log.read_text()
        time.sleep(0.005)
    os.kill(process, signal.SIGKILL)
    assert int(server.answer()) == -signal.SIGKILL, log.read_text()


def test_keyword_spotting_is_trained_killed_resumed_and_tested(server):
    data, out = write_speech_commands(server.folder / "ks data, x=1"), server.folder / "ks run, x=1"
    command = ["ks", "tiny.pt", "--data", data, "--out", out, "--steps", 60]
    rest = ["--", "-o", f"{FEW},,{DATARC}.batch_size=4,,config.runner.save_step=4"]
    status, output = server.run("ks", "mistyped.pt", *command[2:], *rest)
    assert (status, "mistyped.pt: no such checkpoint" in output) == (1, True), output
    killed_after(server, 4, *command, *rest, out=out)
    saved = steps_of(out)
    assert saved[-1] < 60, "killed too late for this test"

    output = server.finish(*command, *rest)
    assert f"Resume from {out / f'states-{saved[-1]}.ckpt'}" in output
    assert steps_of(out) == [56, 60]
    assert not list(out.glob("*.part"))
    states = torch.load(out / "states-60.ckpt", weights_only=False)
    assert states["Step"] == 60
    assert {"Upstream", "Featurizer", "Downstream", "Optimizer"} <= set(states)
    args = states["Args"]
    assert args.upstream_trainable
    assert args.upstream_feature_selection == "last_hidden_state"
    assert states["Config"]["optimizer"]["lr"] == 1e-5
    assert not any("decoder" in key or "final_proj" in key for key in states["Upstream"])
    before = torch.load(server.folder / "tiny.pt")["model"]
    after = states["Upstream"]
    weight = "encoder.layers.0.fc1.weight"
    assert not torch.equal(after[f"model.{weight}"], before[weight])
    for name in ("running_mean", "running_var"):
        assert torch.equal(after[f"model.batch_norm.{name}"], before[f"batch_norm.{name}"])

    # The settings of the run are used without repeating them.
    tested = server.finish(*command[:6], "--mode", "evaluate")
    (accuracy,) = re.findall(r"test acc: ([\d.]+)", tested)
    assert 0 <= float(accuracy) <= 1
    assert len((out / "test_predict.txt").read_text().splitlines()) == 12

    done = server.finish(*command, *rest)  # the run is complete
    assert "test acc" not in done
    assert steps_of(out) == [56, 60]
    shutil.copyfile(server.folder / "tiny.pt", server.folder / "other.pt")
    status, output = server.run("ks", "other.pt", *command[2:])
    assert status == 1
    assert "was started with checkpoint" in output


def test_speaker_identification_is_trained_and_tested(server):
    data, out = write_voxceleb(server.folder / "vox"), server.folder / "sid"
    command = ["sid", "tiny.pt", "--data", data, "--out", out]
    output = server.finish(*command, "--steps", 3, "--", "-o", FEW)
    assert "Take a list of 2 features and weighted sum them" in output
    assert len(re.findall("search specified wav name for", output)) == 3
    states = torch.load(out / "states-3.ckpt", weights_only=False)
    assert states["Config"]["runner"]["gradient_accumulate_steps"] == 4
    assert states["Downstream"]["model.post_net.linear.weight"].shape == (1251, 256)
    note = json.loads((out / "run.json").read_text())
    assert note.pop("layout") == "time_steps"
    (out / "run.json").write_text(json.dumps(note))  # as in older runs
    (out / "dev-best.ckpt").unlink(missing_ok=True)  # not written while dev accuracy stays 0
    tested = server.finish(*command, "--mode", "evaluate")
    assert "dev-best.ckpt: no such file; evaluating the last saved step, states-3.ckpt" in tested
    assert re.search(r"test acc: [\d.]+", tested)
    # The run folder holds s3prl's lists of files.
    assert "Loading file paths from" in tested
    assert len(list((out / "file_lists").glob("*/*.pkl"))) == 3
    package = Path(find_spec("s3prl").origin).parent
    assert not (package / "downstream" / "voxceleb1" / ".cache").exists()
    assert len((out / "test_truth.txt").read_text().splitlines()) == 1


def test_emotion_recognition_with_tokens_is_trained_and_tested(server):
    """Tokens are the layout of the paper."""
    data, out = write_iemocap(server.folder / "IEMOCAP"), server.folder / "er"
    plain = ["er", "tiny.pt", "--data", data, "--out", out, "--fold", 2]
    command = [*plain, "--layout", "tokens"]
    output = server.finish(*command, "--steps", 2, "--", "-o", FEW)
    assert 'using the testing fold: "fold2"' in output
    assert "last_hidden_state's downsample rate is 320" in output
    assert steps_of(out) == [2]
    states = torch.load(out / "states-2.ckpt", weights_only=False)
    assert states["Downstream"]["projector.weight"].shape == (256, 32)
    tested = server.finish(*command, "--mode", "evaluate")
    assert re.search(r"test acc: [\d.]+", tested)
    truth = (out / "test_fold2_truth.txt").read_text().splitlines()
    assert sorted(truth)[0] == "Ses02F_impro01_M000 neu"
    assert len(truth) == 8
    for mode in ("train", "evaluate"):
        status, output = server.run(*plain, "--mode", mode)
        assert status == 1
        assert "was started with layout 'tokens', not 'time_steps'" in output
    # Training resumes with more steps.
    server.finish(*command, "--steps", 4, "--", "-o", FEW)
    assert steps_of(out) == [2, 4]


def test_runs_another_downstream_of_s3prl(server):
    config = server.folder / "example.yaml"
    config.write_text(
        "runner: {total_steps: 2, gradient_clipping: 1, gradient_accumulate_steps: 1, log_step: 1,"
        " eval_step: 2, save_step: 2, max_keep: 2,"
        " eval_dataloaders: [dev], evaluate_ratio: 0.02}\n"
        "optimizer: {name: TorchOptim, torch_optim_name: Adam, lr: 1.0e-4}\n"
        "downstream_expert: {datarc: {train_batch_size: 2, eval_batch_size: 2, num_workers: 0},"
        " modelrc: {input_dim: 8}}\n"
    )
    out = server.folder / "example"
    output = server.finish(
        "example", "tiny.pt", "--out", out, "--", "-c", config, "-s", "last_hidden_state"
    )
    assert steps_of(out) == [2], output
    args = torch.load(out / "states-2.ckpt", weights_only=False)["Args"]
    assert args.upstream_feature_selection == "last_hidden_state"


def test_rejects_too_few_clips_for_a_batch(server):
    data = server.folder / "ks few"
    write_speech_commands(data)
    status, output = server.run("ks", "tiny.pt", "--data", data, "--out", server.folder / "few")
    assert status == 1
    assert "13 training clips, less than one batch of 512" in output
    assert not (server.folder / "few").exists()
