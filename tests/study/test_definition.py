"""Studies are read from YAML, with one cell for each combination of values and seeds."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from mae_ast.study.definition import read_study, study_names
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
            "form": "difference",
        }
    ],
}

# Studies of the small model alone.
ON_REAL_RECORDINGS = "batching", "real"


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
        *("b=2", "common.seed=2"),
    )
    assert study.cells[-1].setting == "SSAST, 4"
    assert study.axes == {"system": ("MAE-AST", "SSAST"), "layers": ("2", "4")}


@pytest.mark.parametrize(
    ("name", "scale"),
    [
        *((name, "demo") for name in study_names()),
        *((name, "paper") for name in study_names() if name not in ON_REAL_RECORDINGS),
    ],
)
def test_studies_of_the_package_are_valid(name, scale):
    study = read_study(name, 3, scale)
    assert len(study.cells) == 3 * len({cell.setting for cell in study.cells})
    for cell in study.cells:
        find_preset(cell.config, "pretrain")
    for each in study.compare:
        for selection in (each.of, each.against):
            assert any(selection.items() <= cell.values.items() for cell in study.cells), each.claim


def test_values_that_omit_a_scale_have_no_cells_there(tmp_path):
    scales = {**STUDY["scale"], "paper": {"config": "mae_ast"}}
    axes = {**STUDY["axes"], "layers": {2: {"demo": ["a=2"]}, 4: {"paper": []}}}
    path = write(tmp_path, scale=scales, axes=axes, omit=[])
    demo, paper = (read_study(path, 1, scale) for scale in ("demo", "paper"))
    assert [cell.name for cell in demo.cells] == ["mae-ast-2-seed1", "ssast-2-seed1"]
    assert [cell.name for cell in paper.cells] == ["mae-ast-4-seed1"]
    assert demo.axes["layers"] == ("2",)


ONE_AXIS = {"axes": {"x": {"a": [], "b": ["k=1"]}}, "compare": [], "omit": []}
CLAIM = STUDY["compare"][0]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"axis": {}}, "axis: no such key; keys are title, finding, "),
        ({"axes": 3}, "axes: a mapping is needed"),
        ({"axes": {"x": [1]}, "omit": [], "compare": []}, "axes.x: a mapping of values is needed"),
        ({"axes": {"x": {}}, "omit": [], "compare": []}, "has no cells at scale=demo"),
        (ONE_AXIS | {"axes": {"x": {"a": 3}}}, "axes.x.a: a list of KEY=VALUE is needed"),
        (ONE_AXIS | {"axes": {"x": {"a": {"dem": []}}}}, "axes.x.a.dem: no such scale"),
        (ONE_AXIS | {"axes": {"x": {"a/b": [], "a b": ["k=1"]}}}, "two cells have the name a-b-"),
        (
            ONE_AXIS | {"axes": {"x": {"a": [], "b": []}}},
            "a-seed1 and b-seed1 have the same settings",
        ),
        (ONE_AXIS | {"axes": {"x": {"a" * 300: []}}}, "longer than 200 characters"),
        (ONE_AXIS | {"axes": {"x": {"a": ["lr"]}}}, "a: 'lr' is not KEY=VALUE"),
        (
            ONE_AXIS | {"axes": {"x": {"a": ["common.seed=1"]}}},
            "a: common.seed=1: the seeds are set",
        ),
        ({"tabulate": ["speed"]}, "measure 'speed': no such measure; they are "),
        ({"tabulate": "linear"}, "tabulate: a list is needed"),
        ({"title": None}, "title: a text is needed"),
        ({"updates_to": "much"}, "updates_to: a number is needed"),
        ({"paper": {"rows": []}}, "paper.source: is needed"),
        ({"scale": {"demo": {}}}, "scale.demo.config: is needed"),
        (
            {"scale": {"demo": {"config": "demo", "override": []}}},
            "scale.demo.override: no such key",
        ),
        ({"omit": ["x"]}, "omit: a mapping is needed"),
        ({"omit": [{"layer": 2}]}, "omit names layer: 2, which no cell has"),
        ({"omit": [{}]}, "omit: values of axes are needed"),
        ({"also": [{"where": {"layers": 2}}]}, "also[0].overrides: is needed"),
        ({"also": [{"where": {"layers": 3}, "overrides": []}]}, "also names layers: 3"),
        ({"compare": [{"claim": "x"}]}, "compare[0].against: is needed"),
        ({"compare": {"claim": "x"}}, "compare: a list is needed"),
        (
            {"compare": [CLAIM | {"of": {"layers": 6}}]},
            "compare names layers: 6, which no cell has",
        ),
        ({"compare": [CLAIM | {"of": {"system": "SSAST"}}]}, "other values of the same axes"),
        ({"compare": [CLAIM | {"form": "sum"}]}, "form: sum; must be one of ratio, difference"),
        ({"compare": [CLAIM | {"margn": 1}]}, "margn: no such key; keys are claim, "),
        ({"compare": [CLAIM | {"margin": "small"}]}, "margin: a number is needed"),
        (
            {"compare": [CLAIM | {"measure": "speed"}]},
            "measure 'speed': no such measure; they are ",
        ),
    ],
)
def test_invalid_studies_are_refused(tmp_path, changes, message):
    with pytest.raises(ValueError, match=r"depth\.yaml: ") as error:
        read_study(write(tmp_path, **changes), 1)
    assert message in str(error.value)


def test_invalid_overrides_are_refused(tmp_path):
    path = write(tmp_path)
    with pytest.raises(ValueError, match="'layers' is not KEY=VALUE"):
        read_study(path, 1, overrides=["layers"])
    with pytest.raises(ValueError, match=r"\+common\.seed=7: the seeds are set by --seeds"):
        read_study(path, 3, overrides=["+common.seed=7"])
    study = read_study(path, 1, overrides=["config=mae_ast", "~a"])
    assert {cell.config for cell in study.cells} == {"mae_ast"}
    assert study.cells[0].overrides == ("a=1", "model.encoder_layers=2", "~a", "common.seed=1")


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
