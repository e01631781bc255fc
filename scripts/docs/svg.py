"""SVG elements of the documentation's drawings.

Backgrounds are transparent, and all text stands on filled shapes, so that a drawing can be read in
the light and in the dark colour scheme.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from html import escape

FONT = "font-family='DejaVu Sans, Verdana, sans-serif'"
LINE = "#8a94a3"
LABEL, LABEL_TEXT = "#e6ebf2", "#1b2430"
WHITE = "#ffffff"


@dataclass
class Canvas:
    """A drawing that grows by elements.

    Args:
        width: in user units.
        title: the drawing's accessible name.
    """

    width: float
    title: str
    elements: list[str] = field(default_factory=list)

    def box(
        self, x: float, y: float, width: float, height: float, fill: str, radius: float = 6
    ) -> None:
        """Draw a filled rectangle with round corners."""
        self.elements.append(
            f"<rect x='{x:g}' y='{y:g}' width='{width:g}' height='{height:g}' rx='{radius:g}' "
            f"fill='{fill}'/>"
        )

    def cells(self, corners: Sequence[tuple[float, float]], size: float, fill: str) -> None:
        """Draw many squares of one colour as one element, given their upper left corners."""
        squares = "".join(f"M{x:.4g} {y:.4g}h{size:g}v{size:g}h{-size:g}z" for x, y in corners)
        self.elements.append(f"<path d='{squares}' fill='{fill}'/>")

    def text(
        self, x: float, y: float, content: str, size: float, fill: str, bold: bool = False
    ) -> None:
        """Write a line of text, centred at x, its baseline at y."""
        weight = " font-weight='bold'" if bold else ""
        self.elements.append(
            f"<text x='{x:g}' y='{y:g}' font-size='{size:g}' fill='{fill}' text-anchor='middle'"
            f"{weight}>{escape(content)}</text>"
        )

    def label(self, x: float, y: float, content: str, size: float = 12.5) -> None:
        """Write a line of text on a light pill, both centred at (x, y)."""
        width = 0.64 * size * len(content) + 14
        self.box(x - width / 2, y - 0.8 * size, width, 1.6 * size, LABEL, 0.8 * size)
        self.text(x, y + 0.35 * size, content, size, LABEL_TEXT)

    def path(self, points: Sequence[tuple[float, float]], arrow: bool = True) -> None:
        """Draw a line through points, with an arrowhead at its end."""
        through = " ".join(f"{x:g},{y:g}" for x, y in points)
        head = " marker-end='url(#head)'" if arrow else ""
        self.elements.append(
            f"<polyline points='{through}' fill='none' stroke='{LINE}' stroke-width='2'{head}/>"
        )

    def line(self, points: Sequence[tuple[float, float]], colour: str, width: float) -> None:
        """Draw a line through points."""
        through = " ".join(f"{x:g},{y:g}" for x, y in points)
        self.elements.append(
            f"<polyline points='{through}' fill='none' stroke='{colour}' stroke-width='{width:g}'/>"
        )

    def render(self, height: float) -> str:
        """Return the whole drawing."""
        head = (
            "<defs><marker id='head' viewBox='0 0 8 8' refX='7' refY='4' markerWidth='8' "
            "markerHeight='8' markerUnits='userSpaceOnUse' orient='auto'>"
            f"<path d='M0,0 L8,4 L0,8 z' fill='{LINE}'/></marker></defs>"
        )
        size = f"width='{self.width:g}' height='{height:g}' viewBox='0 0 {self.width:g} {height:g}'"
        lines = [
            f"<svg xmlns='http://www.w3.org/2000/svg' {size} {FONT} role='img'>",
            f"<title>{escape(self.title)}</title>",
            head,
            *self.elements,
            "</svg>",
        ]
        return "\n".join(lines) + "\n"
