"""Tiny run of the whole demo: its results, and that complete phases are not run again."""

from __future__ import annotations

import contextlib
import dataclasses
import io
import json
import os
from pathlib import Path

import matplotlib.image
import pytest

import mae_ast
from mae_ast.core.checkpoints.reader import read_state
from mae_ast.core.io.manifest import Manifest
from mae_ast.evaluate import probe, report
from mae_ast.evaluate.probe import ProbeScore
from mae_ast.finetune.checkpoint import load_finetuned
from scripts.demo import corpus, evaluate, recognition, run, training
from scripts.demo.cache import Results

pytest.importorskip("espeakng_loader", reason="the demo's synthesiser is not installed")

UPDATES = {"updates": 3, "takes": 1, "finetuning_updates": 4}


@dataclasses.dataclass(frozen=True)
class Demo:
    folder: Path
    results: Results
    shown: str


@pytest.fixture(scope="module")
def demo(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(corpus, "WORDS", run.SHOWN_WORDS)
        patch.setenv("OMP_NUM_THREADS", os.environ.get("OMP_NUM_THREADS", "1"))
        folder, shown = tmp_path_factory.mktemp("demo"), io.StringIO()
        with contextlib.redirect_stderr(shown):
            results = run.run_demo(folder, **UPDATES)
        yield Demo(folder, results, shown.getvalue())


def test_each_phase_has_a_progress_bar(demo):
    for phase in ("speaking", "pretraining", "probe", "fine-tuning", "scoring"):
        assert phase in demo.shown


def test_results_are_written_as_json_and_as_a_table(demo):
    assert json.loads((demo.folder / "results.json").read_text()) == demo.results
    table = (demo.folder / "results.md").read_text()
    for value in (
        f"{demo.results['pretraining']['mse']:.4f}",
        f"{demo.results['probe']['mean log-mel']['linear']:.1%}",
        f"{demo.results['finetuning']['random weights']['accuracy']:.1%}",
        "fine-tuned, 4 updates",
        "After 3 updates",
    ):
        assert value in table


def test_pretraining_results_equal_an_evaluation_of_the_checkpoint(demo):
    model = mae_ast.load(demo.folder / "run" / "checkpoints" / "checkpoint_last.pt")
    sets = [Manifest.load(demo.folder / "corpus" / f"{name}.tsv") for name in ("train", "valid")]
    expected = dataclasses.asdict(evaluate.evaluate(model, *sets))
    assert expected == pytest.approx({name: demo.results["pretraining"][name] for name in expected})


@pytest.mark.parametrize("name", ["pretrained", "random weights"])
def test_finetuning_results_equal_an_evaluation_of_the_checkpoint(demo, name):
    classifier = load_finetuned(demo.folder / "finetuned" / name.replace(" ", "_"))
    found = report.evaluate(classifier, demo.folder / "corpus", "test")
    assert dataclasses.asdict(found.summary) == pytest.approx(demo.results["finetuning"][name])
    assert found.summary.num_clips == 4 * len(run.SHOWN_WORDS)


def test_both_finetuning_runs_differ_only_in_their_initial_weights(demo):
    settings = [
        read_state(demo.folder / "finetuned" / name / "checkpoints" / "checkpoint_last.pt")["cfg"]
        for name in ("pretrained", "random_weights")
    ]
    differ = {
        f"{part}.{key}"
        for part, values in settings[0].items()
        if isinstance(values, dict) and part != "job_logging_cfg"
        for key, value in values.items()
        if value != settings[1][part][key]
    }
    assert differ == {"model.checkpoint", "model.architecture_of", "model.layer_decay"}
    assert settings[0]["optimization"]["max_update"] == UPDATES["finetuning_updates"]


def test_confusion_matrix_is_plotted(demo):
    pixels = matplotlib.image.imread(recognition.confusion_plot(demo.folder / "finetuned"))
    assert min(pixels.shape[:2]) > 200
    assert pixels.std() > 0.01


def test_page_shows_the_three_runs(demo):
    page = (demo.folder / "report.html").read_text(encoding="utf-8")
    values = json.loads(page.partition('id="values">')[2].partition("</script>")[0])
    assert values["title"] == "mae-ast demo"
    assert values["runs"] == ["run", "pretrained", "random_weights"]
    assert values["notes"] == []
    assert (len(values["clips"]), len(values["embeddings"]), len(values["steps"])) == (4, 3, 3)
    assert [row[0] for row in values["evaluation"]["rows"]] == ["pretrained", "random_weights"]
    assert len(page) < 8_000_000


def test_probe_groups_clips_by_voice(demo):
    train = recognition._labelled(demo.folder / "corpus", "train")
    assert set(train.groups) == {
        voice.name for n, voice in enumerate(corpus.voices()) if corpus.split_of(n) == "train"
    }
    for row in (0, 17, 99):
        word, voice = train.manifest.row_path(row).split("_")[:2]
        assert (run.SHOWN_WORDS[train.targets[row]], voice) == (word, train.groups[row])


def test_complete_demo_runs_nothing_again(demo, monkeypatch):
    monkeypatch.setattr(training, "Trainings", None)
    monkeypatch.setattr(probe, "probe", None)
    monkeypatch.setattr(corpus, "ProcessPoolExecutor", None)
    monkeypatch.setattr(report, "evaluate", None)
    monkeypatch.setattr(run, "contents", None)
    assert run.run_demo(demo.folder, **UPDATES) == demo.results


def test_runs_only_the_missing_phase(demo, monkeypatch):
    monkeypatch.setattr(training, "Trainings", None)
    invented = {
        name: ProbeScore(0.5, 0.25, 2, 0.1, 24)
        for name in ("pretrained", "random weights", "mean log-mel")
    }
    monkeypatch.setattr(probe, "probe", lambda *args, **kwargs: invented)
    before = (demo.folder / "probe.json").read_bytes()
    (demo.folder / "probe.json").unlink()
    try:
        again = run.run_demo(demo.folder, **UPDATES)
    finally:
        (demo.folder / "probe.json").write_bytes(before)
    assert again["probe"]["pretrained"] == {"linear": 0.5, "knn": 0.25, "layer": 2}
    assert again["finetuning"] == demo.results["finetuning"]
    assert again["pretraining"] == demo.results["pretraining"]


def test_refuses_to_resume_with_another_corpus(demo):
    before = (demo.folder / "corpus" / "train.tsv").read_bytes()
    with pytest.raises(ValueError, match=r"run: was trained on another corpus.*--takes 2"):
        run.run_demo(demo.folder, **{**UPDATES, "takes": 2})
    assert (demo.folder / "corpus" / "train.tsv").read_bytes() == before
