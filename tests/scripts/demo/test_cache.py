"""Cache of the demo's results, and their tables."""

from __future__ import annotations

import json

import pytest

from scripts.demo.cache import cached
from scripts.demo.report import report


@pytest.fixture
def calls():
    return []


def compute(calls, value=1.5):
    def phase():
        calls.append(value)
        return {"value": value}

    return phase


def test_second_call_returns_the_cached_results(tmp_path, calls):
    path = tmp_path / "a.json"
    first = cached(path, {"updates": 3}, compute(calls))
    again = cached(path, {"updates": 3}, compute(calls, 2.5))
    assert first == again
    assert first["value"] == 1.5
    assert first["minutes"] >= 0
    assert calls == [1.5]


def test_recomputes_for_other_inputs_or_a_missing_file(tmp_path, calls):
    path, plot = tmp_path / "a.json", tmp_path / "a.png"
    plot.touch()
    cached(path, {"updates": 3}, compute(calls), [plot])
    assert cached(path, {"updates": 4}, compute(calls, 2.5), [plot])["value"] == 2.5
    plot.unlink()
    cached(path, {"updates": 4}, compute(calls, 3.5), [plot])
    assert calls == [1.5, 2.5, 3.5]


def test_recomputes_an_entry_of_an_older_format(tmp_path, calls):
    path = tmp_path / "a.json"
    path.write_text('{"made_of": {"updates": 3}, "values": {"value": 1.0, "minutes": 0.1}}')
    assert cached(path, {"updates": 3}, compute(calls))["value"] == 1.5
    assert set(json.loads(path.read_text())) == {"inputs", "results"}


def test_failed_computation_leaves_no_file(tmp_path):
    def fail():
        raise RuntimeError

    with pytest.raises(RuntimeError):
        cached(tmp_path / "a.json", {}, fail)
    assert list(tmp_path.iterdir()) == []


def test_tables():
    score = {"linear": 0.5, "knn": 0.25, "layer": 2}
    summary = {"accuracy": 0.3125, "num_classes_seen": 35, "num_clips": 420}
    results = {
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
    assert json.loads(json.dumps(results)) == results
    lines = report(results).splitlines()
    assert lines == [
        "After 900 updates (4.6 min), on held-out voices:",
        "",
        "| masked patches | this model | baseline |",
        "| --- | --- | --- |",
        "| mean squared error | 0.0552 | 0.1756 (each mel bin's mean + the clip's offset) |",
        "| InfoNCE accuracy among 36 patches | 45.1% | 2.8% (chance) |",
        "",
        "35-word classification, 420 clips of held-out voices (chance 2.9%):",
        "",
        "| accuracy | random weights | mean log-mel | pretrained |",
        "| --- | --- | --- | --- |",
        "| linear probe | 47.0% | 50.0% | 73.1% |",
        "| k-NN, k = 10 | 25.0% | 25.0% | 25.0% |",
        "| fine-tuned, 150 updates | 31.2% | - | 80.0% |",
    ]
