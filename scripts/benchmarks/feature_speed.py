"""Compare the speed of feature extraction with s3prl's MAE-AST and transformers' AST.

    python scripts/benchmarks/feature_speed.py

8 clips of 10 s, from waveforms to features, on a CPU:

    s3prl          its own implementation of MAE-AST, ``s3prl.upstream.mae_ast``: all layers,
                   float32
    transformers   ASTFeatureExtractor and ASTModel with default sizes: the last layer, float32
    ours           ``extract_features`` of the model whose weights s3prl loads: layer 12 or layer
                   6, in float32 or bfloat16

All have 12 layers of width 768 and random weights, which do not affect the time. MAE-AST has 496
patches per clip; AST, whose patches overlap, has 1,212. Each implementation runs in its own
process. In each turn all run once, one after another; ratios compare runs of the same turn.

Ours keeps freed memory (:mod:`mae_ast.core.nn.malloc`), as ``mae-ast extract`` does; the others
are also timed with this setting.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import torch
from measuring import RESULTS, Report, Side, ratios_of, serve

CLIPS, SAMPLES = 8, 160_000
S3PRL, AST = "s3prl's MAE-AST", "transformers' AST"
KEEPING = ", keeping freed memory"
OURS = {  # name: (layer, precision)
    "layer 12, float32": (12, "float32"),
    "layer 12, bfloat16": (12, "bfloat16"),
    "layer 6, float32": (6, "float32"),
    "layer 6, bfloat16": (6, "bfloat16"),
}


def waveforms() -> torch.Tensor:
    """Return the clips, (8, 160000) float32 in [-1, 1]."""
    return torch.randn(CLIPS, SAMPLES, generator=torch.Generator().manual_seed(0)).mul_(0.1)


def write_model(path: Path) -> None:
    """Write MAE-AST with random weights in the released layout, which s3prl loads."""
    from mae_ast.core.models.config import MaeAstConfig
    from mae_ast.hub.export import to_released_file
    from mae_ast.hub.load import PretrainedMaeAst

    torch.manual_seed(0)
    to_released_file(PretrainedMaeAst(MaeAstConfig(), "chunk_mask"), path)


def our_features(path: str, layer: int, precision: str) -> Callable[[], torch.Tensor]:
    """Return a function that extracts features of a layer, (8, 496, 768)."""
    import mae_ast

    model, clips = mae_ast.load(path), list(waveforms())

    def extract() -> torch.Tensor:
        return model.extract_features(clips, layers=[layer], precision=precision).hidden_states[0]

    return extract


def s3prl_features(path: str) -> Callable[[], torch.Tensor]:
    """Return a function that computes the upstream's last hidden state, (8, 62, 8 * 768)."""
    from s3prl.upstream.mae_ast.hubconf import mae_ast_local

    upstream, clips = mae_ast_local(path).eval(), list(waveforms())

    @torch.no_grad()
    def extract() -> torch.Tensor:
        last: torch.Tensor = upstream(clips)["hidden_states"][-1]
        return last

    return extract


def ast_features() -> Callable[[], torch.Tensor]:
    """Return a function that computes AST's last hidden state, (8, 1214, 768)."""
    from transformers import ASTConfig, ASTFeatureExtractor, ASTModel

    extractor, model = ASTFeatureExtractor(), ASTModel(ASTConfig()).eval()
    clips = [clip.numpy() for clip in waveforms()]

    @torch.no_grad()
    def extract() -> torch.Tensor:
        inputs = extractor(clips, sampling_rate=16_000, return_tensors="pt")
        last: torch.Tensor = model(**inputs).last_hidden_state
        return last

    return extract


def extractor_of(name: str, path: str) -> Callable[[], torch.Tensor]:
    """Return the function to time for the name of an implementation."""
    if name in OURS or name.endswith(KEEPING):
        from mae_ast.core.nn.malloc import keep_freed_memory

        keep_freed_memory()
    if name in OURS:
        return our_features(path, *OURS[name])
    return ast_features() if name.startswith(AST) else s3prl_features(path)


def differences(path: str) -> dict[str, float]:
    """Return relative differences (norms) of the last layer: to s3prl, and of bfloat16."""
    ours = our_features(path, 12, "float32")()
    theirs = s3prl_features(path)().reshape(ours.shape)
    in_half = our_features(path, 12, "bfloat16")()
    return {
        "float32 and s3prl": float((ours - theirs).norm() / theirs.norm()),
        "bfloat16 and float32": float((in_half - ours).norm() / ours.norm()),
    }


def main() -> None:
    """Time all implementations in turn; print and write a table and JSON."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--turns", type=int, default=5, help="timed runs of each implementation")
    parser.add_argument(
        "--results", type=Path, default=RESULTS, help="folder to write the result to"
    )
    parser.add_argument("--serve", nargs=2, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.serve:
        serve(extractor_of(*arguments.serve))
        return
    report = Report(
        "Feature extraction compared with s3prl's MAE-AST and transformers' AST, CPU",
        f"{CLIPS} clips of 10 s, from waveforms to features; 12 layers of width 768, random "
        "weights. s3prl computes all\nlayers, transformers the last one, both in float32. "
        f"{arguments.turns} runs each, in turn; ratios are taken within a turn.",
    )
    with tempfile.TemporaryDirectory() as folder:
        path = str(Path(folder) / "model.pt")
        write_model(Path(path))
        found = differences(path)
        for pair, value in found.items():
            report.add(f"relative difference of {pair}: {value:.2g}")
        names = [S3PRL, AST, S3PRL + KEEPING, AST + KEEPING, *OURS]
        program = [sys.executable, str(Path(__file__).resolve()), "--serve"]
        sides = {name: Side([*program, name, path]) for name in names}
        seconds: dict[str, list[float]] = {name: [] for name in names}
        for _ in range(arguments.turns):
            for name, side in sides.items():
                seconds[name].append(side.step())
        for side in sides.values():
            side.close()
    report.add()
    report.add(f"| features | time (s) | speed-up over {S3PRL} | over {AST} |")
    report.add("| --- | --- | --- | --- |")
    for name in names:
        ratios = [
            ratios_of(
                theirs / own for theirs, own in zip(seconds[other], seconds[name], strict=True)
            )
            for other in (S3PRL, AST)
        ]
        cells = [f"{statistics.median(seconds[name]):.2f}", *ratios]
        report.add(f"| {name} | {' | '.join(cells)} |")
    values = {"seconds": seconds, "relative_differences": found}
    report.write("feature_speed", arguments.results, values)


if __name__ == "__main__":
    main()
