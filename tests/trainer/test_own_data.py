"""The preset for labelled data of one's own: all systems, and the command that resumes a run."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest

from mae_ast.core.io.settings_note import write_note
from mae_ast.core.models.registry import SYSTEMS
from mae_ast.finetune.checkpoint import load_finetuned
from mae_ast.finetune.settings_from_data import TrainingData, as_overrides, derive
from mae_ast.hub.load import hub_class, read_encoder
from tests.core.vits import FRAME_TOKENS

from .classification import finetune_here, write_corpus

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
    given = (f"model.checkpoint={pretrained}", "optimization.max_epoch=15")
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
