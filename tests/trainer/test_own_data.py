"""The preset for labelled data of one's own: all systems, and the command that resumes a run."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile

from mae_ast.core.io.settings_note import write_note
from mae_ast.core.models.registry import SYSTEMS
from mae_ast.finetune.checkpoint import load_finetuned
from mae_ast.finetune.settings_from_data import TrainingData, as_overrides, derive
from mae_ast.hub.load import hub_class, read_encoder
from mae_ast.trainer.child_training import Trainings
from tests.core.vits import FRAME_TOKENS

from .classification import PITCHES, finetune_here, tone, write_corpus

SMALL = {
    **{"encoder_layers": 1, "encoder_embed_dim": 64, "encoder_ffn_embed_dim": 96},
    **{"encoder_attention_heads": 1, "num_classes": 3, "input_stats": "fixed"},
    **{"decoder_layers": 1, "decoder_embed_dim": 32, "decoder_ffn_embed_dim": 32},
    **{"decoder_attention_heads": 2, "decoder_attention": "global"},
}
FIXED_LENGTH = ("ssast", "ast", "audio_mae")  # as published


@pytest.mark.parametrize("tokens", ["patch", "frame"])
@pytest.mark.parametrize("system", [name for name in SYSTEMS if name != "vit"])
def test_every_system_is_fine_tuned(
    train_here: Any,
    caplog: pytest.LogCaptureFixture,
    tones: Path,
    tmp_path: Path,
    system: str,
    tokens: str,
) -> None:
    frames = 1_024 if system in FIXED_LENGTH else None
    fields = SMALL | (FRAME_TOKENS if tokens == "frame" else {}) | {"input_frames": frames}
    source = tmp_path / "model"
    hub_class(system)(SYSTEMS[system].config.from_mapping(fields)).save_pretrained(source)
    given = (f"model.checkpoint={source}", "optimization.max_update=2", "dataset.batch_size=8")
    encoder, _ = read_encoder(source)
    found = derive(TrainingData.read(tones), encoder, given)
    log = finetune_here(caplog, "own", tones, *as_overrides(found, given), *given)
    assert len(log["train_inner"]) == 2
    assert float(log["train_inner"][-1]["loss"]) < 3
    assert "valid_accuracy" in log["valid"][-1]
    classifier = load_finetuned(tmp_path)
    assert classifier.description.encoder.input_frames == (frames and 48)
    assert classifier.description.clip_samples == found["task.max_sample_size"] < 8_000
    assert classifier.description.head.pool == "encoder"


def test_several_labels_are_learned(
    train_here: Any, caplog: pytest.LogCaptureFixture, pretrained: Path, tmp_path: Path
) -> None:
    folder = write_corpus(tmp_path / "data", multi_label=True)
    given = (
        f"model.checkpoint={pretrained}",
        "optimization.max_epoch=15",
        "dataset.validate_interval=100",
    )
    encoder, _ = read_encoder(pretrained)
    found = derive(TrainingData.read(folder), encoder, given)
    log = finetune_here(caplog, "own", folder, *as_overrides(found, given), *given)
    assert float(log["valid"][-1]["valid_mAP"]) > 0.7
    assert load_finetuned(tmp_path).description.multi_label


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch, mae_ast_command: Any, capsys: Any) -> Any:
    """``started(arguments) -> (command line, stderr, note)``, without starting it."""

    class StartedError(Exception):
        pass

    def execute(program: str, command: list[str]) -> None:
        raise StartedError(command)

    monkeypatch.setattr(os, "execv", execute)

    def run(*arguments: object) -> tuple[list[str], str, dict[str, Any]]:
        with pytest.raises(StartedError) as start:
            mae_ast_command(*arguments)
        _, note, _ = json.loads(os.environ.pop("MAE_AST_RUN_NOTE"))
        return start.value.args[0], capsys.readouterr().err, note

    return run


def test_finetune_needs_no_preset(
    started: Any, tones: Path, pretrained: Path, tmp_path: Path
) -> None:
    out = tmp_path / "my run"
    arguments = ("finetune", pretrained, tones, "--out", out, "optimization.max_epoch=7")
    command, said, note = started(*arguments, "dataset.num_workers=0")
    assert command[command.index("--config-name") + 1] == "own"
    from_data = as_overrides(note["from_data"], [])
    assert said == f"settings from the data (24 clips, 0.00 h, 3 classes): {' '.join(from_data)}\n"
    assert "dataset.batch_size=8" in from_data
    assert "optimization.max_update=21" in from_data
    begin = command.index(from_data[0])
    assert command[begin : begin + len(from_data)] == from_data
    assert command[-2:] == ["optimization.max_epoch=7", "dataset.num_workers=0"]

    # A run that resumes keeps its settings, whatever the rules are by then.
    recorded = {**note["from_data"], "optimization.max_update": 20}
    write_note(out / "begun_with.json", {**note, "from_data": recorded})
    (out / "checkpoints").mkdir()
    (out / "checkpoints" / "checkpoint_last.pt").touch()
    command, said, note = started(*arguments, "dataset.batch_size=4")
    assert note["from_data"] == recorded
    assert "optimization.max_update=20" in command
    assert [each for each in command if each.startswith("dataset.batch_size")] == [
        "dataset.batch_size=4"
    ]
    assert said.startswith("settings from the data (as at the start of the run): optimization.max")


def test_crossvalidate_uses_the_settings_of_each_fold(
    mae_ast_command: Any, pretrained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class StartedError(Exception):
        pass

    def start(self: Trainings, command: list[str], *rest: Any) -> None:
        raise StartedError(command)

    monkeypatch.setattr(Trainings, "run", start)
    data, out = tmp_path / "data", tmp_path / "out"
    for number in (1, 2):
        write_corpus(data / f"fold{number}")

    def first_command() -> list[str]:
        with pytest.raises(StartedError) as error:
            mae_ast_command("crossvalidate", pretrained, data, "--out", out, "task.mixup=0.5")
        command: list[str] = error.value.args[0]
        return command

    command = first_command()
    assert "optimization.max_update=300" in command
    assert command[-1] == "task.mixup=0.5"
    note = json.loads((out / "settings.json").read_text())
    assert note["from_data"].keys() == {"fold1", "fold2"}
    note["from_data"]["fold1"]["optimization.max_update"] = 7  # by other rules
    write_note(out / "settings.json", note)
    (out / "fold1" / "checkpoints").mkdir(parents=True)
    (out / "fold1" / "checkpoints" / "a.pt").touch()
    assert "optimization.max_update=7" in first_command()


@pytest.mark.parametrize("kind", ["folders", "table"])
def test_from_recordings_to_a_report(
    train_here: Any,
    mae_ast_command: Any,
    caplog: pytest.LogCaptureFixture,
    pretrained: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    kind: str,
) -> None:
    """Three commands, from class folders and from a table with segments of long recordings."""
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "my sounds"
    tones_of = [[tone([c], 0.4, 100 * c + n) for n in range(16)] for c in range(3)]
    folder.mkdir()
    if kind == "folders":
        for c, name in enumerate(PITCHES):
            (folder / name).mkdir()
            for n, samples in enumerate(tones_of[c]):
                soundfile.write(folder / name / f"{n}.wav", samples, 16_000)
        source = folder
    else:
        lines = ["path,label,start,end"]
        for n in range(16):
            recording = np.concatenate([each[n] for each in tones_of])
            soundfile.write(folder / f"{n}.flac", recording, 16_000)
            lines += [
                f"{n}.flac,{name},{0.4 * c:.1f},{0.4 * c + 0.4:.1f}"
                for c, name in enumerate(PITCHES)
            ]
        source = folder / "my sounds.csv"
        source.write_text("\n".join(lines) + "\n")
    run_command(mae_ast_command, "prepare", kind, source)
    data = tmp_path / "manifests" / "my sounds"
    given = (f"model.checkpoint={pretrained}", "optimization.max_epoch=20")
    given += ("dataset.validate_interval=100", "model.precision=float32")
    found = derive(TrainingData.read(data), read_encoder(pretrained)[0], given)
    finetune_here(caplog, "own", data, *as_overrides(found, given), *given)
    said = run_command(
        mae_ast_command, "evaluate", tmp_path, data, "--split", "test", "--out", "report"
    )
    assert "3 of 3 classes" in said
    summary = json.loads((tmp_path / "report" / "summary.json").read_text())
    assert summary["accuracy"] > 0.8
    assert (tmp_path / "report" / "confusion.png").exists()


def run_command(mae_ast_command: Any, *arguments: object) -> str:
    """Run a command that succeeds, and return its output."""
    output, message = mae_ast_command(*arguments)
    assert not message
    return str(output)
