"""Draw what each kind of mask hides: ``python -m scripts.docs.draw_masks``.

Writes ``docs/drawings/mask_{name}.svg``: the patches of two clips of a batch, time from left to
right, mel upwards.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch

from mae_ast.core.frontend.fbank import num_frames
from mae_ast.core.frontend.masking import MASK_TYPES, MaskIds, structured_mask
from mae_ast.core.frontend.patches import PatchShape
from scripts.docs.draw_systems import CLIP_S, DRAWINGS_FOLDER, HIDDEN, VISIBLE
from scripts.docs.svg import LABEL, Canvas

PATCHES, FRAMES = PatchShape(16, 16), PatchShape(2, 128)
SAMPLES = 16_000 * CLIP_S
SPAN_S = 1.25  # of frame tokens, 50 a second
RATIO, DENSITY, SPAN_LENGTH = 0.75, 1.45, 10
DROPPED = 0.3  # columns and rows, as in the preset audio_mae_audioset
NUM_CLIPS, SEED = 2, 7
WIDTH = 640


def masks() -> dict[str, tuple[tuple[int, int], Callable[..., MaskIds]]]:
    """Return the grid and the drawing of each kind of mask."""
    patches = PATCHES.grid(num_frames(SAMPLES))
    frames = FRAMES.grid(num_frames(int(16_000 * SPAN_S)))
    strategies = {
        name: (patches, partial(strategy, ratio=RATIO))
        for name, strategy in MASK_TYPES.items()
        if name != "retain_spans"
    }
    spans = partial(MASK_TYPES["retain_spans"], density=DENSITY, span_length=SPAN_LENGTH)
    columns_and_rows = partial(structured_mask, ratio_time=DROPPED, ratio_mel=DROPPED)
    return {
        **strategies,
        "retain_spans": (frames, spans),
        "structured": (patches, columns_and_rows),
    }


def draw(name: str) -> str:
    """Return the drawing of a kind of mask as SVG."""
    grid, strategy = masks()[name]
    generator = torch.Generator().manual_seed(SEED)
    mask = strategy(NUM_CLIPS, grid, generator=generator)
    canvas = Canvas(WIDTH, f"{name}: visible and hidden patches of two clips")
    step = (WIDTH - 8) / grid[0]
    y = 4.0
    for visible in mask.visible_ids.tolist():
        canvas.box(0, y - 4, WIDTH, grid[1] * step + 8, LABEL, 4)
        corners = [
            (4 + column * step, y + (grid[1] - 1 - row) * step)
            for column in range(grid[0])
            for row in range(grid[1])
        ]
        canvas.cells(corners, round(step - 1, 2), HIDDEN)
        canvas.cells([corners[patch] for patch in visible], round(step - 1, 2), VISIBLE)
        y += grid[1] * step + 14
    return canvas.render(y - 6)


def main() -> None:
    """Write all drawings."""
    DRAWINGS_FOLDER.mkdir(exist_ok=True)
    for name in masks():
        (DRAWINGS_FOLDER / f"mask_{name}.svg").write_text(draw(name), encoding="utf-8")


if __name__ == "__main__":
    main()
