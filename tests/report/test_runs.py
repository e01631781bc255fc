"""Runs of a report: reading their folders, settings that differ, curves, tables."""

from __future__ import annotations

import dataclasses
import shutil
from pathlib import Path

import pytest

from mae_ast.report import tables
from mae_ast.report.collect import read_run, read_runs, unique_names
from mae_ast.report.curves import max_points, panels, thinned
from mae_ast.report.settings import preset_of, settings_tables


def test_names_are_as_short_as_they_are_unique():
    paths = [Path("/x/a/run"), Path("/x/b/run")]
    assert unique_names(paths) == ["a/run", "b/run"]
    assert unique_names(paths[:1]) == ["run"]


def test_a_run_is_read(run, corpus):
    found = read_run(run, "tones")
    assert (found.num_updates, found.is_finetuned, found.data) == (40, False, (corpus,))
    assert len(found.starts) == 2
    assert found.notes == []


def test_a_run_on_several_folders_has_the_clips_of_all(write_run, corpus, tmp_path):
    other = shutil.copytree(corpus, tmp_path / "other")
    found = read_run(write_run(tmp_path / "run", task__data=[str(corpus), str(other)]), "run")
    assert found.data == (corpus, other)
    clips, single = found.load_manifest("valid_subset", "valid"), len(list(corpus.glob("valid_*")))
    assert len(clips) == 2 * single
    assert clips.audio_path(single).startswith(str(other))
    assert read_run(tmp_path / "run", "run", data=other).data == (other,)


def test_missing_parts_are_noted(run, tmp_path):
    copy = shutil.copytree(run, tmp_path / "run")
    (copy / "metrics.jsonl").unlink()
    (copy / "starts.jsonl").write_text('{"command": "cut o')
    (copy / "checkpoints" / "checkpoint_last.pt").write_bytes(b"PK damaged")
    found = read_run(copy, "run")
    curves_note, start_note, checkpoint_note = found.notes
    assert start_note.startswith("command, versions: ")
    assert curves_note.startswith("curves: ")
    assert "metrics.jsonl does not exist" in curves_note
    assert checkpoint_note.startswith("settings, reconstructions and embeddings: ")
    assert found.checkpoint is None


def test_a_classifier_without_an_evaluation_is_noted(write_run, tmp_path):
    folder = write_run(tmp_path / "run", task___name="mae_ast_classification")
    assert "mae-ast evaluate" in read_run(folder, "run").notes[0]
    (folder / "report").mkdir()
    (folder / "report" / "summary.json").write_text('{"accuracy": 0.5, "num_clips": 9}')
    found = read_run(folder, "run")
    assert found.notes == []
    assert tables.evaluation_table([found])["rows"] == [["run", "report", "", "0.5", "9"]]


def test_folders_that_are_no_runs_are_refused(run, corpus, tmp_path):
    with pytest.raises(FileNotFoundError, match="no such run folder"):
        read_runs([tmp_path / "missing"])
    with pytest.raises(ValueError, match=r"neither metrics\.jsonl nor checkpoints/"):
        read_runs([corpus])
    with pytest.raises(ValueError, match="is a file"):
        read_runs([run / "metrics.jsonl"])
    with pytest.raises(ValueError, match="given twice"):
        read_runs([run, run])


def test_settings_of_one_run_are_compared_with_its_preset(run):
    found = read_run(run, "tones")
    (table,) = settings_tables([found])
    rows = {key: values for key, *values in table["rows"]}
    assert table["columns"] == ["setting", "preset demo", "tones"]
    assert rows["optimization.max_update"] == ["1500", "40"]
    assert rows["model.decoder_layers"] == ["2", "1"]
    assert "optimization.lr" not in rows  # as in the preset
    assert "task.data" not in rows  # a preset has none
    assert "task.seed" not in rows  # the preset refers to another setting
    assert found.notes == []


@pytest.mark.parametrize("option", ["--config-name demo", "--config-name=demo"])
def test_preset_of_a_run_by_fairseq_is_in_its_command(run, option):
    start = {"command": f"fairseq-hydra-train --config-dir config {option} optimization.lr=[1]"}
    found = dataclasses.replace(read_run(run, "tones"), begun_with={}, starts=[start])
    assert preset_of(found) == "demo"
    assert preset_of(dataclasses.replace(found, starts=[])) is None


def test_settings_of_two_runs_are_those_that_differ(run, write_run, tmp_path):
    other = write_run(tmp_path / "other", model__decoder_layers=2, optimization__lr=[5e-4])
    (table,) = settings_tables(read_runs([run, other]))
    assert table["columns"] == ["setting", "tones", "other"]
    assert table["rows"] == [
        ["model.decoder_layers", "1", "2"],
        ["optimization.lr", "[0.0015]", "[0.0005]"],
    ]


def test_curves_have_training_validation_and_reference(run):
    found = {panel["title"]: panel["series"] for panel in panels([read_run(run, "tones")])}
    training, valid = found["loss"]
    assert (training["kind"], training["x"][:2], training["y"][:2]) == (
        "training",
        [1, 2],
        [8.9, 8.8],
    )
    assert (valid["label"], valid["x"], valid["y"]) == ("valid", [20, 40], [6.0, 4.0])
    probe, log_mel = found["linear probe, accuracy"]
    assert (probe["y"], log_mel["y"], log_mel["kind"]) == ([0.9], [0.7], "reference")
    assert "ups" in found  # a value of no group
    assert "layer" in found


def test_stages_have_panels_of_their_own(run, write_run, tmp_path):
    task = {"task___name": "mae_ast_classification"}
    other = write_run(tmp_path / "finetuned", **task)
    found = panels(read_runs([run, other]))
    losses = [panel for panel in found if panel["title"] == "loss"]
    assert [panel["group"] for panel in losses] == ["Losses, pretraining", "Losses, fine-tuning"]
    assert [{each["run"] for each in panel["series"]} for panel in losses] == [{0}, {1}]


def test_long_curves_are_averaged_in_groups():
    x, y = thinned([(n, float(n)) for n in range(1, 101)], 10)
    assert x == list(range(10, 101, 10))
    assert y == [5.5 + 10 * n for n in range(10)]


def test_many_runs_have_fewer_points_each():
    assert [max_points(runs) for runs in (1, 4, 8, 40, 1000)] == [1500, 1500, 750, 150, 150]


def test_tables_have_the_last_values(run):
    found = read_run(run, "tones")
    assert tables.validation_table([found]) == {
        "columns": ["run", "split", "updates", "loss", "mse"],
        "rows": [["tones", "valid", "40", "4", "0.2"]],
    }
    probe = tables.probe_table([found])
    assert dict(zip(probe["columns"], probe["rows"][0], strict=True)) == {
        "run": "tones",
        "updates": "40",
        "rank me": "3.5",
        "layer": "1",
        "linear accuracy": "0.9",
        "log mel linear accuracy": "0.7",
    }
    facts = dict(tables.facts([found])["rows"])
    assert facts["starts"] == "2 (resumed after update 20)"
    assert facts["begun"] == "2026-11-26 09:13 UTC"
    assert facts["command"].startswith("mae-ast pretrain")
    assert facts["versions"] == "torch 2.11.0"
