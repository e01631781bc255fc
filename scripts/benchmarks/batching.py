"""Compare ways of making batches of clips of several lengths: audio trained on in an hour.

    python scripts/benchmarks/batching.py

A step consists of filterbank, forward, losses, backward and AdamW of MAE-AST (12 + 2 layers, width
768), without dropout. A batch holds at most 160 s of audio, padding included:

    packed             clips in random order, side by side in a row
    cropped by length  batches of clips of similar lengths, cropped to the shortest
    padded by length   the same, padded to the longest
    padded             clips in random order, padded to the longest of their batch

The clips are

    1 to 35 s          of lengths distributed evenly
    speech             as most of LibriSpeech: seven tenths of 10 to 16.5 s, the others of 1 to 35 s
    10 s               all of one length: what packing costs where nothing is to be gained

Each turn takes one batch of each way. Since batches differ, rates and ratios are of the sums over
all turns; the range in brackets is that of the turns.
"""

from __future__ import annotations

import argparse
import dataclasses
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from measuring import RESULTS, Report

from mae_ast.core.frontend.collate import Batch, Clip, Collater
from mae_ast.core.frontend.collate_rows import RowCollater
from mae_ast.core.frontend.fbank import num_frames
from mae_ast.core.frontend.rows import RowShape
from mae_ast.core.models.config import MaeAstConfig
from mae_ast.core.models.losses import info_nce_loss, reconstruction_loss
from mae_ast.core.models.mae_ast import MaeAst
from mae_ast.core.nn.malloc import keep_freed_memory
from mae_ast.data.pack_rows import pack_rows

RATE = 16_000
PACKED = "packed"
WAYS = (PACKED, "cropped by length", "padded by length", "padded")
PRECISIONS = ("float32", "bfloat16")
NUM_CLIPS = 4000
ONE_LENGTH = "10 s"


def draw_lengths() -> dict[str, np.ndarray]:
    """Draw the lengths of the clips of each kind, in samples at 16 kHz."""
    rng = np.random.default_rng(0)
    evenly = rng.uniform(1, 35, NUM_CLIPS)
    is_usual = rng.random(NUM_CLIPS) < 0.7
    speech = np.where(is_usual, rng.uniform(10, 16.5, NUM_CLIPS), evenly)
    seconds = {"1 to 35 s": evenly, "speech": speech, ONE_LENGTH: np.full(NUM_CLIPS, 10.0)}
    return {kind: (drawn * RATE).astype(int) for kind, drawn in seconds.items()}


def batches_of(
    way: str, config: MaeAstConfig, lengths: np.ndarray, budget: int
) -> Iterator[tuple[Batch, float]]:
    """Yield batches in random order, each with its seconds of audio."""
    rng = np.random.default_rng(1)
    collater = Collater(config, "chunk_mask", pad="padded" in way)
    collate: Collater | RowCollater = collater
    order = rng.permutation(len(lengths))
    if way == PACKED:
        shape = config.patch_shape
        steps = [shape.grid(num_frames(int(lengths[clip])))[0] for clip in order]
        capacity = num_frames(budget) // shape.time
        num_clips = round(2 * capacity / np.mean(steps))
        rows = pack_rows(steps, capacity, num_clips)
        collate = RowCollater(
            collater, RowShape(capacity, num_clips, shape, config.random_mask_prob)
        )
        batches = [order[row].tolist() for row in rows]
    else:
        if "by length" in way:
            order = order[np.argsort(-lengths[order], kind="stable")]
        batches = _by_size(order, lengths, budget)
    for index in rng.permutation(len(batches)):
        clips = [_clip(clip, int(lengths[clip])) for clip in batches[index]]
        batch = collate(clips)
        is_cropped = way.startswith("cropped")
        kept = batch.source.numel() if is_cropped else batch.num_samples
        yield batch, kept / RATE


def _by_size(order: np.ndarray, lengths: np.ndarray, budget: int) -> list[list[int]]:
    """Make batches of successive clips, the longest of which times their number is in budget."""
    batches: list[list[int]] = []
    longest = 0
    for clip in order.tolist():
        longest = max(longest, int(lengths[clip]))
        if not batches or (len(batches[-1]) + 1) * longest > budget:
            batches.append([])
            longest = int(lengths[clip])
        batches[-1].append(clip)
    return batches


def _clip(row: int, length: int) -> Clip:
    noise = np.random.default_rng(row).integers(-3000, 3000, length, dtype=np.int16)
    return Clip.of(row, torch.from_numpy(noise), seed=1, epoch=1)


def step(model: MaeAst, optimizer: torch.optim.Optimizer, batch: Batch) -> float:
    """Train on a batch and return the seconds that it took."""
    begin = time.perf_counter()
    out = model(batch.source, batch.lengths, batch.mask)
    assert out.reconstruction is not None
    assert out.classification is not None
    loss = 10 * reconstruction_loss(out.reconstruction, out.target, out.valid)
    loss = loss + info_nce_loss(out.classification, out.target, out.valid, out.ends).loss
    (loss / batch.num_masked).backward()
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    return time.perf_counter() - begin


def measure(
    precision: str, lengths: np.ndarray, ways: Sequence[str], budget: int, num_turns: int
) -> dict[str, np.ndarray]:
    """Return the audio and the time of each way's steps, (num_turns, 2) s, after a warm-up."""
    config = MaeAstConfig(dropout=0.0, attention_dropout=0.0, random_mask_prob=0.75)
    config = dataclasses.replace(config, precision=precision)
    torch.manual_seed(0)
    model = MaeAst(config).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, fused=True)
    sources = {way: batches_of(way, config, lengths, budget) for way in ways}
    steps: dict[str, list[tuple[float, float]]] = {way: [] for way in ways}
    for _ in range(1 + num_turns):
        for way, source in sources.items():
            batch, audio = next(source)
            steps[way].append((audio, step(model, optimizer, batch)))
    return {way: np.array(each[1:]) for way, each in steps.items()}


def _rate(audio_and_time: np.ndarray) -> np.ndarray:
    audio, seconds = audio_and_time
    return np.asarray(audio / seconds)


def main() -> None:
    """Compare the ways; print and write a table and JSON."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--turns", type=int, default=8, help="timed batches of each way")
    parser.add_argument("--budget", type=float, default=160, help="seconds of audio of a batch")
    parser.add_argument(
        "--results", type=Path, default=RESULTS, help="folder to write the result to"
    )
    arguments = parser.parse_args()
    keep_freed_memory()  # as training does on a CPU
    report = Report(
        "Ways of making batches, CPU",
        "MAE-AST, 12 + 2 layers of width 768, 16 x 16 patches, 75 % masked in chunks; filterbank, "
        f"forward, losses,\nbackward, AdamW; no dropout. {arguments.turns} batches of at most "
        f"{arguments.budget:g} s of each way, in turns; rates and\nratios are of the sums over all "
        "turns, in brackets the range of the turns. "
        "'speech': seven tenths of the clips of 10 to 16.5 s, the others of 1 to 35 s.",
    )
    results = []
    report.add(
        "| clips | precision | batches | hours of audio in an hour | packed relative to it |"
    )
    report.add("| --- | --- | --- | --- | --- |")
    for kind, lengths in draw_lengths().items():
        ways = WAYS[:2] if kind == ONE_LENGTH else WAYS
        for precision in PRECISIONS:
            budget = round(arguments.budget * RATE)
            steps = measure(precision, lengths, ways, budget, arguments.turns)
            packed_rate = _rate(steps[PACKED].sum(0))
            for way, each in steps.items():
                rate = _rate(each.sum(0))
                ratios = _rate(steps[PACKED].T) / _rate(each.T)
                ratio = f"{packed_rate / rate:.2f} ({ratios.min():.2f} to {ratios.max():.2f})"
                report.add(f"| {kind} | {precision} | {way} | {rate:.1f} | {ratio} |")
            raw = {way: each.round(3).tolist() for way, each in steps.items()}
            results.append({"clips": kind, "precision": precision, "audio and time (s)": raw})
    report.write("batching", arguments.results, results)


if __name__ == "__main__":
    main()
