"""Draw how each system works, with the shape at each arrow.

``python -m scripts.docs.draw_systems`` writes ``docs/drawings/{system}.svg``. Every number comes
from a preset's configuration, for one clip of 10 s.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mae_ast.core.frontend.fbank import NUM_MEL_BINS, num_frames
from mae_ast.core.frontend.input_norm import TARGET_STD
from mae_ast.core.frontend.masking import count_visible
from mae_ast.core.io.audio import SAMPLE_RATE
from mae_ast.core.models.config import WINDOW
from mae_ast.core.models.registry import SYSTEMS
from scripts.docs.presets import read_preset
from scripts.docs.svg import LABEL, WHITE, Canvas

DRAWINGS_FOLDER = Path(__file__).parents[2] / "docs" / "drawings"
PRESETS = {
    "mae_ast": "pretrain/mae_ast",
    "ssast": "pretrain/ssast_patch",
    "ast": "finetune/ast_audioset_balanced",
    "audio_mae": "pretrain/audio_mae",
}
CLIP_S = 10

WIDTH, CENTRE, BOX_WIDTH, LANE = 450, 165, 310, 388
SIDE = (BOX_WIDTH + 10) / 4  # from the centre to those of two boxes side by side
FIXED, LEARNED, LOSS = "#5b6b80", "#2f6db3", "#a3497a"
VISIBLE, HIDDEN, MASK_TOKEN, PREFIX = "#2f9e8f", "#9aa3ad", "#d08b2c", "#7a5bb5"
CELLS, CELL = 16, 14
ORDER = (3, 9, 4, 14, 0, 11, 6, 12, 1, 8, 15, 5, 2, 10, 7, 13)  # which cells of a strip are visible


@dataclass
class Flow:
    """A drawing from top to bottom: boxes, and arrows with the shape of what flows."""

    canvas: Canvas
    y: float = 8
    lane_from: float | None = None

    def source(self, text: str) -> None:
        """Begin with a label."""
        self.canvas.label(CENTRE, self.y + 10, text, 13.5)
        self.y += 20

    def arrow(self, shape: str, cells: list[str] | None = None) -> None:
        """Draw an arrow with a shape on it, and a strip of tokens above the shape."""
        height = 74 if cells else 52
        self.canvas.path([(CENTRE, self.y), (CENTRE, self.y + height)])
        if cells:
            self.strip(cells, self.y + 12)
        self.canvas.label(CENTRE, self.y + height - 28, shape)
        self.y += height

    def strip(self, cells: list[str], y: float) -> None:
        """Draw tokens as squares."""
        step = CELL + 3
        left = CENTRE - (len(cells) * step - 3) / 2
        self.canvas.box(left - 4, y - 4, len(cells) * step + 5, CELL + 8, LABEL, 4)
        for number, colour in enumerate(cells):
            self.canvas.box(left + number * step, y, CELL, CELL, colour, 2)

    def box(self, title: str, detail: str, fill: str) -> None:
        """Draw a step."""
        self._box(CENTRE, BOX_WIDTH, title, detail, fill)
        self.y += 46

    def boxes(self, pair: list[tuple[str, str]], fill: str) -> None:
        """Draw two steps side by side."""
        width = (BOX_WIDTH - 10) / 2
        for side, (title, detail) in zip((-1, 1), pair, strict=True):
            self._box(CENTRE + side * SIDE, width, title, detail, fill)
        self.y += 46

    def arrows(self, shapes: list[str]) -> None:
        """Draw two arrows side by side."""
        for side, shape in zip((-1, 1), shapes, strict=True):
            x = CENTRE + side * SIDE
            self.canvas.path([(x, self.y), (x, self.y + 52)])
            self.canvas.label(x, self.y + 24, shape, 12)
        self.y += 52

    def fork(self, shape: str) -> None:
        """Draw one arrow that ends in two."""
        self.canvas.path([(CENTRE, self.y), (CENTRE, self.y + 38)], arrow=False)
        for side in (-1, 1):
            x = CENTRE + side * SIDE
            self.canvas.path([(CENTRE, self.y + 38), (x, self.y + 38), (x, self.y + 54)])
        self.canvas.label(CENTRE, self.y + 18, shape)
        self.y += 54

    def open_lane(self, first: str, second: str) -> None:
        """Begin the lane of the targets, beside the box that was just drawn."""
        start = self.y - 23
        self.lane_from = start
        self.canvas.path([(CENTRE + BOX_WIDTH / 2, start), (LANE, start), (LANE, start + 30)])
        self.canvas.label(LANE, start + 42, first, 11.5)
        self.canvas.label(LANE, start + 64, second, 11.5)
        self.lane_from = start + 74

    def close_lane(self, to: tuple[float, ...] = (CENTRE,)) -> None:
        """End the lane below the boxes that were just drawn, whose centres are given."""
        if self.lane_from is not None:
            below = self.y + 22
            self.canvas.path([(LANE, self.lane_from), (LANE, below), (min(to), below)], False)
            for x in to:
                self.canvas.path([(x, below), (x, self.y)])
            self.y = below

    def _box(self, x: float, width: float, title: str, detail: str, fill: str) -> None:
        self.canvas.box(x - width / 2, self.y, width, 46, fill)
        self.canvas.text(x, self.y + 20, title, 14, WHITE, bold=True)
        self.canvas.text(x, self.y + 36, detail, 11.5, WHITE)


def preset_of(system: str) -> tuple[Any, dict[str, Any]]:
    """Return a system's configuration in its preset, and the preset."""
    preset = read_preset(PRESETS[system])
    return SYSTEMS[system].config.from_mapping(preset["model"]), preset


@dataclass(frozen=True)
class Sizes:
    """Sizes of one clip of 10 s on its way, for a configuration."""

    samples: int
    frames: int
    grid: tuple[int, int]
    num_patches: int
    patch_dim: int
    num_visible: int

    @classmethod
    def of(cls, config: Any) -> Sizes:
        """Compute them."""
        samples = CLIP_S * SAMPLE_RATE
        frames = config.input_frames or num_frames(samples)
        grid = config.patch_shape.grid(frames)
        total = grid[0] * grid[1]
        ratio = getattr(config, "random_mask_prob", 0.0)
        return cls(
            samples, frames, grid, total, config.patch_shape.dim, count_visible(total, ratio)
        )

    @property
    def num_masked(self) -> int:
        """Patches that are hidden."""
        return self.num_patches - self.num_visible


def _shape(*sizes: int) -> str:
    return "(1, " + ", ".join(f"{size}" for size in sizes) + ")"


def _cells(ratio: float) -> list[bool]:
    visible = set(ORDER[: max(1, round(CELLS * (1 - ratio)))])
    return [cell in visible for cell in range(CELLS)]


def _layers(config: Any, part: str) -> str:
    count, width = getattr(config, f"{part}_layers"), getattr(config, f"{part}_embed_dim")
    heads = getattr(config, f"{part}_attention_heads", None) or config.encoder_attention_heads
    return f"{count} layers, width {width}, {heads} heads"


def _to_patches(flow: Flow, config: Any, sizes: Sizes) -> None:
    """Draw what all systems begin with."""
    shape = config.patch_shape
    flow.source(f"waveform, {CLIP_S} s at 16 kHz")
    flow.arrow(_shape(sizes.samples))
    flow.box("Log-mel filterbank", f"{NUM_MEL_BINS} mel bins, 25 ms every 10 ms", FIXED)
    flow.arrow(_shape(num_frames(sizes.samples), NUM_MEL_BINS))
    padding = f"pad to {config.input_frames} frames, " if config.input_frames else ""
    flow.box("Normalise", f"{padding}mean 0, std {TARGET_STD:g}", FIXED)
    flow.arrow(_shape(sizes.frames, NUM_MEL_BINS))
    stride = f", every {shape.time_stride} x {shape.mel_stride}" if shape.overlaps else ""
    detail = f"{sizes.grid[0]} x {sizes.grid[1]} patches of {shape.time} x {shape.mel}{stride}"
    flow.box("Patches", detail, FIXED)
    flow.arrow(_shape(sizes.num_patches, sizes.patch_dim), [VISIBLE] * CELLS)


def _mask(flow: Flow, config: Any, preset: dict[str, Any], sizes: Sizes, targets: str) -> None:
    hidden = f"{preset['task']['mask_type']}, {100 * config.random_mask_prob:.3g} % hidden"
    flow.box("Mask", hidden, FIXED)
    flow.open_lane(targets, _shape(sizes.num_masked, sizes.patch_dim))


def _two_heads(flow: Flow, preset: dict[str, Any], sizes: Sizes, kind: str) -> None:
    weights = preset["criterion"]
    flow.boxes([("Reconstruct", kind), ("Classify", kind)], LEARNED)
    flow.arrows([_shape(sizes.num_masked, sizes.patch_dim)] * 2)
    flow.boxes(
        [
            ("MSE", f"weight {weights['reconstruction_weight']:g}"),
            ("InfoNCE", f"weight {weights['classification_weight']:g}"),
        ],
        LOSS,
    )
    flow.close_lane((CENTRE - SIDE, CENTRE + SIDE))


def draw_mae_ast(flow: Flow, config: Any, preset: dict[str, Any], sizes: Sizes) -> None:
    """MAE-AST: an encoder on visible patches, a shallow decoder."""
    _to_patches(flow, config, sizes)
    _mask(flow, config, preset, sizes, "hidden patches")
    cells = _cells(config.random_mask_prob)
    flow.arrow(_shape(sizes.num_visible, sizes.patch_dim), [VISIBLE] * sum(cells))
    flow.box("Linear + positions", "sinusoidal, of each patch's own place", LEARNED)
    flow.arrow(_shape(sizes.num_visible, config.encoder_embed_dim))
    flow.box("Encoder", _layers(config, "encoder"), LEARNED)
    flow.arrow(_shape(sizes.num_visible, config.encoder_embed_dim), [VISIBLE] * sum(cells))
    flow.box("Insert mask tokens + positions", "one learned token in each hidden place", LEARNED)
    both = [VISIBLE if seen else MASK_TOKEN for seen in cells]
    flow.arrow(_shape(sizes.num_patches, config.decoder_embed_dim), both)
    flow.box("Decoder", _layers(config, "decoder"), LEARNED)
    flow.fork(f"hidden places {_shape(sizes.num_masked, config.decoder_embed_dim)}")
    _two_heads(flow, preset, sizes, "linear")


def draw_ssast(flow: Flow, config: Any, preset: dict[str, Any], sizes: Sizes) -> None:
    """SSAST: one encoder on all tokens, mask tokens included."""
    _to_patches(flow, config, sizes)
    _mask(flow, config, preset, sizes, "hidden patches")
    cells = [VISIBLE if seen else HIDDEN for seen in _cells(config.random_mask_prob)]
    flow.arrow(_shape(sizes.num_patches, sizes.patch_dim), cells)
    flow.box("Linear", "the mask token replaces hidden ones", LEARNED)
    tokens = [VISIBLE if seen else MASK_TOKEN for seen in _cells(config.random_mask_prob)]
    flow.arrow(_shape(sizes.num_patches, config.encoder_embed_dim), tokens)
    flow.box(f"Prepend {config.prefix_tokens} tokens + positions", "both learned", LEARNED)
    num_tokens = sizes.num_patches + config.prefix_tokens
    tokens = [PREFIX] * config.prefix_tokens + tokens
    flow.arrow(_shape(num_tokens, config.encoder_embed_dim), tokens)
    flow.box("Encoder", _layers(config, "encoder"), LEARNED)
    flow.fork(f"hidden places {_shape(sizes.num_masked, config.encoder_embed_dim)}")
    _two_heads(flow, preset, sizes, "linear, ReLU, linear")


def draw_audio_mae(flow: Flow, config: Any, preset: dict[str, Any], sizes: Sizes) -> None:
    """Audio-MAE: an encoder on visible patches, a deep and narrow decoder with windows."""
    _to_patches(flow, config, sizes)
    _mask(flow, config, preset, sizes, "hidden patches")
    cells, width = _cells(config.random_mask_prob), config.encoder_embed_dim
    flow.arrow(_shape(sizes.num_visible, sizes.patch_dim), [VISIBLE] * sum(cells))
    flow.box("Linear + positions", "2-D sinusoidal; prepend CLS", LEARNED)
    visible = [PREFIX] * config.prefix_tokens + [VISIBLE] * sum(cells)
    flow.arrow(_shape(sizes.num_visible + config.prefix_tokens, width), visible)
    flow.box("Encoder", _layers(config, "encoder"), LEARNED)
    flow.arrow(_shape(sizes.num_visible + config.prefix_tokens, width), visible)
    detail = f"to width {config.decoder_embed_dim}; mask token, positions"
    flow.box("Linear, insert mask tokens", detail, LEARNED)
    both = [VISIBLE if seen else MASK_TOKEN for seen in cells]
    flow.arrow(_shape(sizes.num_patches, config.decoder_embed_dim), both)
    flow.box("Decoder", f"{_layers(config, 'decoder')}, {_windows(config)}", LEARNED)
    flow.arrow(f"hidden places {_shape(sizes.num_masked, config.decoder_embed_dim)}")
    flow.box("Linear", "reconstruct", LEARNED)
    flow.arrow(_shape(sizes.num_masked, sizes.patch_dim))
    targets = "targets: each patch normalised" if config.normalise_targets else "raw targets"
    flow.box("MSE", targets, LOSS)
    flow.close_lane()


def draw_ast(flow: Flow, config: Any, preset: dict[str, Any], sizes: Sizes) -> None:
    """AST: a classifier on overlapping patches."""
    _to_patches(flow, config, sizes)
    width = config.encoder_embed_dim
    flow.box("Linear", "a token for each patch", LEARNED)
    flow.arrow(_shape(sizes.num_patches, width), [VISIBLE] * CELLS)
    flow.box(f"Prepend {config.prefix_tokens} tokens + positions", "both learned", LEARNED)
    num_tokens = sizes.num_patches + config.prefix_tokens
    tokens = [PREFIX] * config.prefix_tokens + [VISIBLE] * CELLS
    flow.arrow(_shape(num_tokens, width), tokens)
    flow.box("Encoder", _layers(config, "encoder"), LEARNED)
    flow.arrow(f"{config.prefix_tokens} prefix tokens {_shape(config.prefix_tokens, width)}")
    flow.box("Mean", "of CLS and distillation token", FIXED)
    flow.arrow(_shape(width))
    flow.box("Layer norm, linear", f"{config.num_classes} classes (AudioSet)", LEARNED)
    flow.arrow(f"logits {_shape(config.num_classes)}")
    loss = "binary cross entropy" if preset["task"]["multi_label"] else "cross entropy"
    flow.box("Loss", loss, LOSS)


def _windows(config: Any) -> str:
    size = f"{WINDOW[0]} x {WINDOW[1]}"
    return f"{size} windows" if config.decoder_attention != "global" else "global"


DRAWINGS = {
    "mae_ast": ("MAE-AST", draw_mae_ast),
    "ssast": ("SSAST", draw_ssast),
    "ast": ("AST", draw_ast),
    "audio_mae": ("Audio-MAE", draw_audio_mae),
}


def draw(system: str) -> str:
    """Return the drawing of a system as SVG."""
    name, steps = DRAWINGS[system]
    config, preset = preset_of(system)
    canvas = Canvas(WIDTH, f"{name} with the shape of the data at each step, for a clip of 10 s")
    flow = Flow(canvas)
    steps(flow, config, preset, Sizes.of(config))
    return canvas.render(flow.y + 8)


def main() -> None:
    """Write all drawings."""
    DRAWINGS_FOLDER.mkdir(exist_ok=True)
    for system in DRAWINGS:
        (DRAWINGS_FOLDER / f"{system}.svg").write_text(draw(system), encoding="utf-8")


if __name__ == "__main__":
    main()
