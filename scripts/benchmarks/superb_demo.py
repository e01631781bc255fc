"""Compare the demo's model with random weights on SUPERB keyword spotting.

    make demo
    python scripts/benchmarks/superb_demo.py demo --out outputs/superb_demo

converts the demo's corpus to the layout of Speech Commands v0.01, fine-tunes with
``mae-ast superb ks`` from the demo's checkpoint and from random weights of the same network, and
prints the test accuracy of both on held-out voices. The same command resumes an interrupted run.

Since the corpus has only 70 minutes, the learning rate is higher and the batch smaller than in the
task's own settings, for both runs.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path

import soundfile
import torch

from mae_ast import load
from mae_ast.core.io.audio import SAMPLE_RATE
from mae_ast.core.models.mae_ast import MaeAst
from mae_ast.prepare.origins import KS_WORDS
from mae_ast.superb.tasks import KS_TEST, KS_TRAIN

sys.path.insert(0, str(Path(__file__).parents[2]))
from scripts.demo.corpus import WORDS

TRAIN_RANGE, DEV_RANGE = (20.0, 100.0), (0.0, 10.0)  # speakers' hashes, in percent
SILENCES_PER_NOISE = 4  # test clips of _silence_


def main() -> None:
    """Train and test from both initial weights, and print the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("demo", type=Path, help="output folder of `mae-ast demo`")
    parser.add_argument(
        "--out", type=Path, default=Path("outputs/superb_demo"), help="folder of data and runs"
    )
    parser.add_argument("--steps", type=int, default=200, help="training steps of each run")
    parser.add_argument("--lr", type=float, default=3e-4, help="learning rate of Adam")
    parser.add_argument("--batch", type=int, default=64, help="clips per batch")
    args = parser.parse_args()

    pretrained = args.demo / "run" / "checkpoints" / "checkpoint_last.pt"
    if not pretrained.is_file():
        parser.error(f"{pretrained}: no such checkpoint; run 'make demo' first")
    data, untrained = args.out / "data", args.out / "random_weights.pt"
    args.out.mkdir(parents=True, exist_ok=True)
    lay_out(args.demo / "corpus" / "speech_commands", data)
    if not untrained.exists():
        write_random_weights(pretrained, untrained)

    settings = [
        *(f"config.optimizer.lr={args.lr}", "config.runner.eval_step=50"),
        f"config.downstream_expert.datarc.batch_size={args.batch}",
    ]
    rows = []
    for name, checkpoint in (("pretrained", pretrained), ("random weights", untrained)):
        out = args.out / name.replace(" ", "_")
        command = ["superb", "ks", str(checkpoint), "--data", str(data), "--out", str(out)]
        options = ["--steps", str(args.steps), "--", "-o", ",,".join(settings)]
        mae_ast([*command, *options])
        tested = mae_ast([*command, "--mode", "evaluate"])
        accuracy = float(re.findall(r"^test acc: ([\d.]+)$", tested, re.MULTILINE)[-1])
        rows.append(f"| {name} | {accuracy:.1%} |")
    count = sum(1 for _ in (data / KS_TEST).glob("*/*.wav"))
    print(
        f"KS1 on the demo's corpus, {args.steps} steps of {args.batch} clips, learning rate "
        f"{args.lr:g}; {count} test clips\n\n| initial weights | test accuracy |\n| --- | --- |\n"
        + "\n".join(rows)
    )


def lay_out(corpus: Path, data: Path) -> None:
    """Write the layout of Speech Commands v0.01, with links to the demo's clips.

    The training folder has the training and validation voices. s3prl splits it by a hash of the
    speaker's name, so each speaker gets a numbered name that falls into the right split. The test
    folder has the test voices: the ten words, ``_unknown_`` (one clip of each other word) and
    ``_silence_``.

    Args:
        corpus: the demo's folder ``corpus/speech_commands``.
        data: folder to write; an existing one is replaced.
    """
    if data.is_dir():
        shutil.rmtree(data)
    train, test = data / KS_TRAIN, data / KS_TEST
    valid_clips, test_clips = (
        set((corpus / f"{split}_list.txt").read_text().split())
        for split in ("validation", "testing")
    )
    for word in WORDS:
        for path in sorted((corpus / word).glob("*.wav")):
            name = f"{word}/{path.name}"
            speaker, _, take = path.name.partition("_nohash_")
            if name not in test_clips:
                hashes = DEV_RANGE if name in valid_clips else TRAIN_RANGE
                _link(path, train / word / f"{_speaker_in(hashes, speaker)}_nohash_{take}")
            elif word in KS_WORDS:
                _link(path, test / word / path.name)
        if word not in KS_WORDS:
            spoken = sorted(name for name in test_clips if name.startswith(f"{word}/"))
            chosen = spoken[WORDS.index(word) * 5 % len(spoken)]  # vary voice and take
            _link(corpus / chosen, test / "_unknown_" / chosen.replace("/", "_"))
    for path in sorted((corpus / "_background_noise_").glob("*.wav")):
        _link(path, train / "_background_noise_" / path.name)
        samples, rate = soundfile.read(path)
        (test / "_silence_").mkdir(exist_ok=True)
        for number in range(SILENCES_PER_NOISE):
            start = (1 + 2 * number) * len(samples) // (2 * SILENCES_PER_NOISE)
            silence = test / "_silence_" / f"{path.stem}_{number}.wav"
            soundfile.write(silence, samples[start : start + SAMPLE_RATE], rate)


def _speaker_in(hashes: tuple[float, float], speaker: str) -> str:
    """Return the first of speaker0, speaker1, ... whose hash is in the range, in percent.

    The hash is that of ``which_set`` in the README of Speech Commands.
    """
    for name in (f"{speaker}{number}" for number in range(1000)):
        digest = int(hashlib.sha1(name.encode()).hexdigest(), 16)
        if hashes[0] <= digest % 2**27 * 100 / (2**27 - 1) < hashes[1]:
            return name
    raise AssertionError(f"no name for {speaker}")


def _link(source: Path, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    target.symlink_to(source.resolve())


def write_random_weights(pretrained: Path, path: Path) -> None:
    """Write the checkpoint's network with random weights and its own input statistics."""
    torch.manual_seed(0)
    model, fresh = load(pretrained), MaeAst(load(pretrained).config)
    fresh.batch_norm.load_state_dict(model.batch_norm.state_dict())
    cfg = torch.load(pretrained, map_location="cpu", weights_only=True)["cfg"]
    torch.save({"cfg": cfg, "model": fresh.state_dict()}, path)


def mae_ast(arguments: Iterable[str]) -> str:
    """Run ``mae-ast``, print its lines with accuracies, and return its output."""
    program = shutil.which("mae-ast") or str(Path(sys.executable).with_name("mae-ast"))
    print("mae-ast", *arguments, flush=True)
    process = subprocess.run(
        [program, *arguments], stdout=subprocess.PIPE, text=True, env=dict(os.environ), check=False
    )
    if process.returncode:
        raise SystemExit(process.returncode)
    print("\n".join(line for line in process.stdout.splitlines() if " acc: " in line), flush=True)
    return process.stdout


if __name__ == "__main__":
    main()
