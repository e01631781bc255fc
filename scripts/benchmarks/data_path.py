"""Compare the data path with the reference's: a large manifest, and FLAC files to batches.

    python scripts/benchmarks/data_path.py --reference PATH

PATH is a checkout of github.com/AlanBaade/MAE-AST-Public. Its package has the name of ours, so
each implementation runs in its own process. The benchmark has two parts:

1. A manifest of ``--rows`` rows, compared with one of 64 rows: time and memory of loading, time of
   batching an epoch, time of starting a worker process and the worker's private memory.
2. Batches of 32 clips on one core, from FLAC (16 kHz, mono, 16 bit), of 10 s and of 15 s cropped
   to 10 s. The reference decodes the whole file and runs torchaudio's filterbank clip by clip. Ours
   decodes only the crop, to int16; the variants also draw masks, and compute the filterbank in the
   worker. Implementations alternate, and ratios are taken between batches of the same turn.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import soundfile
import torch
from measuring import RESULTS, Report, Side, ratios_of, serve

RATE = 16_000
CROP_S = 10
FILE_SECONDS = (10, 15)
NUM_FILES = 64
BATCH = 32
MODES = {
    "reference": "reference: decode, filterbank, crop, batch",
    "clips": "ours: decode the crop",
    "batches": "ours: decode the crop, masks, batch",
    "fbank": "ours: decode the crop, masks, batch, filterbank",
}


def main() -> None:
    """Measure both parts; print and write tables and JSON."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--reference", required=True, help="checkout of the reference")
    parser.add_argument("--rows", type=int, default=2_000_000, help="rows of the manifest")
    parser.add_argument("--turns", type=int, default=13, help="batches of each implementation")
    parser.add_argument(
        "--results", type=Path, default=RESULTS, help="folder to write the result to"
    )
    parser.add_argument("--large", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--serve", nargs=2, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.large:
        print(json.dumps(large_manifest(arguments.large)))
        return
    if arguments.serve:
        mode, folder = arguments.serve
        serve(batch_of(mode, Path(folder), arguments.reference))
        return
    report = Report(
        "The data path, from files to batches, CPU",
        f"Part 1: a manifest of {arguments.rows:,} rows that cycle through {NUM_FILES} files. "
        "Memory is the peak above that of\nimporting torch; a worker has started when its first "
        f"clip is decoded. Part 2: batches of\n{BATCH} clips of {CROP_S} s from FLAC, one core; "
        f"{arguments.turns} interleaved batches of each implementation,\nratios between batches "
        "of the same turn.",
    )
    with tempfile.TemporaryDirectory() as name:
        folders = {seconds: Path(name) / f"{seconds}s" for seconds in FILE_SECONDS}
        for seconds, folder in folders.items():
            write_clips(folder, seconds)
        small, large = (folders[CROP_S] / f"{size}.tsv" for size in ("small", "large"))
        write_rows(small, NUM_FILES, CROP_S)
        write_rows(large, arguments.rows, CROP_S)
        scale = [large_manifest_in_subprocess(path, arguments.reference) for path in (small, large)]
        add_scale_table(report, scale)
        speeds = [
            row
            for seconds, folder in folders.items()
            for row in compare(report, folder, seconds, arguments.reference, arguments.turns)
        ]
    report.write("data_path", arguments.results, {"manifest": scale, "clips": speeds})


# -- part 1 -------------------------------------------------------------------------------------


def large_manifest_in_subprocess(manifest: Path, reference: str) -> dict[str, float]:
    """Run :func:`large_manifest` in a child process."""
    command = [sys.executable, __file__, "--reference", reference, "--large", str(manifest)]
    output = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout
    metrics: dict[str, float] = json.loads(output.splitlines()[-1])
    return metrics


def large_manifest(path: Path) -> dict[str, float]:
    """Measure seconds and MB of loading a manifest, batching it, and starting a worker."""
    torch_mb = memory_mb("self", "VmHWM")
    from mae_ast.core.io.manifest import Manifest

    begin = time.perf_counter()
    manifest = Manifest.load(path)
    metrics: dict[str, float] = {"rows": len(manifest), "load_s": time.perf_counter() - begin}
    metrics["load_mb"] = memory_mb("self", "VmHWM") - torch_mb

    from fairseq.data.iterators import EpochBatchIterator  # noqa: TID251  (as in training)

    dataset = our_dataset(manifest)
    begin = time.perf_counter()
    indices = dataset.ordered_indices()
    indices, _ = dataset.filter_indices_by_size(indices, BATCH * CROP_S * RATE)
    batches = dataset.batch_by_size(indices, max_tokens=BATCH * CROP_S * RATE)
    iterator = EpochBatchIterator(dataset, dataset.collater, batches, num_shards=8)
    iterator.ordered_batches(epoch=1, fix_batches_to_gpus=False, shuffle=True)
    metrics["batching_s"] = time.perf_counter() - begin
    metrics["all_mb"] = memory_mb("self", "VmHWM") - torch_mb

    starts = []
    for _ in range(5):
        loader = torch.utils.data.DataLoader(dataset, None, num_workers=1, sampler=[0])
        begin = time.perf_counter()
        workers = iter(loader)
        next(workers)
        starts.append(time.perf_counter() - begin)
        (process,) = multiprocessing.active_children()
        metrics["worker_private_mb"] = memory_mb(str(process.pid), "Private_Dirty")
        del workers
    metrics["worker_s"] = statistics.median(starts)
    return metrics


def memory_mb(process: str, key: str) -> float:
    """Return a process's peak memory (``VmHWM``) or private memory (``Private_Dirty``) in MB.

    ``ru_maxrss`` would not do: in a child process it starts at the parent's value.
    """
    file = "smaps_rollup" if key == "Private_Dirty" else "status"
    for line in Path(f"/proc/{process}/{file}").read_text().splitlines():
        if line.startswith(f"{key}:"):
            return int(line.split()[1]) / 1000
    raise ValueError(f"/proc/{process}/{file} has no {key}")


def add_scale_table(report: Report, scale: list[dict[str, float]]) -> None:
    """Add the table of part 1."""
    report.add(
        "| rows | load (s) | load (MB) | batching (s) | with fairseq (MB) | worker start (s) | "
        "worker's private memory (MB) |"
    )
    report.add("| --- " * 7 + "|")
    for metrics in scale:
        report.add(
            f"| {metrics['rows']:,} | {metrics['load_s']:.2f} | {metrics['load_mb']:.0f} | "
            f"{metrics['batching_s']:.2f} | {metrics['all_mb']:.0f} | {metrics['worker_s']:.3f} | "
            f"{metrics['worker_private_mb']:.0f} |"
        )
    report.add()


# -- part 2 -------------------------------------------------------------------------------------


def compare(
    report: Report, folder: Path, seconds: int, reference: str, turns: int
) -> list[dict[str, object]]:
    """Measure all modes alternately on one folder of clips, and add a table."""
    command = [sys.executable, __file__, "--reference", reference, "--serve"]
    sides = [Side([*command, mode, str(folder)]) for mode in MODES]
    taken = [[side.step() for side in sides] for _ in range(turns)]
    for side in sides:
        side.close()
    report.add(f"| files of {seconds} s | per clip (ms) | clips/s | speed-up over the reference |")
    report.add("| --- " * 4 + "|")
    rows = []
    for number, (mode, label) in enumerate(MODES.items()):
        each = [turn[number] for turn in taken]
        ratios = ratios_of(turn[0] / turn[number] for turn in taken)
        a_clip = statistics.median(each) / BATCH
        report.add(f"| {label} | {1000 * a_clip:.2f} | {1 / a_clip:.0f} | {ratios} |")
        rows.append({"mode": mode, "file_s": seconds, "batch": BATCH, "seconds": each})
    report.add()
    return rows


def batch_of(mode: str, folder: Path, reference: str) -> Callable[[], object]:
    """Return a function that makes the next batch."""
    torch.set_num_threads(1)  # as in a worker
    is_reference = mode == "reference"
    dataset = reference_dataset(folder, reference) if is_reference else our_mode(mode, folder)
    position = 0

    def step() -> object:
        nonlocal position
        clips = [dataset[(position + n) % NUM_FILES] for n in range(BATCH)]
        position += BATCH
        return clips if mode == "clips" else dataset.collater(clips)

    return step


def our_mode(mode: str, folder: Path) -> Any:
    """Return our dataset of the clips in a folder."""
    from mae_ast.core.io.manifest import Manifest

    write_rows(folder / "small.tsv", NUM_FILES, int(folder.name[:-1]))
    return our_dataset(Manifest.load(folder / "small.tsv"), compute_fbank=mode == "fbank")


def our_dataset(manifest: Any, compute_fbank: bool = False) -> Any:
    """Return our dataset with the settings of the preset mae_ast, clips cropped to 10 s."""
    from mae_ast.core.frontend.collate import Collater
    from mae_ast.core.models.config import MaeAstConfig
    from mae_ast.data.pretraining_dataset import PretrainingDataset

    collater = Collater(MaeAstConfig(), "chunk_mask", compute_fbank=compute_fbank)
    return PretrainingDataset(manifest, collater, 1, shuffle=True, max_samples=CROP_S * RATE)


def reference_dataset(folder: Path, reference: str) -> Any:
    """Return the reference's dataset with its presets' settings; its crop size is in frames."""
    sys.path.insert(0, reference)
    from mae_ast.data.mae_ast_dataset import MAE_AST_Dataset

    return MAE_AST_Dataset(
        str(folder / "reference.tsv"),
        sample_rate=RATE,
        max_sample_size=100 * CROP_S - 2,
        random_crop=True,
        feature_type="fbank",
        feature_dim=128,
        deltas=False,
    )


# -- files --------------------------------------------------------------------------------------


def write_clips(folder: Path, seconds: int) -> None:
    """Write harmonic sounds of gliding pitch in noise, and the reference's manifest of them."""
    (folder / "audio").mkdir(parents=True)
    rows = [str(folder / "audio")]
    time_s = np.arange(seconds * RATE) / RATE
    for number in range(NUM_FILES):
        draws = np.random.default_rng(number)
        phase = 2 * np.pi * np.cumsum(150 + 50 * np.sin(draws.uniform(1, 5) * time_s)) / RATE
        voice = sum(np.sin(k * phase) / k for k in range(1, 20)) * np.sin(3 * time_s) ** 2
        wave = 0.1 * voice + draws.normal(0, draws.uniform(0.001, 0.02), len(time_s))
        soundfile.write(folder / "audio" / f"{number:011d}.flac", wave, RATE, subtype="PCM_16")
        rows.append(f"{number:011d}.flac\t{len(wave)}")
    (folder / "reference.tsv").write_text("\n".join(rows) + "\n")


def write_rows(path: Path, rows: int, seconds: int) -> None:
    """Write a manifest that cycles through a folder's files, with paths as long as AudioSet's."""
    with path.open("w") as file:
        file.write(".\n")
        file.writelines(
            f"audio/././././././././{row % NUM_FILES:011d}.flac\t{seconds * RATE}\t{RATE}\n"
            for row in range(rows)
        )


if __name__ == "__main__":
    main()
