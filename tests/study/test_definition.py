"""Studies are read from YAML, with one cell for each combination of values and seeds."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from mae_ast.study.definition import read_study, study_names
from mae_ast.study.measure_names import measure_of
from mae_ast.trainer.command import find_preset

STUDY = {
    "title": "Depth",
    "finding": "Deeper is better.",
    "scale": {"demo": {"config": "demo", "data": "demo", "overrides": ["a=1"]}},
    "axes": {
        "system": {"MAE-AST": [], "SSAST": {"demo": ["network=demo_ssast"]}},
        "layers": {2: ["model.encoder_layers=2"], 4: ["model.encoder_layers=4", "config=mae_ast"]},
    },
    "omit": [{"system": "SSAST", "layers": 2}],
    "compare": [
        {
            "claim": "Depth helps",
            "measure": "words_linear",
            "of": {"layers": 4},
            "against": {"layers": 2},
            "as": "difference",
        }
    ],
}


def write(folder: Path, **changes: object) -> str:
    path = folder / "depth.yaml"
    path.write_text(yaml.safe_dump(STUDY | changes, sort_keys=False))
    return str(path)


def test_cells_combine_all_values_and_seeds_except_omitted_ones(tmp_path):
    study = read_study(write(tmp_path), 2, overrides=["b=2"])
    assert [(cell.name, cell.config) for cell in study.cells] == [
        ("mae-ast-2-seed1", "demo"),
        ("mae-ast-2-seed2", "demo"),
        ("mae-ast-4-seed1", "mae_ast"),
        ("mae-ast-4-seed2", "mae_ast"),
        ("ssast-4-seed1", "mae_ast"),
        ("ssast-4-seed2", "mae_ast"),
    ]
    assert study.cells[-1].overrides == (
        *("a=1", "network=demo_ssast", "model.encoder_layers=4"),
        *("common.seed=2", "b=2"),
    )
    assert study.cells[-1].setting == "SSAST, 4"
    assert study.axes == {"system": ("MAE-AST", "SSAST"), "layers": ("2", "4")}


@pytest.mark.parametrize("name", study_names())
@pytest.mark.parametrize("scale", ["demo", "paper"])
def test_studies_of_the_package_are_valid(name, scale):
    study = read_study(name, 3, scale)
    assert len(study.cells) == 3 * len({cell.setting for cell in study.cells})
    for cell in study.cells:
        find_preset(cell.config, "pretrain")
    assert study.compare
    for each in study.compare:
        measure_of(each.measure)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"axis": {}}, "axis: no such key; keys are title, finding, "),
        ({"axes": {}}, "axes: a mapping is needed"),
        ({"tabulate": ["speed"]}, "measure 'speed': no such measure; they are "),
        ({"title": 3}, "title: a text is needed"),
        (
            {"axes": {"x": {"a/b": [], "a b": []}}, "compare": []},
            "two cells have the name a-b-seed1",
        ),
        ({"axes": {"x": {"a": ["lr"]}}, "compare": []}, "overrides of a: 'lr' is not KEY=VALUE"),
        ({"compare": [{"claim": "x"}]}, "a comparison has no as"),
        (
            {"compare": [STUDY["compare"][0] | {"of": {"layers": 6}}]},
            "a comparison names layers: 6, which no cell has",
        ),
        ({"compare": [STUDY["compare"][0] | {"as": "sum"}]}, "as: sum; must be one of ratio, diff"),
        (
            {"compare": [STUDY["compare"][0] | {"measure": "speed"}]},
            "measure 'speed': no such measure; they are update_s, ",
        ),
    ],
)
def test_invalid_studies_are_refused(tmp_path, changes, message):
    with pytest.raises(ValueError, match=r"depth\.yaml: ") as error:
        read_study(write(tmp_path, **changes), 1)
    assert message in str(error.value)


def test_unknown_names_are_refused(tmp_path):
    with pytest.raises(ValueError, match="speed: no such study or file; studies are "):
        read_study("speed", 1)
    with pytest.raises(ValueError, match=r"speed\.yaml: no such file"):
        read_study("speed.yaml", 1)
    with pytest.raises(ValueError, match=r"scale=large: depth\.yaml has the scales demo"):
        read_study(write(tmp_path), 1, "large")
    (tmp_path / "depth.yaml").write_text("- a\n- b")
    with pytest.raises(ValueError, match="is not a study; a mapping"):
        read_study(str(tmp_path / "depth.yaml"), 1)
    (tmp_path / "depth.yaml").write_text("a: [")
    with pytest.raises(ValueError, match="is not YAML"):
        read_study(str(tmp_path / "depth.yaml"), 1)
