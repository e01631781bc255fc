"""The page: its values, escaping, the command, and what Chromium makes of it."""

from __future__ import annotations

import json
import re
import shutil

import pytest

from mae_ast.report.collect import read_runs
from mae_ast.report.contents import Choices, contents
from mae_ast.report.page import SCRIPTS, page_of
from mae_ast.report.reconstructions import Excerpts

from .browser import PROGRAM, Browser
from .conftest import LABELS


@pytest.fixture(scope="module")
def page(run, write_run, tmp_path_factory, module_command):
    """Page of two runs, one of which is named like a script."""
    folder = tmp_path_factory.mktemp("page")
    other = write_run(folder / "<script>alert(1)<!--", model__decoder_layers=2)
    out = folder / "deep" / "report.html"
    said = module_command("report", run, other, "--out", out, "--clips", 2)
    assert re.search(r"report\.html: \d+kB$", said.strip())
    return out


@pytest.fixture(scope="module")
def module_command():
    """Run ``mae-ast`` in this process; return its output."""
    from typer.testing import CliRunner

    from mae_ast.cli.main import app

    def call(*arguments):
        done = CliRunner().invoke(app, [*map(str, arguments)], catch_exceptions=False)
        assert done.exit_code == 0, done.output
        return done.output

    return call


def values_of(path):
    text = path.read_text(encoding="utf-8")
    found = re.search(
        r'<script type="application/json" id="values">(.*?)</script>', text, re.DOTALL
    )
    return json.loads(found[1])


def test_page_is_self_contained_and_small(page):
    text = page.read_text(encoding="utf-8")
    assert len(text) < 1_000_000
    assert not re.search(r"(src|href)\s*=\s*[\"'](?!data:)", text)
    assert "default-src 'none'" in text
    assert re.findall(r"https?://[\w./]+", text) == ["http://www.w3.org/2000/svg"]  # a name of XML


def test_names_and_labels_are_not_read_as_html(page):
    text = page.read_text(encoding="utf-8")
    assert "alert(1)<!--" not in text
    assert text.count("<script") == text.count("</script>") == 2
    values = values_of(page)
    assert values["runs"] == ["tones", "<script>alert(1)<!--"]
    assert values["embeddings"][0]["labels"] == list(LABELS.names)


def test_values_that_look_like_parts_of_the_page_stay_values():
    page = page_of({"title": "{{script}} </title><script>"})
    assert page.count("<script") == 2
    assert "<title>{{script}} &lt;/title&gt;&lt;script&gt;</title>" in page


def test_many_runs_have_curves_but_the_first_ones_sound(run, tmp_path, monkeypatch):
    monkeypatch.setattr("mae_ast.report.contents.MAX_WITH_SOUND", 1)
    folders = [shutil.copytree(run, tmp_path / f"run{n}") for n in range(3)]
    values = contents(read_runs(folders), Choices("", Excerpts(1, 5.0), None, False, "cpu"))
    assert {series["run"] for series in values["panels"][0]["series"]} == {0, 1, 2}
    assert len(values["clips"][0]["runs"]) == len(values["embeddings"]) == 1
    assert values["title"] == "run0, run1, run2"
    assert values["notes"] == [
        ["", "reconstructions, embeddings and parts of a step: only of the first 1 of 3 runs"],
        ["", "parts of a step: not measured, because of --no-timing"],
    ]


def test_wrong_input_is_one_line(mae_ast_command, run, tmp_path):
    def error(*arguments):
        return mae_ast_command("report", *arguments)[1]

    assert error(tmp_path).endswith("neither metrics.jsonl nor checkpoints/")
    assert "a file whose name ends in .html" in error(run, "--out", tmp_path)
    assert "--seconds 0; a positive number" in error(run, "--seconds", 0)
    assert "--data missing: no such folder" in error(run, "--data", "missing")
    message = error(run, "--labels", tmp_path)
    assert message.endswith("has no labels.csv and no valid.tsv and no valid.lbl")


def test_scripts_are_listed_and_shipped():
    from importlib.resources import files

    found = {path.name for path in (files("mae_ast.report") / "page").iterdir()}
    assert found == {*SCRIPTS, "page.html", "page.css"}


# --- in a browser ---------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def browser(page, tmp_path_factory):
    if PROGRAM is None:
        pytest.skip("needs Chromium")
    with Browser(tmp_path_factory.mktemp("profile")) as opened:
        opened.open(page)
        yield opened


def center(browser, selector):
    box = f"document.querySelector('{selector}').getBoundingClientRect()"
    return browser.run(
        f"document.querySelector('{selector}').scrollIntoView({{block: 'center'}}); "
        f"[{box}.left + {box}.width / 2, {box}.top + {box}.height / 2, {box}.width]"
    )


def test_page_opens_without_errors_and_without_network(browser, page):
    sections = browser.run("[...document.querySelectorAll('section')].map((each) => each.id)")
    assert sections == [
        *("runs", "settings", "curves", "results", "reconstructions", "embeddings", "step")
    ]
    assert browser.run("document.querySelectorAll('canvas').length") == 2 * (1 + 2 * 2)
    assert browser.run("document.querySelector('.legend').textContent").endswith("alert(1)<!--")
    assert browser.errors == []
    assert browser.requests == [page.resolve().as_uri()]


def test_each_sound_of_a_reconstruction_plays_to_its_end(browser):
    buttons = "[...document.querySelectorAll('#reconstructions button[data-sound]')].slice(0, 4)"
    labels = browser.run(f"{buttons}.map((each) => each.textContent)")
    assert labels == ["▶ recording", "▶ after inversion", "▶ visible", "▶ rebuilt"]
    played = browser.run(
        f"""(async () => {{
          const times = [];
          for (const button of {buttons}) {{
            button.click();
            const audio = playing.audio;
            await new Promise((end) => {{ audio.onended = end; audio.onerror = end; }});
            times.push(audio.currentTime);
          }}
          return times;
        }})()"""
    )
    assert played == [pytest.approx(0.5, abs=0.03)] * 4
    assert browser.errors == []


def test_a_point_says_its_label_and_plays(browser):
    x, y, _ = center(browser, ".point:last-of-type")  # drawn over the others
    browser.mouse("mouseMoved", x, y)
    said = browser.run("document.querySelector('#embeddings .tip').textContent")
    assert said == f"{LABELS.names[1]}valid_23.wav"
    browser.mouse("mousePressed", x, y)
    browser.mouse("mouseReleased", x, y)
    assert browser.run("playing.audio !== null && document.querySelector('.playing') !== null")


def test_dragging_zooms_and_a_double_click_resets(browser):
    ticks = "[...document.querySelectorAll('.plot svg text')].map((each) => each.textContent)"
    before = browser.run(ticks)
    x, y, width = center(browser, ".plot svg")
    browser.mouse("mouseMoved", x, y)
    browser.mouse("mousePressed", x, y)
    browser.mouse("mouseMoved", x + width / 4, y)
    browser.mouse("mouseReleased", x + width / 4, y)
    zoomed = browser.run(ticks)
    assert zoomed != before
    assert before[0] == "10"
    assert int(zoomed[0]) > 18
    for count in (1, 2):
        browser.mouse("mousePressed", x, y, count)
        browser.mouse("mouseReleased", x, y, count)
    assert browser.run(ticks) == before


def test_runs_can_be_hidden(browser):
    curves = "document.querySelectorAll('.plot')[0].querySelectorAll('path.curve').length"
    toggle = "document.querySelectorAll('#curves .legend button')[{}].click()"
    shown = [browser.run(curves)]
    for number in (0, 1, 0, 1):
        browser.run(toggle.format(number))
        shown.append(browser.run(curves))
    assert shown == [4, 2, 0, 2, 4]
    assert browser.errors == []


def test_light_and_dark(browser):
    background = "getComputedStyle(document.body).backgroundColor"
    found = []
    for scheme in ("light", "dark"):
        browser.prefer(scheme)
        found.append(browser.run(background))
    assert found == ["rgb(246, 247, 249)", "rgb(20, 22, 26)"]
    browser.run("document.getElementById('theme').click()")
    assert browser.run(background) == found[0]
    assert browser.errors == []
