"""From a manifest of two million rows and from FLAC files to batches, ours and the reference's.

    python benchmarks/data_path.py --reference PATH

PATH is a checkout of github.com/AlanBaade/MAE-AST-Public. Its package has our package's name, so
each side runs in a process of its own. Measured are

1. a manifest of ``--rows`` rows beside one of 64: seconds and memory of loading, seconds of
   batching for an epoch, what starting a worker process takes and what memory is its own;
2. batches of 32 clips on one core, from FLAC (16 kHz, mono, 16 bit), of 10 s and of 15 s cropped
   to 10 s. The reference decodes the whole file and runs torchaudio's filterbank clip by clip. Ours
   only decodes the crop, to int16; with masks drawn; and with the filterbank in the worker too.
   The sides take turns, and ratios are taken turn by turn.
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
from measuring import RESULTS, Report, Side, serve

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
    """Measure both parts; a table and JSON, printed and written."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--reference", required=True, help="checkout of the reference")
    parser.add_argument("--rows", type=int, default=2_000_000)
    parser.add_argument("--turns", type=int, default=13, help="batches of each side")
    parser.add_argument("--results", type=Path, default=RESULTS, help="folder of the result")
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
        f"Part 1: a manifest of {arguments.rows:,} rows that name {NUM_FILES} files in turn. "
        "Memory is the peak above what\nimporting torch takes; a worker has started when its "
        "first clip is decoded. Part 2: batches of\n"
        f"{BATCH} clips of {CROP_S} s from FLAC, one core; {arguments.turns} interleaved batches "
        "of each side,\nratios taken turn by turn.",
    )
    with tempfile.TemporaryDirectory() as name:
        folders = {seconds: Path(name) / f"{seconds}s" for seconds in FILE_SECONDS}
        for seconds, folder in folders.items():
            write_clips(folder, seconds)
        small, large = (folders[CROP_S] / f"{size}.tsv" for size in ("small", "large"))
        write_rows(small, NUM_FILES, CROP_S)
        write_rows(large, arguments.rows, CROP_S)
        scale = [measured_apart(path, arguments.reference) for path in (small, large)]
        say_scale(report, scale)
        speeds = [
            row
            for seconds, folder in folders.items()
            for row in compare(report, folder, seconds, arguments.reference, arguments.turns)
        ]
    report.say(f"\n```json\n{json.dumps({'manifest': scale, 'clips': speeds})}\n```")
    report.write("data_path", arguments.results)


# -- part 1 -------------------------------------------------------------------------------------


def measured_apart(manifest: Path, reference: str) -> dict[str, float]:
    """:func:`large_manifest` in a process of its own."""
    command = [sys.executable, __file__, "--reference", reference, "--large", str(manifest)]
    output = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout
    figures: dict[str, float] = json.loads(output.splitlines()[-1])
    return figures


def large_manifest(path: Path) -> dict[str, float]:
    """Seconds and MB of loading a manifest, batching it, and starting a worker on it."""
    torch_mb = memory_mb("self", "VmHWM")
    from mae_ast.core.io.manifest import Manifest

    begin = time.perf_counter()
    manifest = Manifest.load(path)
    figures: dict[str, float] = {"rows": len(manifest), "load_s": time.perf_counter() - begin}
    figures["load_mb"] = memory_mb("self", "VmHWM") - torch_mb

    from fairseq.data.iterators import EpochBatchIterator  # noqa: TID251  (what trainings use)

    dataset = our_dataset(manifest)
    begin = time.perf_counter()
    indices = dataset.ordered_indices()
    indices, _ = dataset.filter_indices_by_size(indices, BATCH * CROP_S * RATE)
    batches = dataset.batch_by_size(indices, max_tokens=BATCH * CROP_S * RATE)
    iterator = EpochBatchIterator(dataset, dataset.collater, batches, num_shards=8)
    iterator.ordered_batches(epoch=1, fix_batches_to_gpus=False, shuffle=True)
    figures["batching_s"] = time.perf_counter() - begin
    figures["all_mb"] = memory_mb("self", "VmHWM") - torch_mb

    starts = []
    for _ in range(5):
        loader = torch.utils.data.DataLoader(dataset, None, num_workers=1, sampler=[0])
        begin = time.perf_counter()
        workers = iter(loader)
        next(workers)
        starts.append(time.perf_counter() - begin)
        (process,) = multiprocessing.active_children()
        figures["worker_private_mb"] = memory_mb(str(process.pid), "Private_Dirty")
        del workers
    figures["worker_s"] = statistics.median(starts)
    return figures


def memory_mb(process: str, what: str) -> float:
    """Of a process: ``VmHWM``, the most that it ever held; ``Private_Dirty``, what is its own.

    A process's ``ru_maxrss`` starts at what its parent held.
    """
    kind = "smaps_rollup" if what == "Private_Dirty" else "status"
    for line in Path(f"/proc/{process}/{kind}").read_text().splitlines():
        if line.startswith(f"{what}:"):
            return int(line.split()[1]) / 1000
    raise ValueError(f"/proc/{process}/{kind} has no {what}")


def say_scale(report: Report, scale: list[dict[str, float]]) -> None:
    """Part 1 as a table."""
    report.say(
        "| rows | load (s) | load (MB) | batching (s) | all, fairseq too (MB) | worker start (s) | "
        "a worker's own (MB) |"
    )
    report.say("| --- " * 7 + "|")
    for figures in scale:
        report.say(
            f"| {figures['rows']:,} | {figures['load_s']:.2f} | {figures['load_mb']:.0f} | "
            f"{figures['batching_s']:.2f} | {figures['all_mb']:.0f} | {figures['worker_s']:.3f} | "
            f"{figures['worker_private_mb']:.0f} |"
        )
    report.say()


# -- part 2 -------------------------------------------------------------------------------------


def compare(
    report: Report, folder: Path, seconds: int, reference: str, turns: int
) -> list[dict[str, object]]:
    """All modes in turn on one folder of clips; a table."""
    command = [sys.executable, __file__, "--reference", reference, "--serve"]
    sides = [Side([*command, mode, str(folder)]) for mode in MODES]
    taken = [[side.step() for side in sides] for _ in range(turns)]
    for side in sides:
        side.close()
    report.say(f"| files of {seconds} s | a clip (ms) | clips/s | over the reference's |")
    report.say("| --- " * 4 + "|")
    rows = []
    for number, (mode, label) in enumerate(MODES.items()):
        each = [turn[number] for turn in taken]
        ratios = [turn[0] / turn[number] for turn in taken]
        a_clip = statistics.median(each) / BATCH
        report.say(
            f"| {label} | {1000 * a_clip:.2f} | {1 / a_clip:.0f} | "
            f"{statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f}) |"
        )
        rows.append({"mode": mode, "file_s": seconds, "batch": BATCH, "seconds": each})
    report.say()
    return rows


def batch_of(mode: str, folder: Path, reference: str) -> Callable[[], object]:
    """A function that makes the next batch."""
    torch.set_num_threads(1)  # as in a worker
    is_reference = mode == "reference"
    dataset = reference_dataset(folder, reference) if is_reference else our_mode(mode, folder)
    place = 0

    def step() -> object:
        nonlocal place
        clips = [dataset[(place + n) % NUM_FILES] for n in range(BATCH)]
        place += BATCH
        return clips if mode == "clips" else dataset.collater(clips)

    return step


def our_mode(mode: str, folder: Path) -> Any:
    """Our dataset of a folder's clips."""
    from mae_ast.core.io.manifest import Manifest

    write_rows(folder / "small.tsv", NUM_FILES, int(folder.name[:-1]))
    return our_dataset(Manifest.load(folder / "small.tsv"), compute_fbank=mode == "fbank")


def our_dataset(manifest: Any, compute_fbank: bool = False) -> Any:
    """As in ``config/pretrain/mae_ast.yaml``, with clips cropped to 10 s."""
    from mae_ast.core.frontend.collate import Collater
    from mae_ast.core.models.config import MaeAstConfig
    from mae_ast.data.pretraining_dataset import PretrainingDataset

    collater = Collater(MaeAstConfig(), "chunk_mask", compute_fbank=compute_fbank)
    return PretrainingDataset(manifest, collater, 1, shuffle=True, max_samples=CROP_S * RATE)


def reference_dataset(folder: Path, reference: str) -> Any:
    """The reference's, with its presets' settings, and frames for the size it crops to."""
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
    """Voices of gliding pitch in noise, and the reference's manifest of them."""
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
    """A manifest that names a folder's files in turn, with paths as long as AudioSet's are."""
    with path.open("w") as file:
        file.write(".\n")
        file.writelines(
            f"audio/././././././././{row % NUM_FILES:011d}.flac\t{seconds * RATE}\t{RATE}\n"
            for row in range(rows)
        )


if __name__ == "__main__":
    main()
