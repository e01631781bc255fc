"""Measure the work per batch outside the model: masks and filterbank."""

from __future__ import annotations

import torch
from torchaudio.compliance import kaldi

from mae_ast.bench.setting import Case, Column, Part, Row, Setting
from mae_ast.bench.stopwatch import measure, summary
from mae_ast.core.frontend.collate import clip_generator
from mae_ast.core.frontend.fbank import NUM_MEL_BINS, fbank, num_frames
from mae_ast.core.frontend.masking import MASK_TYPES
from mae_ast.core.frontend.patches import PatchShape
from mae_ast.core.io.audio import SAMPLE_RATE

CLIP_S = 10
MASKED_CLIPS = 32


def mask_cases(setting: Setting) -> list[Case]:
    """Return cases for each strategy: a batch at once, and clip by clip as in the data set."""
    return [
        {"name": name, "way": way, "batch": MASKED_CLIPS}
        for name in MASK_TYPES
        for way in ("a batch at once", "clip by clip")
    ]


def measure_masks(case: Case, setting: Setting) -> Row:
    """Measure drawing the masks of a batch."""
    name, batch = case["name"], case["batch"]
    is_spans = name == "retain_spans"
    shape = PatchShape(2, 128) if is_spans else PatchShape(16, 16)
    grid = shape.grid(num_frames(CLIP_S * SAMPLE_RATE))
    ratio = 1.45 if is_spans else 0.75
    strategy = MASK_TYPES[name]

    def at_once() -> None:
        strategy(batch, grid, ratio, device=setting.device)

    def clip_by_clip() -> None:
        for clip in range(batch):
            strategy(1, grid, ratio, generator=clip_generator(1, 1, clip, 1))

    run = at_once if case["way"] == "a batch at once" else clip_by_clip
    taken = measure(run, setting.pick(cpu=1, gpu=1, quick=0.02))
    return {**case, **summary(taken), "ms_per_clip": 1000 * taken.median / batch}


def fbank_cases(setting: Setting) -> list[Case]:
    """Return cases for this package in batches, and for torchaudio clip by clip."""
    batch = int(setting.pick(cpu=16, gpu=256, quick=2))
    cases = [{"name": f"ours, {setting.device}", "way": setting.device, "batch": batch}]
    if setting.is_gpu:
        cases.append({"name": "ours, cpu", "way": "cpu", "batch": 16})
    return [*cases, {"name": "torchaudio, cpu, clip by clip", "way": "torchaudio", "batch": 4}]


def measure_fbank(case: Case, setting: Setting) -> Row:
    """Measure computing the log-mel spectrograms of a batch."""
    device = "cpu" if case["way"] == "torchaudio" else case["way"]
    length = round(setting.pick(cpu=CLIP_S, gpu=CLIP_S, quick=1) * SAMPLE_RATE)
    waveforms = torch.randint(-8000, 8000, (case["batch"], length), dtype=torch.int16)
    waveforms = waveforms.to(device)

    def ours() -> None:
        fbank(waveforms)

    def reference() -> None:
        for clip in waveforms:
            kaldi.fbank(
                clip[None].float() / 32768,
                num_mel_bins=NUM_MEL_BINS,
                use_energy=False,
                sample_frequency=SAMPLE_RATE,
            )

    run = reference if case["way"] == "torchaudio" else ours
    with torch.no_grad():
        taken = measure(run, setting.pick(cpu=2, gpu=1, quick=0.02))
    per_clip = taken.median / case["batch"]
    return {**case, **summary(taken), "ms_per_clip": 1000 * per_clip, "clips_per_s": 1 / per_clip}


MASKS = Part(
    "Masks",
    "Clips of 10 s, 75 % masked (spans: 76.5 %). The data set draws masks clip by clip, with one "
    "generator per clip.",
    mask_cases,
    measure_masks,
    (
        Column("", "name"),
        Column("method", "way"),
        Column("clips", "batch", "d"),
        Column("ms/batch", "median_s", ".2f", 1000),
        Column("ms/clip", "ms_per_clip", ".3f"),
    ),
    lambda setting: setting.pick(cpu=2, gpu=2, quick=0.1),
)
FBANK = Part(
    "Filterbank",
    "Log-mel spectrograms of clips of 10 s, from int16, 128 mel bins.",
    fbank_cases,
    measure_fbank,
    (
        Column("", "name"),
        Column("clips", "batch", "d"),
        Column("ms/clip", "ms_per_clip", ".3f"),
        Column("clips/s", "clips_per_s", ".0f"),
    ),
    lambda setting: setting.pick(cpu=3, gpu=2, quick=0.3),
)
