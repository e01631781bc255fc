"""Model cards state what was recorded and measured, and nothing else."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from huggingface_hub import ModelCard

import mae_ast
from mae_ast.core.checkpoints.reader import RUN_FILE
from mae_ast.core.checkpoints.training_record import training_record
from mae_ast.core.io.labels import Labels, write_clip_labels
from mae_ast.core.io.manifest import write_manifest
from mae_ast.core.models.classifier import HeadConfig
from mae_ast.hub.model_card import CardFacts, model_card, usage_in_transformers
from mae_ast.hub.scores import Score, read_report
from tests.sounds import speech_like
from tests.systems.cases import CASES, FIRST
from tests.systems.test_checkpoints import LABELS, finetuned_file

soundfile = pytest.importorskip("soundfile")

STATE = {
    "cfg": {
        "task": {"data": "/home/someone/secret/esc50/fold1", "max_sample_size": 80_000, "seed": 3},
        "optimization": {"lr": [1e-4]},
        "checkpoint": {"best_checkpoint_metric": "accuracy"},
        "dataset": {"valid_subset": "valid"},
    },
    "optimizer_history": [{"num_updates": 1_500}],
    "extra_state": {"val_loss": 0.8125},
}
RECORD = {
    "stage": "fine-tuning",
    "data": "esc50/fold1",
    "updates": 1_500,
    "learning_rate": 1e-4,
    "clip_samples": 80_000,
    "seed": 3,
    "validation": {"split": "valid", "metric": "accuracy", "value": 0.8125},
}


def finetuned_run(folder: Path, **state: Any) -> Path:
    """Write a run with a fine-tuned checkpoint."""
    finetuned_file(FIRST["mae_ast"], folder, HeadConfig(2))
    path = folder / RUN_FILE
    torch.save({**torch.load(path), **state}, path)
    return folder


def card_of(folder: Path) -> ModelCard:
    return ModelCard.load(folder / "README.md")


def scores_of(card: ModelCard) -> list[tuple[Any, ...]]:
    return [
        (each.dataset_name, each.dataset_split, each.metric_type, each.metric_value)
        for each in card.data.eval_results or ()
    ]


def test_training_is_recorded_without_the_path_of_the_data():
    assert training_record(STATE, "fine-tuning") == RECORD
    assert training_record({"model": {}}, "pretraining") == {}
    damaged = {"cfg": None, "optimizer_history": [], "extra_state": {"val_loss": float("nan")}}
    assert training_record(damaged, "pretraining") == {}
    for data, name in (("/a/b", "b"), (["/a/b", "/c/d"], "b, d")):
        assert training_record({"cfg": {"task": {"data": data}}}, "pretraining")["data"] == name


@pytest.mark.parametrize("kind", ["safetensors", "transformers"])
def test_card_states_training_and_validation(mae_ast_command, tmp_path, kind):
    run, out = finetuned_run(tmp_path / "run", **STATE), tmp_path / "out"
    for source in (run, out):  # the record is kept when the folder is converted again
        target = tmp_path / "again" if source is out else out
        _, message = mae_ast_command("convert", source, target, "--to", kind)
        assert not message
        card = card_of(target)
        assert "| data | esc50/fold1 |" in card.text
        assert "| updates | 1,500 |" in card.text
        assert "| esc50/fold1 | valid | accuracy | 0.8125 |" in card.text
        assert "someone" not in str(card)
        assert "The licence of the weights is not recorded." in card.text
        assert card.data.license is None
        assert "@inproceedings{baade2022maeast" in card.text
        is_classifier = kind == "transformers"
        assert card.data.library_name == ("transformers" if is_classifier else "mae-ast")
        expected = [("esc50/fold1", "valid", "accuracy", 0.8125)] if is_classifier else []
        assert scores_of(card) == expected
        assert ("Scores of the classifier" in card.text) != is_classifier


def test_card_says_what_is_not_recorded(mae_ast_command, tmp_path):
    run = finetuned_run(tmp_path / "run")
    _, message = mae_ast_command("convert", run, tmp_path / "out", "--to", "transformers")
    assert not message
    card = card_of(tmp_path / "out")
    assert "The checkpoint does not record the training of these weights." in card.text
    assert "No evaluation of these weights is recorded." in card.text
    assert card.data.to_dict().keys() == {"library_name", "pipeline_tag", "tags"}


def test_scores_of_a_report_and_licence_are_on_the_card(mae_ast_command, tmp_path):
    run, data = finetuned_run(tmp_path / "run"), tmp_path / "birds"
    data.mkdir()
    soundfile.write(data / "a.wav", speech_like(16_000).numpy(), 16_000)
    write_manifest(data / "test.tsv", ".", [("a.wav", 16_000, 16_000)] * 2)
    Labels(LABELS.mids, LABELS.names).write(data / "labels.csv")
    write_clip_labels(data / "test.lbl", [[LABELS.mids[0]], [LABELS.mids[1]]])
    report = run / "report"
    _, message = mae_ast_command("evaluate", run, data, "--split", "test", "--out", report)
    assert not message
    measured = {score.metric: score.value for score in read_report(report)}
    assert measured["accuracy"] == 0.5

    arguments = ("convert", run, tmp_path / "a", "--to", "transformers")
    _, message = mae_ast_command(*arguments, "--license", "cc-by-4.0")
    assert not message
    card = card_of(tmp_path / "a")
    assert ("birds", "test", "accuracy", 0.5) in scores_of(card)
    assert {metric for _, _, metric, _ in scores_of(card)} == set(measured)
    assert "| birds | test | accuracy | 0.5 |" in card.text
    assert card.data.license == "cc-by-4.0"
    assert "Weights: cc-by-4.0." in card.text

    # Reports of other checkpoints and of earlier weights are not of these.
    other = run / "checkpoints/checkpoint_best.pt"
    other.write_bytes((run / RUN_FILE).read_bytes())
    os.utime(other, (1, 1))
    mae_ast_command("convert", other, tmp_path / "other", "--to", "transformers")
    assert scores_of(card_of(tmp_path / "other")) == []
    os.utime(report / "summary.json", (1, 1))
    mae_ast_command("convert", run, tmp_path / "b", "--to", "transformers")
    assert scores_of(card_of(tmp_path / "b")) == []
    out = tmp_path / "c"
    mae_ast_command("convert", run, out, "--to", "safetensors", "--report", report)
    assert "| birds | test | accuracy | 0.5 |" in card_of(out).text


def test_names_with_separators_stay_whole():
    config = FIRST["mae_ast"].config()
    facts = CardFacts(config, 1, num_classes=2, labels=("Bird, singing", "a|b"))
    card = model_card(facts, "", scores=[Score("my|data", "", "mAP", 0.5)])
    assert "| classes | 2 (sigmoid): Bird, singing; a\\|b |" in card.text
    assert "| my\\|data | not recorded | mAP | 0.5 |" in card.text
    (result,) = card.data.eval_results
    assert (result.dataset_name, result.dataset_type) == ("my|data", "my_data")


def test_results_have_an_id_that_the_hub_accepts():
    facts = CardFacts(FIRST["mae_ast"].config(), 1, num_classes=2)
    for data in ("esc50/fold1", "Meine Vögel 2026"):
        (result,) = model_card(facts, "", scores=[Score(data, "", "mAP", 0)]).data.eval_results
        assert re.fullmatch(r"(?:[\w-]+/)?[\w.-]+", result.dataset_type, re.ASCII)


@pytest.mark.parametrize("text", ["CC BY 4.0", "MIT", "", "https://example.org"])
def test_licence_that_the_hub_would_refuse_is_refused(mae_ast_command, tmp_path, text):
    run = finetuned_run(tmp_path / "run")
    arguments = ("convert", run, tmp_path / "out", "--to", "transformers", "--license", text)
    _, message = mae_ast_command(*arguments)
    assert message == (
        f"mae-ast: error: licence {text!r}; must be an identifier of the Hugging Face hub, such "
        "as cc-by-4.0, or other"
    )
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("case", "said"),
    [
        ("mae_ast: patches", "mean over the patches"),
        ("ast: two", "mean over the prefix tokens"),
        ("audio_mae: fixed length", "Clips are cropped or zero-padded to 1.28 s."),
    ],
)
def test_card_of_an_encoder_says_how_clips_are_read_and_pooled(case, said):
    facts = CardFacts(CASES[case].config(), 1, encoder_only=True)
    usage = usage_in_transformers(facts)
    assert said in usage
    assert ("cropped" in usage) == ("fixed" in case)


def test_invalid_report_is_refused(mae_ast_command, tmp_path):
    run = finetuned_run(tmp_path / "run")
    arguments = ("convert", run, tmp_path / "out", "--report", tmp_path)
    _, message = mae_ast_command(*arguments, "--to", "transformers")
    assert "summary.json: no such file; 'mae-ast evaluate --out DIR' writes one" in message
    _, message = mae_ast_command(*arguments, "--to", "released")
    assert message.endswith("--report and --license: --to released writes no model card")
    (tmp_path / "summary.json").write_text('{"mean_auc": null}')
    _, message = mae_ast_command(*arguments, "--to", "safetensors")
    assert "summary.json: not a report of 'mae-ast evaluate'; it has none of accuracy" in message
    (tmp_path / "summary.json").write_text("[")
    _, message = mae_ast_command(*arguments, "--to", "safetensors")
    assert "summary.json: not valid JSON" in message
    assert not (tmp_path / "out").exists()


def test_licence_and_scores_of_a_pushed_model(tmp_path):
    model = mae_ast.load(finetuned_run(tmp_path / "run", **STATE))
    model.save_pretrained(tmp_path / "out", model_card_kwargs={"license": "mit"})
    card = card_of(tmp_path / "out")
    assert card.data.license == "mit"
    assert "model_hub_mixin" in card.data.tags
