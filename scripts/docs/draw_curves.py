"""Draw the losses of a measured pretraining: ``python -m scripts.docs.draw_curves``.

Writes ``docs/drawings/curves.svg`` from a table in ``benchmarks/results``.
"""

from __future__ import annotations

import csv
from collections.abc import Sequence
from pathlib import Path

from scripts.docs.draw_systems import DRAWINGS_FOLDER, MASK_TOKEN, VISIBLE
from scripts.docs.svg import LABEL, LABEL_TEXT, Canvas

RESULTS = Path(__file__).parents[2] / "benchmarks" / "results"
TABLE = RESULTS / "demo_losses_amd-epyc-avx512bf16-2cores_2026-11-26.csv"
PANELS = (  # column, title, values on the axis
    ("mse", "mean squared error", (0.0, 0.1, 0.2, 0.3)),
    ("info_nce", "InfoNCE (nats)", (0.0, 2.0, 4.0, 6.0)),
    ("info_nce_accuracy", "InfoNCE accuracy", (0.0, 0.2, 0.4)),
)
UPDATES = (0, 500, 1000, 1500)
COLOURS = {"train": VISIBLE, "valid": MASK_TOKEN}
WIDTH, LEFT, RIGHT = 460, 52, 440
PANEL, PLOT, TOP = 176, 110, 34  # heights of a panel and its plot, and of what is above the plot


def draw() -> str:
    """Return the drawing as SVG."""
    with TABLE.open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    canvas = Canvas(WIDTH, "Losses and InfoNCE accuracy of the demo's pretraining over updates")
    for number, (column, title, ticks) in enumerate(PANELS):
        top = number * (PANEL + 8)
        canvas.box(0, top, WIDTH, PANEL, LABEL)
        canvas.text((LEFT + RIGHT) / 2, top + 20, title, 13, LABEL_TEXT, bold=True)
        _axes(canvas, top + TOP, ticks)
        for split, colour in COLOURS.items():
            points = [
                (float(row["update"]), float(row[column])) for row in rows if row["split"] == split
            ]
            placed = [(_x(update), _y(value, top + TOP, ticks)) for update, value in points]
            canvas.line(placed, colour, 2 if split == "train" else 2.5)
            if split == "valid":
                for x, y in placed:
                    canvas.box(x - 4, y - 4, 8, 8, colour, 4)
    _legend(canvas)
    return canvas.render(len(PANELS) * (PANEL + 8) - 8)


def _x(update: float) -> float:
    return round(LEFT + (RIGHT - LEFT) * update / UPDATES[-1], 1)


def _y(value: float, top: float, ticks: Sequence[float]) -> float:
    return round(top + PLOT * (1 - (value - ticks[0]) / (ticks[-1] * 1.12 - ticks[0])), 1)


def _axes(canvas: Canvas, top: float, ticks: Sequence[float]) -> None:
    for tick in ticks:
        y = _y(tick, top, ticks)
        canvas.line([(LEFT, y), (RIGHT, y)], "#c3ccd8", 1)
        canvas.text(LEFT - 22, y + 4, f"{tick:g}", 11.5, LABEL_TEXT)
    for update in UPDATES:
        canvas.text(
            _x(update) - (8 if update == UPDATES[-1] else 0),
            top + PLOT + 18,
            f"{update}",
            11.5,
            LABEL_TEXT,
        )


def _legend(canvas: Canvas) -> None:
    for number, split in enumerate(COLOURS):
        y = 50 + 18 * number
        canvas.line([(330, y), (352, y)], COLOURS[split], 3)
        canvas.text(
            394, y + 4, {"train": "training", "valid": "validation"}[split], 11.5, LABEL_TEXT
        )


def main() -> None:
    """Write the drawing."""
    (DRAWINGS_FOLDER / "curves.svg").write_text(draw(), encoding="utf-8")


if __name__ == "__main__":
    main()
