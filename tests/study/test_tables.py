"""Tables and comparisons of measured cells."""

from __future__ import annotations

import csv
import dataclasses

import pytest

from mae_ast.study.definition import Cell, Comparison, Study
from mae_ast.study.file import Paper
from mae_ast.study.runs import Outcome
from mae_ast.study.tables import Table, compare, markdown, measures_of, tabulated, write_csv

# Three seeds of each: update_s and words_linear.
MEASURED = {
    ("MAE-AST", "4"): [(0.10, 0.70), (0.11, 0.72), (0.105, 0.71)],
    ("SSAST", "4"): [(0.20, 0.66), (0.23, 0.71), (0.21, 0.68)],
    ("MAE-AST", "8"): [(0.20, 0.75), (0.20, 0.74), (0.20, 0.745)],
}


def comparison(
    measure: str, of: dict, against: dict, form: str, margin: float | None = None
) -> Comparison:
    return Comparison("a claim", measure, of, against, form, margin, "3 times")


FASTER = comparison("update_s", {"system": "MAE-AST"}, {"system": "SSAST"}, "ratio")
BETTER = comparison("words_linear", {"system": "MAE-AST"}, {"system": "SSAST"}, "difference")
SLOWER = comparison("update_s", {"layers": "8"}, {"layers": "4"}, "difference")
DEEPER = comparison("words_linear", {"layers": "8"}, {"layers": "4"}, "difference")
ORIGIN = {"command": "mae-ast study depth", "hardware": "a machine"}


@pytest.fixture
def outcomes() -> list[Outcome]:
    found = [
        Outcome(
            Cell({"system": system, "layers": layers}, seed, "demo", ()),
            {"update_s": update_s, "words_linear": linear},
        )
        for (system, layers), seeds in MEASURED.items()
        for seed, (update_s, linear) in enumerate(seeds, 1)
    ]
    failed = Cell({"system": "SSAST", "layers": "8"}, 1, "demo", ())
    return [*found, Outcome(failed, None, "training failed, see train.log")]


@pytest.fixture
def study(outcomes: list[Outcome]) -> Study:
    return Study(
        name="depth",
        title="Depth",
        finding="Deeper is better.",
        limits="It is small.",
        scale="demo",
        data="demo",
        axes={"system": ("MAE-AST", "SSAST"), "layers": ("4", "8")},
        cells=tuple(each.cell for each in outcomes),
        updates_to=None,
        tabulate=(),
        compare=(FASTER, BETTER, SLOWER, DEEPER),
        paper=Paper("a paper", [{"system": "SSAST", "ESC-50": 88.8}]),
    )


def test_comparisons_pair_cells_of_the_same_seed_and_other_values(study, outcomes):
    faster, better, slower, deeper = compare(study, outcomes)
    assert faster.values == pytest.approx((2.0, 0.23 / 0.11, 2.0))
    assert faster.verdict == "shown"
    assert better.values == pytest.approx((0.04, 0.01, 0.03))
    assert better.verdict == "shown"  # 0.027; scipy's one-sided bound is 0.0258 below
    assert slower.values == pytest.approx((0.10, 0.09, 0.095))
    assert slower.verdict == "reversed"
    assert deeper.values == pytest.approx((0.05, 0.02, 0.035))
    uneven = [each for each in outcomes if each.cell.seed == 1 or each.cell.values["layers"] == "8"]
    (only,) = compare(dataclasses.replace(study, compare=(BETTER,)), uneven)
    assert only.values == pytest.approx((0.04,))
    assert only.verdict == "one pair only"


def test_difference_within_its_error_is_not_shown(study, outcomes):
    outcomes[1].measures["words_linear"] = 0.68
    better = compare(study, outcomes)[1]
    assert better.values == pytest.approx((0.04, -0.03, 0.03))
    assert better.verdict == "not shown"


def test_measure_that_some_cells_lack_has_no_verdict(study, outcomes):
    del outcomes[1].measures["words_linear"]
    assert compare(study, outcomes)[1].verdict == "incomplete"
    assert "| MAE-AST | 4 | 3 | 105 ± 5 | 70.5 ± 0.7 (2 of 3) |" in markdown(
        study, outcomes, [], ORIGIN
    )
    none = [dataclasses.replace(each, measures={}) for each in outcomes]
    assert compare(study, none)[1].verdict == "not measured"


def test_ratio_says_how_many_times_better(study, outcomes):
    ratio = comparison("linear", {"system": "MAE-AST"}, {"system": "SSAST"}, "ratio")
    (found,) = compare(dataclasses.replace(study, compare=(ratio,)), outcomes)
    assert found.values == pytest.approx((0.70 / 0.66, 0.72 / 0.71, 0.71 / 0.68))
    outcomes[0].measures["update_s"] = 0.0
    assert compare(study, outcomes)[0].values == pytest.approx((0.23 / 0.11, 2.0))


def test_cells_are_not_worse_within_a_margin(study, outcomes):
    def verdict(margin: float, of: str, against: str) -> str:
        claim = comparison(
            "linear", {"system": of}, {"system": against}, "difference", margin
        )  # of each probe
        (found,) = compare(dataclasses.replace(study, compare=(claim,)), outcomes)
        assert found.measure == "words_linear"
        return found.verdict

    assert verdict(0.0, "MAE-AST", "SSAST") == "shown"
    assert verdict(0.06, "SSAST", "MAE-AST") == "shown"
    assert verdict(0.03, "SSAST", "MAE-AST") == "not shown"
    assert verdict(0.0, "SSAST", "MAE-AST") == "reversed"


def test_tables_and_plot_hold_the_measures_that_the_study_names(study, outcomes):
    some = dataclasses.replace(study, tabulate=("linear",))
    assert tabulated(some, outcomes) == ["words_linear"]
    assert tabulated(study, outcomes) == ["update_s", "words_linear"]
    text = markdown(some, outcomes, [], ORIGIN)
    assert "| system | layers | seeds | words, linear probe (%) |" in text
    outcomes[0].measures["other_linear"] = 0.5
    assert tabulated(some, outcomes) == ["words_linear", "other_linear"]


def test_tables_hold_means_stds_and_failed_cells(study, outcomes):
    text = markdown(study, outcomes, compare(study, outcomes), ORIGIN)
    assert "| MAE-AST | 4 | 3 | 105 ± 5 | 71.0 ± 1.0 |" in text
    assert "| SSAST | 8 | 0 | - | - |" in text
    assert "| a claim | update: 2.03 ± 0.05 times (3 pairs) | 3 times | shown |" in text
    assert (
        "| a claim | words, linear probe: +2.7 ± 1.5 points (3 pairs) | 3 times | shown |" in text
    )
    assert "| system | ESC-50 |" in text
    assert "- ssast-8-seed1: training failed, see train.log" in text
    assert "It is small." in text
    odd = Table("paper", "", ["a"], [["b|c"]])
    assert odd.markdown() == ["| a |", "| --- |", "| b\\|c |", ""]
    assert "| command | mae-ast study depth |" in text
    assert "Scale `demo`, 3 seeds: mean ± std." in text
    first = [each for each in outcomes if each.cell.seed == 1]
    assert "Scale `demo`, 1 seed: mean ± std." in markdown(study, first, [], {})


def test_csv_holds_all_cells(tmp_path, study, outcomes):
    assert measures_of(outcomes) == ["update_s", "words_linear"]
    write_csv(tmp_path / "cells.csv", study, outcomes)
    rows = list(csv.DictReader((tmp_path / "cells.csv").open()))
    assert len(rows) == 10
    assert rows[1] == {
        "system": "MAE-AST",
        "layers": "4",
        "seed": "2",
        "cell": "mae-ast-4-seed2",
        "update_s": "0.11",
        "words_linear": "0.72",
    }
    assert rows[-1]["update_s"] == ""
