"""A study on the page: its tables, the runs that stand for it, and the plot of its measures."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from mae_ast.report.studies import split_studies
from mae_ast.study.definition import Cell, Comparison, Study
from mae_ast.study.runs import Outcome
from mae_ast.study.summary import origin_of, write_summary
from mae_ast.study.tables import compare

from .browser import PROGRAM, Browser
from .test_page import center, values_of


@pytest.fixture
def study(run: Path, tmp_path: Path) -> Path:
    """Folder of a study: one setting with two trained seeds, one with a failed one."""
    cells = [
        Cell({"layers": "1"}, 1, "demo", ()),
        Cell({"layers": "1"}, 2, "demo", ()),
        Cell({"layers": "2 <b>"}, 1, "demo", ()),
        Cell({"layers": "2 <b>"}, 2, "demo", ()),
    ]
    claim = Comparison(
        claim="One is better",
        measure="words_linear",
        of={"layers": "1"},
        against={"layers": "2 <b>"},
        form="difference",
        margin=None,
        paper="yes",
    )
    found = Study(
        name="depth",
        title="Depth & width",
        finding="One layer suffices.",
        limits="It is small.",
        scale="demo",
        data="demo",
        axes={"layers": ("1", "2 <b>")},
        cells=tuple(cells),
        updates_to=None,
        tabulate=(),
        compare=(claim,),
        paper=None,
    )
    scores = (0.7, 0.8, 0.6)
    outcomes = [
        *(
            Outcome(cell, {"words_linear": score, "rank_me": 3.0})
            for cell, score in zip(cells, scores, strict=False)
        ),
        Outcome(cells[3], None, "training failed"),
    ]
    folder = tmp_path / "study"
    for cell in cells[:3]:
        shutil.copytree(run, folder / cell.name)
    origin = origin_of(folder, outcomes, ["mae-ast", "study", "my depth"])
    write_summary(folder / "study.json", found, outcomes, compare(found, outcomes), origin)
    return folder


def test_a_study_stands_for_the_first_run_of_each_setting(study: Path, run: Path) -> None:
    runs, summaries = split_studies([run, study])
    assert runs == [run, study / "1-seed1", study / "2-b-seed1"]
    (summary,) = summaries
    assert summary["measures"][0] == {
        "title": "words, linear probe (%)",
        "values": [[70.0, 80.0], [60.0]],
    }
    assert summary["tables"][-1]["rows"] == [
        ["command", "mae-ast study 'my depth'"],
        ["hardware", "a machine"],
        ["commit", "abc1234"],
        ["mae-ast", "not recorded"],
        ["date", "2026-11-26"],
    ]
    assert summary["failed"] == [["2-b-seed2", "training failed"]]
    assert summary["tables"][1]["rows"][0][-1] == "one pair only"


def test_damaged_and_failed_studies_are_refused(study: Path) -> None:
    path = study / "study.json"
    summary = json.loads(path.read_text())
    path.write_text(json.dumps({**summary, "runs": [[], []]}))
    with pytest.raises(ValueError, match=r"study\.json: none of the study's runs was trained"):
        split_studies([study])
    path.write_text("{}")
    with pytest.raises(ValueError, match="is no summary of a study"):
        split_studies([study])
    path.write_text('{"settings"')
    with pytest.raises(ValueError, match="is damaged"):
        split_studies([study])


def test_page_of_a_study(study: Path, tmp_path: Path, mae_ast_command) -> None:
    out = tmp_path / "report.html"
    mae_ast_command("report", study, "--out", out, "--clips", 1, "--no-timing")
    assert values_of(out)["title"] == "Depth & width"
    assert values_of(out)["runs"] == ["1-seed1", "2-b-seed1"]
    if PROGRAM is None:
        pytest.skip("needs Chromium")
    with Browser(tmp_path / "profile") as browser:
        browser.open(out)
        sections = browser.run("[...document.querySelectorAll('section')].map((each) => each.id)")
        assert sections[:2] == ["study", "runs"]
        text = browser.run("document.querySelector('#study').innerText")
        for part in (
            "One layer suffices.",
            "It is small.",
            "one pair only",
            "75.0 ± 7.1",
            "2-b-seed2",
        ):
            assert part in text
        assert browser.run("document.querySelectorAll('#study svg circle').length") == 2 * 3
        x, y, _ = center(browser, "#study .dots rect")
        browser.mouse("mouseMoved", x, y)
        assert browser.run("document.querySelector('#study .tip').textContent") == "170, 80"
        assert browser.errors == []
