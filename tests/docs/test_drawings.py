"""Drawings of the documentation: committed ones are current, and their numbers are the models'."""

from __future__ import annotations

import dataclasses
import re
from xml.etree import ElementTree

import pytest
import torch

from mae_ast.core.frontend.fbank import num_frames
from mae_ast.core.frontend.masking import MASK_TYPES, mask_strategy
from mae_ast.core.models.registry import SYSTEMS
from scripts.docs import draw_curves, draw_masks, draw_systems

SYSTEM_NAMES = list(draw_systems.DRAWINGS)


def shapes_in(svg: str) -> list[tuple[int, ...]]:
    texts = [element.text or "" for element in ElementTree.fromstring(svg).iter() if element.text]
    found = [match for text in texts for match in re.findall(r"\((1(?:, \d+)+)\)", text)]
    return [tuple(int(size) for size in match.split(", ")) for match in found]


@pytest.mark.parametrize("system", SYSTEM_NAMES)
def test_drawing_of_a_system_is_current(system):
    committed = (draw_systems.DRAWINGS_FOLDER / f"{system}.svg").read_text(encoding="utf-8")
    assert draw_systems.draw(system) == committed, "run: python -m scripts.docs.draw_systems"


@pytest.mark.parametrize("name", list(draw_masks.masks()))
def test_drawing_of_a_mask_is_current(name):
    committed = (draw_masks.DRAWINGS_FOLDER / f"mask_{name}.svg").read_text(encoding="utf-8")
    assert draw_masks.draw(name) == committed, "run: python -m scripts.docs.draw_masks"


def test_drawing_of_the_curves_is_current():
    committed = (draw_systems.DRAWINGS_FOLDER / "curves.svg").read_text(encoding="utf-8")
    assert draw_curves.draw() == committed, "run: python -m scripts.docs.draw_curves"


def test_every_mask_type_is_drawn():
    assert draw_masks.masks().keys() == {*MASK_TYPES, "structured"}


@pytest.mark.parametrize("system", SYSTEM_NAMES)
def test_shapes_are_those_of_the_model(system):
    """The preset's model at full width; one layer each, since depth changes no shape."""
    config, preset = draw_systems.preset_of(system)
    drawn = shapes_in(draw_systems.draw(system))
    depths = {key: 1 for key in ("encoder_layers", "decoder_layers") if hasattr(config, key)}
    model = SYSTEMS[system].network(dataclasses.replace(config, **depths)).eval()
    seen = []
    for part in ("encoder", "decoder"):
        if hasattr(model, part):
            getattr(model, part).register_forward_hook(
                lambda _, given, out: seen.extend((tuple(given[0].shape), tuple(out.shape)))
            )
    frames = num_frames(16_000 * draw_systems.CLIP_S)
    source = torch.zeros(1, frames, 128)
    if system == "ast":
        seen.append(tuple(model(source).shape))
    else:
        strategy = mask_strategy(preset["task"]["mask_type"], config.mask_length)
        mask = strategy(1, config.patch_shape.grid(frames), config.random_mask_prob)
        with torch.no_grad():
            prediction = model(source, None, mask)
        seen.extend((tuple(prediction.reconstruction.shape), tuple(prediction.target.shape)))
    assert set(seen) <= set(drawn), (seen, drawn)


def test_text_stands_on_filled_shapes():
    """No text on the transparent background, which is light or dark."""
    colours = {"#ffffff", draw_systems.LABEL, "#1b2430"}
    for system in SYSTEM_NAMES:
        root = ElementTree.fromstring(draw_systems.draw(system))
        for text in root.iter("{http://www.w3.org/2000/svg}text"):
            assert text.get("fill") in colours
            assert _covered(root, float(text.get("x")), float(text.get("y")))


def _covered(root: ElementTree.Element, x: float, y: float) -> bool:
    for box in root.iter("{http://www.w3.org/2000/svg}rect"):
        left, top = float(box.get("x")), float(box.get("y"))
        width, height = float(box.get("width")), float(box.get("height"))
        if left <= x <= left + width and top <= y <= top + height:
            return True
    return False
