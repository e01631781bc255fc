"""Figures that are there are not worked out again; tables say what the figures are."""

from __future__ import annotations

import json

import pytest

from mae_ast.demo.kept import kept
from mae_ast.demo.report import report


@pytest.fixture
def calls():
    return []


def make(calls, value=1.5):
    def work():
        calls.append(value)
        return {"value": value}

    return work


def test_made_once(tmp_path, calls):
    path = tmp_path / "a.json"
    first = kept(path, {"updates": 3}, make(calls))
    again = kept(path, {"updates": 3}, make(calls, 2.5))
    assert first == again
    assert first["value"] == 1.5
    assert first["minutes"] >= 0
    assert calls == [1.5]


def test_made_anew_of_other_inputs_or_when_a_file_is_gone(tmp_path, calls):
    path, picture = tmp_path / "a.json", tmp_path / "a.png"
    picture.touch()
    kept(path, {"updates": 3}, make(calls), [picture])
    assert kept(path, {"updates": 4}, make(calls, 2.5), [picture])["value"] == 2.5
    picture.unlink()
    kept(path, {"updates": 4}, make(calls, 3.5), [picture])
    assert calls == [1.5, 2.5, 3.5]


def test_what_fails_leaves_no_figures(tmp_path):
    def fail():
        raise RuntimeError

    with pytest.raises(RuntimeError):
        kept(tmp_path / "a.json", {}, fail)
    assert list(tmp_path.iterdir()) == []


def test_tables():
    score = {"linear": 0.5, "neighbours": 0.25, "layer": 2, "strength": 0.1}
    summary = {"accuracy": 0.3125, "num_classes_seen": 35, "num_clips": 420}
    figures = {
        "pretraining": {
            **{
                "updates": 900,
                "in_one_go": True,
                "minutes": 4.56,
                "mse": 0.05517,
                "baseline_mse": 0.1756,
            },
            **{"accuracy": 0.451, "num_candidates": 36.0},
        },
        "probe": {
            "pretrained": {**score, "linear": 0.731},
            "random weights": {**score, "linear": 0.47},
            "mean log-mel": {**score, "layer": 0},
        },
        "finetuning": {
            "updates": 150,
            "pretrained": {**summary, "accuracy": 0.8},
            "random weights": summary,
        },
    }
    assert json.loads(json.dumps(figures)) == figures
    lines = report(figures).splitlines()
    assert lines == [
        "After 900 updates (4.6 min), on voices never heard:",
        "",
        "| hidden patches | this model | simple guess |",
        "| --- | --- | --- |",
        "| mean squared error | 0.0552 | 0.1756 (each mel bin's mean + the clip's offset) |",
        "| picked among 36 (InfoNCE accuracy) | 45.1% | 2.8% (chance) |",
        "",
        "35 words told apart, 420 clips of voices never heard (chance 2.9%):",
        "",
        "| accuracy | random weights | mean log-mel | pretrained |",
        "| --- | --- | --- | --- |",
        "| linear probe | 47.0% | 50.0% | 73.1% |",
        "| 10 nearest neighbours | 25.0% | 25.0% | 25.0% |",
        "| fine-tuned, 150 updates | 31.2% | - | 80.0% |",
    ]
