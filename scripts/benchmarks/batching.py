"""Compare ways of making batches of clips of 1 to 35 s: audio trained on in an hour.

    python scripts/benchmarks/batching.py

A step consists of filterbank, forward, losses, backward and AdamW of MAE-AST (12 + 2 layers, width
768), without dropout. A batch holds at most 60 s of audio, padding included:

    packed             clips in random order, side by side in a row
    cropped by length  batches of clips of similar lengths, cropped to the shortest
    padded by length   the same, padded to the longest
    padded             clips in random order, padded to the longest of their batch

Seven tenths of the clips are of 10 to 16.5 s, as most of LibriSpeech; the others of 1 to 35 s. With
``--seconds 10``, all clips are of 10 s: what packing costs where nothing is to be gained. Each
turn takes one batch of each way; ratios are taken within a turn.
"""

from __future__ import annotations

import argparse
import dataclasses
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from measuring import RESULTS, Report, ratios_of

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


def lengths_of_clips(seconds: float | None, rng: np.random.Generator) -> np.ndarray:
    """Draw the lengths of the clips in samples at 16 kHz."""
    if seconds is not None:
        return np.full(NUM_CLIPS, round(seconds * RATE))
    is_usual = rng.random(NUM_CLIPS) < 0.7
    drawn = np.where(is_usual, rng.uniform(10, 16.5, NUM_CLIPS), rng.uniform(1, 35, NUM_CLIPS))
    return (drawn * RATE).astype(int)


def batches_of(
    way: str, config: MaeAstConfig, lengths: np.ndarray, budget: int
) -> Iterator[tuple[Batch, float]]:
    """Yield batches in random order, each with its seconds of audio."""
    rng = np.random.default_rng(1)
    collate: Collater | RowCollater = Collater(config, "chunk_mask", pad="padded" in way)
    order = rng.permutation(len(lengths))
    if way == PACKED:
        shape = config.patch_shape
        steps = [shape.grid(num_frames(int(lengths[clip])))[0] for clip in order]
        capacity = num_frames(budget) // shape.time
        num_clips = round(2 * capacity / np.mean(steps))
        rows = pack_rows(steps, capacity, num_clips)
        collate = RowCollater(
            collate, RowShape(capacity, num_clips, shape, config.random_mask_prob)
        )
        batches = [order[row] for row in rows]
    else:
        if "by length" in way:
            order = order[np.argsort(-lengths[order], kind="stable")]
        batches = _by_size(order, lengths, budget)
    for index in rng.permutation(len(batches)):
        clips = [_clip(int(clip), int(lengths[clip])) for clip in batches[index]]
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


def main() -> None:
    """Compare the ways; print and write a table and JSON."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--turns", type=int, default=20, help="timed batches of each way")
    parser.add_argument("--budget", type=float, default=60, help="seconds of audio of a batch")
    parser.add_argument("--seconds", type=float, help="length of all clips; default: 1 to 35 s")
    parser.add_argument(
        "--results", type=Path, default=RESULTS, help="folder to write the result to"
    )
    arguments = parser.parse_args()
    keep_freed_memory()  # as training does on a CPU
    which = "1 to 35 s" if arguments.seconds is None else f"{arguments.seconds:g} s"
    report = Report(
        f"Ways of making batches of clips of {which}, CPU",
        "MAE-AST, 12 + 2 layers of width 768, 16 x 16 patches, 75 % masked in chunks; filterbank, "
        f"forward, losses,\nbackward, AdamW; no dropout. {arguments.turns} batches of at most "
        f"{arguments.budget:g} s of each way, in turns; ratios are taken\nwithin a turn.",
    )
    lengths = lengths_of_clips(arguments.seconds, np.random.default_rng(0))
    ways = WAYS if arguments.seconds is None else WAYS[:2]
    budget = round(arguments.budget * RATE)
    results = []
    report.add("| precision | batches | hours of audio in an hour | packed relative to it |")
    report.add("| --- | --- | --- | --- |")
    for precision in PRECISIONS:
        config = MaeAstConfig(dropout=0.0, attention_dropout=0.0, random_mask_prob=0.75)
        config = dataclasses.replace(config, precision=precision)
        torch.manual_seed(0)
        model = MaeAst(config).train()
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, fused=True)
        sources = {way: batches_of(way, config, lengths, budget) for way in ways}
        turns = []
        for turn in range(-1, arguments.turns):
            drawn = {way: next(source) for way, source in sources.items()}
            rates = {way: each[1] / step(model, optimizer, each[0]) for way, each in drawn.items()}
            if turn >= 0:  # the first is a warm-up
                turns.append(rates)
        for way in ways:
            median = float(np.median([rates[way] for rates in turns]))
            ratio = ratios_of(rates[PACKED] / rates[way] for rates in turns)
            report.add(f"| {precision} | {way} | {median:.1f} | {ratio} |")
        results.append({"precision": precision, "turns": turns})
    report.write(
        "batching" if arguments.seconds is None else "batching_one_length",
        arguments.results,
        results,
    )


if __name__ == "__main__":
    main()
