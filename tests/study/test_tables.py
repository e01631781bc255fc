"""Tables and comparisons of measured cells."""

from __future__ import annotations

import csv
import dataclasses

import pytest

from mae_ast.study.definition import Cell, Comparison, Study
from mae_ast.study.runs import Outcome
from mae_ast.study.tables import compare, markdown, measures_of, tabulated, write_csv

# Two seeds of each: update_s and words_linear.
MEASURED = {
    ("MAE-AST", "4"): [(0.10, 0.70), (0.11, 0.72)],
    ("SSAST", "4"): [(0.20, 0.66), (0.23, 0.71)],
    ("MAE-AST", "8"): [(0.20, 0.75), (0.20, 0.74)],
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
SAME = comparison("update_s", {"system": "SSAST"}, {"layers": "8"}, "ratio")


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
        paper={"source": "a paper", "rows": [{"system": "SSAST", "ESC-50": 88.8}]},
    )


def test_comparisons_pair_cells_of_the_same_seed_and_other_values(study, outcomes):
    faster, better, slower, deeper = compare(study, outcomes)
    assert faster.values == pytest.approx((2.0, 0.23 / 0.11))
    assert faster.verdict == "shown"
    assert better.values == pytest.approx((0.04, 0.01))
    assert better.verdict == "shown"
    assert slower.values == pytest.approx((0.10, 0.09))
    assert slower.verdict == "reversed"
    assert deeper.values == pytest.approx((0.05, 0.02))
    uneven = [each for each in outcomes if each.cell.seed == 1 or each.cell.values["layers"] == "8"]
    assert compare(study, uneven)[1].values == pytest.approx((0.04,))


def test_difference_within_its_spread_is_not_shown(study, outcomes):
    outcomes[1].measures["words_linear"] = 0.60
    better = compare(study, outcomes)[1]
    assert better.values == pytest.approx((0.04, -0.11))
    assert better.verdict == "not shown"


def test_cells_are_not_worse_within_a_margin(study, outcomes):
    def verdict(margin: float, of: str, against: str) -> str:
        claim = comparison(
            "linear", {"system": of}, {"system": against}, "difference", margin
        )  # of each probe; the pairs differ by 0.04 and 0.01
        (found,) = compare(dataclasses.replace(study, compare=(claim,)), outcomes)
        assert found.measure == "words_linear"
        return found.verdict

    assert verdict(0.0, "MAE-AST", "SSAST") == "shown"
    assert verdict(0.05, "SSAST", "MAE-AST") == "shown"
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


def test_tables_hold_means_deviations_and_what_failed(study, outcomes):
    text = markdown(study, outcomes, compare(study, outcomes), ORIGIN)
    assert "| MAE-AST | 4 | 2 | 105 ± 7 | 71.0 ± 1.4 |" in text
    assert "| SSAST | 8 | 0 | - | - |" in text
    assert "| a claim | update: 2.05 ± 0.06 times (2 pairs) | 3 times | shown |" in text
    assert (
        "| a claim | words, linear probe: +2.5 ± 2.1 points (2 pairs) | 3 times | shown |" in text
    )
    assert "| system | ESC-50 |" in text
    assert "- ssast-8-seed1: training failed, see train.log" in text
    assert "It is small." in text
    assert "| command | mae-ast study depth |" in text
    assert "Scale `demo`, 2 seeds: mean ± std." in text
    first = [each for each in outcomes if each.cell.seed == 1]
    assert "Scale `demo`, 1 seed: mean ± std." in markdown(study, first, [], {})


def test_csv_holds_all_cells(tmp_path, study, outcomes):
    assert measures_of(outcomes) == ["update_s", "words_linear"]
    write_csv(tmp_path / "cells.csv", study, outcomes)
    rows = list(csv.DictReader((tmp_path / "cells.csv").open()))
    assert len(rows) == 7
    assert rows[1] == {
        "system": "MAE-AST",
        "layers": "4",
        "seed": "2",
        "cell": "mae-ast-4-seed2",
        "update_s": "0.11",
        "words_linear": "0.72",
    }
    assert rows[-1]["update_s"] == ""
