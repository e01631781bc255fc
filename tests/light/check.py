"""Check the installed package without any extra, in its environment and an empty folder.

    python -I check.py

It uses no pytest and nothing of the checkout. The package is used as its users use it: the API for
loading and features, the command for everything else.
"""

from __future__ import annotations

import csv
import io
import os
import platform
import subprocess
import sys
import sysconfig
import time
from contextlib import redirect_stdout
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import soundfile
import torch

import mae_ast
from mae_ast.cli.main import main as main_command
from mae_ast.console import EXTRAS
from mae_ast.core.models.config import AstConfig, MaeAstConfig
from mae_ast.hub.load import PretrainedAst, PretrainedMaeAst

RATE = 16_000
SPLITS = ("train", "valid")
SIZES = {"embed_dim": 32, "ffn_embed_dim": 64, "attention_heads": 2}
COMMAND = Path(sysconfig.get_path("scripts"), "mae-ast")


def command(*arguments: str, fails: bool = False) -> str:
    """Run ``mae-ast`` in this process; return what it prints, or its message if it fails."""
    sys.argv = ["mae-ast", *arguments]
    printed = io.StringIO()
    status: object = None
    try:
        with redirect_stdout(printed):
            main_command()
    except SystemExit as end:
        status = end.code
    assert bool(status) == fails, f"{' '.join(sys.argv)}: {status}"
    return str(status) if fails else printed.getvalue()


def output_of(*program: str | Path) -> str:
    """Run a program in a new process, and return what it prints."""
    return subprocess.run(program, capture_output=True, text=True, check=True).stdout.strip()


def write_audio() -> None:
    noise = np.random.default_rng(0)
    rows = []
    for number in range(10):
        samples = (noise.standard_normal(RATE * 2 // 3) * 3000).astype(np.int16)
        fold, target = 1 + number // 2, number % 2
        name = f"{fold}-{target}.wav"
        Path("ESC-50/audio").mkdir(parents=True, exist_ok=True)
        soundfile.write(Path("ESC-50/audio") / name, samples, RATE)
        category = ("dog", "rain")[target]
        rows.append((name, fold, target, category))
        Path("own", category).mkdir(parents=True, exist_ok=True)
        soundfile.write(Path("own", category, name), samples, RATE)
    soundfile.write("long.flac", np.tile(samples, 6), RATE)
    Path("ESC-50/meta").mkdir()
    with Path("ESC-50/meta/esc50.csv").open("w", newline="") as file:
        csv.writer(file).writerows([("filename", "fold", "target", "category"), *rows])


def check_data() -> None:
    """Manifests, prepared labels, statistics and shards."""
    command("manifest", "ESC-50/audio", "--out", "manifests", "--valid", "0.2")
    files = [Path("manifests", f"{split}.tsv").read_text().splitlines() for split in SPLITS]
    assert sum(len(lines) - 1 for lines in files) == 10
    command("prepare", "esc50", "ESC-50", "--out", "esc50")
    assert Path("esc50/fold1/train.lbl").is_file()
    command("prepare", "folders", "own", "--out", "folders")
    segments = [("long.flac", "dog", 0, 1), ("long.flac", "rain", 2, 3)]
    with Path("table.csv").open("w", newline="") as file:
        csv.writer(file).writerows([("path", "label", "start", "end"), *segments])
    command("prepare", "table", "table.csv", "--out", "table")
    assert all(Path(name, "labels.csv").is_file() for name in ("folders", "table"))
    assert "std" in command("stats", "manifests/train.tsv")
    command("pack", "esc50/fold1/train.tsv", "packed")
    assert list(Path("packed").glob("*.tar"))


def check_features() -> None:
    """Load a model from each kind of file, and compute features."""
    torch.manual_seed(0)
    parts = {
        f"{part}_{key}": size for part in ("encoder", "decoder") for key, size in SIZES.items()
    }
    model = PretrainedMaeAst(MaeAstConfig(encoder_layers=2, decoder_layers=1, **parts))
    model.save_pretrained("saved")
    command("convert", "saved", "model.pt", "--to", "released")
    command("convert", "model.pt", "hub", "--to", "safetensors")
    expected = model.eval().extract_features("long.flac").pooled
    for source in ("model.pt", "hub"):
        features = mae_ast.load(source).extract_features(["long.flac", "ESC-50/audio/1-0.wav"])
        assert features.pooled.shape == (2, 2, 8 * 32), features.pooled.shape
        torch.testing.assert_close(features.pooled[:1], expected, atol=1e-5, rtol=1e-5)
    command("extract", "model.pt", "manifests/train.tsv", "features", "--layer", "2", "--pool")
    num_clips = len(Path("manifests/train.tsv").read_text().splitlines()) - 1
    (written,) = Path("features").glob("train*.npy")
    assert np.load(written).shape == (num_clips, 8 * 32)


def check_classifier() -> None:
    """Classify with a fine-tuned model: the published layout of AST."""
    sizes = {f"encoder_{key}": size for key, size in SIZES.items()} | {"encoder_embed_dim": 64}
    sizes |= {"encoder_ffn_embed_dim": 256, "encoder_attention_heads": 1}
    config = AstConfig(encoder_layers=2, num_classes=3, **sizes)
    PretrainedAst(config, labels=("dog", "rain", "siren")).save_pretrained("ast")
    command("convert", "ast", "exported", "--to", "transformers")
    said = command("predict", "exported", "long.flac", "--top", "2")
    assert said.count("long.flac\t") == 2, said
    command("predict", "exported", "long.flac", "--window", "1", "--hop", "0.5", "--out", "labels")
    assert list(Path("labels").iterdir())


def check_extras() -> None:
    """No extra is installed, and the commands that need one say so."""
    for modules in EXTRAS.values():
        for module in set(modules) - {"yaml"}:  # huggingface_hub needs it
            assert find_spec(module) is None, f"{module} is installed"
    said = command("probe", "model.pt", "manifests/train.tsv", fails=True)
    assert said == "mae-ast: error: scikit-learn is not installed: pip install 'mae-ast[train]'"
    assert "fairseq-fixed is not installed" in command("pretrain", "manifests", fails=True)
    assert "pip install 'mae-ast[onnx]'" in command(
        *("convert", "model.pt", "model.onnx", "--to", "onnx"), fails=True
    )
    package = Path(mae_ast.__file__).parent
    for name in ("config/pretrain/mae_ast.yaml", "superb_config/ks.yaml", "py.typed"):
        assert (package / name).is_file(), f"{name} is not in the wheel"
    for name in ("--help", "pretrain --help", "superb --help"):
        assert "Usage:" in command(*name.split())
    assert "mae_ast_patch" in command("models")
    assert output_of(COMMAND, "--version") == mae_ast.__version__


def main() -> None:
    """Run all checks and print the versions."""
    assert "site-packages" in mae_ast.__file__, f"not the installed package: {mae_ast.__file__}"
    start = time.perf_counter()
    write_audio()
    check_data()
    check_features()
    check_classifier()
    check_extras()
    program = "import time; t = time.perf_counter(); import mae_ast; print(time.perf_counter() - t)"
    seconds = float(output_of(sys.executable, "-I", "-c", program))
    print(
        f"Python {platform.python_version()}, torch {torch.__version__}: import mae_ast takes "
        f"{seconds:.2f} s; checked in {time.perf_counter() - start:.0f} s"
    )


if __name__ == "__main__":
    os.environ["OMP_NUM_THREADS"] = "1"
    main()
