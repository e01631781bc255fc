"""Fine-tuning in this process: learning, resuming, checkpoints, evaluation and errors."""

from __future__ import annotations

import csv
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import torch
import typer
from typer.testing import CliRunner

import mae_ast
from mae_ast.cli import evaluate, predict
from mae_ast.core.checkpoints.reader import CheckpointError
from mae_ast.core.io.labels import LabelError, Labels
from mae_ast.evaluate import report
from mae_ast.finetune.checkpoint import load_finetuned
from mae_ast.trainer.presets import read_preset

from .classification import (
    FINETUNE_DIR,
    LABELS,
    TINY_AST,
    Log,
    finetune_here,
    tone,
    write_corpus,
    write_tiny_audio_mae,
    write_tiny_ssast,
)
from .conftest import write_manifest

Finetune = Callable[..., Log]


@pytest.fixture
def finetune(
    train_here: Any, pretrained: Path, caplog: pytest.LogCaptureFixture, tmp_path: Path
) -> Finetune:
    """``finetune(data, overrides)``: fine-tune with the demo preset; return the logged values."""

    def run(data: Path, *overrides: str, preset: str = "demo") -> Log:
        given = {o.partition("=")[0] for o in overrides}
        start = (
            []
            if given & {"model.architecture_of", "model.checkpoint"}
            else [f"model.checkpoint={pretrained}"]
        )
        return finetune_here(caplog, preset, data, *start, *overrides)

    return run


@pytest.fixture
def refusal(finetune: Finetune) -> Callable[..., str]:
    """``refusal(data, overrides)``: return the one-line error of a training that must not start."""

    def run(data: Path, *overrides: str) -> str:
        with pytest.raises(SystemExit) as error:
            finetune(data, "checkpoint.no_save=true", *overrides)
        text = str(error.value.code)
        assert text.startswith("mae-ast: error: ")
        assert "\n" not in text
        return text

    return run


def weights(path: Path) -> dict[str, torch.Tensor]:
    return torch.load(path, weights_only=True)["model"]


# --- learning -----------------------------------------------------------------------------------


SHORT = (
    *("optimization.max_update=40", "optimization.lr=[0.003]", "model.layer_decay=1"),
    *("task.freq_mask=0", "task.time_mask=0", "checkpoint.save_interval=1000"),
)


def test_learns_tones_from_random_weights(
    finetune: Finetune, tones: Path, pretrained: Path, tmp_path: Path
) -> None:
    log = finetune(tones, *SHORT, f"model.architecture_of={pretrained}")
    assert len(log["train_inner"]) == 40
    assert float(log["valid"][-1]["valid_accuracy"]) > 0.9
    trained, before = weights(tmp_path / "checkpoints/checkpoint_last.pt"), weights(pretrained)
    statistics = trained["encoder.batch_norm.running_mean"]
    assert torch.equal(statistics, before["batch_norm.running_mean"])
    # The checkpoint describes the classifier and its labels, and loads without fairseq.
    found = load_finetuned(tmp_path)
    assert found.labels == LABELS
    assert found.description.clip_samples == 8_000
    assert not found.description.independent


def test_learns_multi_label_classification(finetune: Finetune, tmp_path: Path) -> None:
    data = write_corpus(tmp_path / "data", multi_label=True)
    log = finetune(
        data,
        *(*SHORT, "optimization.max_update=60", "criterion.label_smoothing=0"),
        *("task.multi_label=true", "task.balanced=true"),
    )
    last = log["valid"][-1]
    assert float(last["valid_mAP"]) > 0.85
    assert float(last["valid_mAUC"]) > 0.8
    assert float(last["valid_d_prime"]) > 1
    assert "valid_accuracy" not in last
    assert load_finetuned(tmp_path).description.independent
    # By default the best checkpoint is chosen by mAP.
    saved = torch.load(tmp_path / "checkpoints/checkpoint_best.pt", weights_only=True)
    for section in ("checkpoint", "task"):
        assert saved["cfg"][section]["best_checkpoint_metric"] == "mAP"
    assert saved["cfg"]["checkpoint"]["maximize_best_checkpoint_metric"] is True


@pytest.mark.parametrize(
    ("preset", "multi_label", "metric", "independent"),
    [("esc50", True, "mAP", True), ("audioset", False, "accuracy", False)],
)
def test_multi_label_sets_metric_and_loss_in_any_preset(
    finetune: Finetune,
    tmp_path: Path,
    preset: str,
    multi_label: bool,
    metric: str,
    independent: bool,
) -> None:
    """Each preset is made for the other kind of labels; one key is enough to change that."""
    log = finetune(
        write_corpus(tmp_path / "data", multi_label),
        *("optimization.max_update=2", "dataset.validate_interval_updates=1"),
        "checkpoint.save_interval_updates=1",
        f"task.multi_label={str(multi_label).lower()}",
        preset=preset,
    )
    scores = [float(line[f"valid_{metric}"]) for line in log["valid"]]
    assert float(log["valid"][-1][f"valid_best_{metric}"]) == max(scores)
    assert load_finetuned(tmp_path).description.independent is independent


def test_validation_metrics_equal_those_of_the_loaded_classifier(
    finetune: Finetune, tones: Path, tmp_path: Path
) -> None:
    """Validation batches four whole clips; the loaded classifier scores each clip alone."""
    from mae_ast.core.io.audio import read_audio
    from mae_ast.core.io.manifest import Manifest

    log = finetune(
        tones,
        *("optimization.max_update=6", "optimization.lr=[0.003]"),
        *("dataset.batch_size_valid=4", "dataset.disable_validation=false"),
    )
    found = load_finetuned(tmp_path)
    manifest = Manifest.load(tones / "valid.tsv")
    lines = (tones / "valid.lbl").read_text().split()
    clips = [read_audio(manifest.audio_path(row)) for row in range(len(manifest))]
    scores = torch.cat([found.scores(clip[None]) for clip in clips])
    targets = torch.tensor([LABELS.index(line) for line in lines])
    loss = torch.nn.functional.nll_loss(scores.log(), targets)
    accuracy = (scores.argmax(1) == targets).float().mean()
    assert float(log["valid"][-1]["valid_accuracy"]) == pytest.approx(float(accuracy), abs=1e-4)
    assert float(log["valid"][-1]["valid_loss"]) == pytest.approx(float(loss), abs=2e-3)


def test_validation_scores_whole_clips_in_windows(
    finetune: Finetune, tones: Path, tmp_path: Path
) -> None:
    """The clips begin with 0.4 s of noise, longer than the encoder's input of 0.32 s."""
    from mae_ast.core.io.audio import read_audio

    data = tmp_path / "late"
    shutil.copytree(tones, data)
    paths = sorted(data.glob("valid_*.flac"))
    for path in paths:
        late = np.concatenate((tone([], 0.4, 0), soundfile.read(path, dtype="int16")[0]))
        soundfile.write(path, late, 16_000)
    rows = [(path.name, soundfile.info(path).frames, 16_000) for path in paths]
    write_manifest(data / "valid.tsv", rows)
    log = finetune(
        data,
        *(f"model.checkpoint={write_tiny_ssast(tmp_path / 'ssast.pth')}", "model.input_frames=32"),
        *("optimization.max_update=30", "optimization.lr=[0.002]", "dataset.batch_size_valid=4"),
        preset="ssast_esc50",
    )
    found = load_finetuned(tmp_path)
    clips = [read_audio(path)[None] for path in paths]
    targets = torch.tensor(
        [LABELS.index(line) for line in (data / "valid.lbl").read_text().split()]
    )
    whole = torch.cat([found.scores(clip) for clip in clips])
    loss = torch.nn.functional.nll_loss(whole.log(), targets)
    assert float(log["valid"][-1]["valid_loss"]) == pytest.approx(float(loss), abs=2e-3)
    with torch.no_grad():
        first_window = torch.cat([found.model(clip) for clip in clips])
    assert abs(torch.nn.functional.cross_entropy(first_window, targets) - loss) > 0.05


def test_freeze_encoder_keeps_its_weights(
    finetune: Finetune, tones: Path, pretrained: Path, tmp_path: Path
) -> None:
    finetune(tones, "optimization.max_update=3", "model.freeze_encoder=true", "model.dropout=0.1")
    trained = weights(tmp_path / "checkpoints" / "checkpoint_last.pt")
    before = weights(pretrained)
    for name, value in trained.items():
        if name.startswith("encoder."):
            assert torch.equal(value, before[name.removeprefix("encoder.")]), name
    assert trained["head.2.weight"].std() > 0


def test_input_statistics_stay_fixed(
    finetune: Finetune, tones: Path, pretrained: Path, tmp_path: Path
) -> None:
    finetune(tones, "optimization.max_update=3")
    trained = weights(tmp_path / "checkpoints" / "checkpoint_last.pt")
    before = weights(pretrained)
    for name in ("running_mean", "running_var", "num_batches_tracked"):
        assert torch.equal(trained[f"encoder.batch_norm.{name}"], before[f"batch_norm.{name}"])
    moved = trained["encoder.encoder.layers.0.fc1.weight"] - before["encoder.layers.0.fc1.weight"]
    assert moved.abs().max() > 0

    finetune(
        tones,
        *("optimization.max_update=1", "checkpoint.save_dir=own"),
        *("model.input_mean=-4.5", "model.input_std=3.0"),
    )
    own = weights(tmp_path / "own" / "checkpoint_last.pt")
    assert own["encoder.batch_norm.running_mean"].item() == -4.5
    assert own["encoder.batch_norm.running_var"].item() == 9.0


@pytest.mark.usefixtures("fp16_without_a_gpu")
@pytest.mark.parametrize("half", [(), ("common.bf16=true",), ("common.fp16=true",)])
def test_layer_decay_scales_learning_rates(
    finetune: Finetune, tones: Path, pretrained: Path, tmp_path: Path, half: tuple[str, ...]
) -> None:
    """Adam's first step changes each weight by its learning rate; biases start at 0."""
    finetune(
        tones,
        *half,
        *("optimization.max_update=1", "optimization.lr=[0.001]", "optimization.clip_norm=0"),
        *("model.layer_decay=0.1", "optimizer.weight_decay=0", "model.head_lr_scale=10"),
    )
    trained = weights(tmp_path / "checkpoints" / "checkpoint_last.pt")
    before = weights(pretrained)

    def moved(name: str) -> float:
        assert not before[name].any()
        return float(trained[f"encoder.{name}"].abs().max())

    assert moved("encoder.layers.1.fc2.bias") == pytest.approx(1e-4, rel=0.02)
    assert moved("encoder.layers.0.fc2.bias") == pytest.approx(1e-5, rel=0.1)
    assert moved("post_extract_proj.bias") == pytest.approx(1e-6, rel=0.3)
    # The bias of the head's layer norm, which starts at 0.
    assert trained["head.0.bias"].abs().max().item() == pytest.approx(1e-2, rel=0.02)


# --- resuming -----------------------------------------------------------------------------------


def test_resumes_bit_exactly_within_an_epoch(
    finetune: Finetune, tones: Path, tmp_path: Path
) -> None:
    settings = (
        *("task.mixup=0.5", "task.freq_mask=20", "task.time_mask=10", "task.shift_samples=800"),
        *("task.noise_snr_db=20", "task.balanced=true", "task.max_sample_size=5000"),
        *("model.dropout=0.1", "dataset.validate_interval=1"),
        # An epoch has three updates, so the checkpoint is saved within one, after validations.
        # The learning rate has a fixed period, so it does not depend on max_update.
        *("optimization.max_update=8", "lr_scheduler.lr_period_updates=20"),
    )
    whole = finetune(tones, *settings, "checkpoint.save_dir=whole")["train_inner"]
    finetune(tones, *settings, "checkpoint.save_dir=parts", "optimization.max_update=5")
    log = finetune(tones, *settings, "checkpoint.save_dir=parts")
    assert [valid["valid_num_updates"] for valid in log["valid"]] == ["6", "8"]
    assert all(0 <= float(valid["valid_accuracy"]) <= 1 for valid in log["valid"])
    rest = log["train_inner"]
    assert [update["num_updates"] for update in rest] == ["6", "7", "8"]
    for key in ("loss", "gnorm", "lr", "accuracy"):
        assert [update[key] for update in rest] == [update[key] for update in whole[5:]], key
    one, other = (weights(tmp_path / d / "checkpoint_last.pt") for d in ("whole", "parts"))
    assert all(torch.equal(value, other[name]) for name, value in one.items())


def test_averages_the_last_epoch_checkpoints(
    finetune: Finetune, tones: Path, tmp_path: Path
) -> None:
    finetune(
        tones,
        *("optimization.max_update=9", "checkpoint.no_epoch_checkpoints=false"),
        "dataset.disable_validation=true",
    )
    files = [tmp_path / "checkpoints" / f"checkpoint{epoch}.pt" for epoch in (2, 3)]
    found = load_finetuned(tmp_path, num_averaged=2).model.state_dict()
    second, third = map(weights, files)
    for name, value in found.items():
        if value.is_floating_point():
            torch.testing.assert_close(value, (second[name] + third[name]) / 2)
    with pytest.raises(ValueError, match=r"--average 7: .* has 3 epoch checkpoint"):
        load_finetuned(tmp_path, num_averaged=7)


# --- evaluation ---------------------------------------------------------------------------------


def test_fine_tune_evaluate_and_predict(finetune: Finetune, tones: Path, tmp_path: Path) -> None:
    log = finetune(tones, *SHORT, "checkpoint.save_dir=run/checkpoints")
    assert float(log["valid"][-1]["valid_accuracy"]) > 0.9
    app = typer.Typer()
    app.command("evaluate")(evaluate.evaluate)
    app.command("predict")(predict.predict)
    run, out = tmp_path / "run", tmp_path / "report"
    done = CliRunner().invoke(app, ["evaluate", str(run), str(tones), "--out", str(out)])
    assert done.exit_code == 0, done.output
    assert "9 clips, 3 of 3 classes" in done.output
    summary = json.loads((out / "summary.json").read_text())
    assert summary["accuracy"] == pytest.approx(float(log["valid"][-1]["valid_accuracy"]), abs=1e-4)
    with (out / "classes.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["display_name"] for row in rows] == list(LABELS.names)
    assert [row["clips"] for row in rows] == ["3", "3", "3"]
    recall = np.mean([float(row["recall"]) for row in rows])
    assert recall == pytest.approx(summary["accuracy"], abs=1e-4)
    assert (out / "confusion.png").stat().st_size > 1_000

    # Bad files are named and skipped.
    bad = tmp_path / "bad"
    shutil.copytree(tones, bad)
    (bad / "valid_00.flac").write_bytes(b"no sound")
    done = CliRunner().invoke(app, ["evaluate", str(run), str(bad)])
    assert done.exit_code == 0, done.output
    assert "8 clips, 3 of 3 classes, 1 clip skipped" in done.output
    both = [str(bad / f"valid_0{number}.flac") for number in range(2)]
    done = CliRunner().invoke(app, ["predict", str(run), *both, "--top", "1"])
    assert done.stdout.startswith(both[1])
    assert f"skipped: {both[0]}: cannot be decoded" in done.stderr
    assert str(done.exception.code) == "mae-ast: error: 1 of 2 files skipped, see above"
    with pytest.raises(ValueError, match=r"--device nowhere: "):
        predict.predict(run, [tones / "valid_00.flac"], device="nowhere")

    # The encoder of the fine-tuned checkpoint.
    waveform = torch.from_numpy(soundfile.read(tones / "valid_00.flac", dtype="float32")[0])[None]
    fine_tuned, encoder = load_finetuned(run).model.encoder, mae_ast.load(run)
    for ours, theirs in zip(
        encoder.hidden_states(waveform), fine_tuned.hidden_states(waveform), strict=True
    ):
        assert torch.equal(ours, theirs)

    # The checkpoint alone, moved out of its run.
    checkpoint = tmp_path / "moved.pt"
    (run / "checkpoints" / "checkpoint_last.pt").rename(checkpoint)
    files = [str(tones / f"valid_0{number}.flac") for number in range(3)]
    done = CliRunner().invoke(app, ["predict", str(checkpoint), *files, "--top", "2"])
    assert done.exit_code == 0, done.output
    lines = [line.split("\t") for line in done.output.splitlines()]
    assert [line[0] for line in lines] == [file for file in files for _ in range(2)]
    assert [line[2] for line in lines[::2]] == list(LABELS.names)
    assert all(float(a[1]) >= float(b[1]) for a, b in zip(lines[::2], lines[1::2], strict=True))

    # Fine-tuning it on other classes keeps the encoder and creates a new head.
    more = (*LABELS.mids, "more")
    data = write_corpus(tmp_path / "more")
    Labels(more, more).write(data / "labels.csv")
    idle = ("optimization.max_update=1", "optimization.lr=[0.0]", "checkpoint.save_dir=second")
    finetune(data, *idle, f"model.checkpoint={checkpoint}", "dataset.disable_validation=true")
    first, second = weights(checkpoint), weights(tmp_path / "second" / "checkpoint_last.pt")
    assert second["head.2.weight"].shape == (4, 256)
    for name, value in first.items():
        assert not name.startswith("encoder.") or torch.equal(second[name], value), name

    Labels(LABELS.mids[::-1], LABELS.names[::-1]).write(tmp_path / "labels.csv")
    with pytest.raises(LabelError, match="in the same order"):
        report.evaluate(load_finetuned(checkpoint), tmp_path, "valid")


def test_validation_batches_grow_to_the_longest_clip(
    finetune: Finetune, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Training crops clips; validation uses all clips whole, even those above max_tokens."""
    data = write_corpus(tmp_path / "data")
    samples = tone([0], 1.5, 7)
    soundfile.write(data / "valid_00.flac", samples, 16_000)
    rows = (data / "valid.tsv").read_text().splitlines()
    rows[1] = f"valid_00.flac\t{len(samples)}\t16000"
    (data / "valid.tsv").write_text("\n".join(rows) + "\n")
    batches = ("dataset.batch_size=null", "dataset.max_tokens=16000")
    log = finetune(data, *batches, "optimization.max_update=1", "checkpoint.no_save=true")
    assert int(log["train_inner"][0]["bsz"]) == 2  # of 8000 samples
    (valid,) = log["valid"]
    num_correct = 9 * float(valid["valid_accuracy"])
    assert num_correct == pytest.approx(round(num_correct), abs=1e-2)  # of nine clips
    assert "valid.tsv: dataset.max_tokens_valid raised from 16000 to 24000" in caplog.text


# --- errors -------------------------------------------------------------------------------------


def test_pretrained_checkpoint_is_no_classifier(pretrained: Path, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="not a fine-tuned checkpoint"):
        load_finetuned(pretrained)
    with pytest.raises(FileNotFoundError, match=r"checkpoint_last\.pt"):
        load_finetuned(tmp_path)


def test_missing_label_files_are_named(refusal: Callable[..., str], tmp_path: Path) -> None:
    data = write_corpus(tmp_path / "data")
    (data / "valid.lbl").unlink()
    assert "valid.lbl" in refusal(data)
    (data / "labels.csv").unlink()
    assert "labels.csv" in refusal(data)


def test_clip_with_several_labels_needs_multi_label(
    refusal: Callable[..., str], tmp_path: Path
) -> None:
    data = write_corpus(tmp_path / "data", multi_label=True)
    text = refusal(data)
    assert "valid.lbl:7: 2 labels; task.multi_label=false" in text


def test_number_of_classes_must_match_the_checkpoint(
    finetune: Finetune, refusal: Callable[..., str], tmp_path: Path
) -> None:
    data = write_corpus(tmp_path / "data")
    finetune(data, "optimization.max_update=1", "dataset.disable_validation=true")
    Labels((*LABELS.mids, "more"), (*LABELS.names, "more")).write(data / "labels.csv")
    text = refusal(data)
    assert "head.2.weight is (3, 256) in the file and (4, 256) in " in text


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("model.checkpoint=null", "model.checkpoint and model.architecture_of are both null"),
        ("model.head=deep", "model.head='deep'; must be one of linear, mlp"),
        ("optimizer._name=adam", "optimizer._name=mae_ast_adamw"),
        ("task.mixup=2", "mixup=2"),
        (
            "checkpoint.best_checkpoint_metric=mAP",
            "metric=mAP: validation logs loss, accuracy; use one of these, or auto",
        ),
        ("criterion.loss=hinge", "criterion.loss='hinge'"),
        ("optimizer.adam_betas=0.9", "optimizer.adam_betas=0.9"),
    ],
)
def test_invalid_settings(
    refusal: Callable[..., str], tones: Path, override: str, words: str
) -> None:
    assert words in refusal(tones, override)


# --- presets ------------------------------------------------------------------------------------


@pytest.mark.parametrize("preset", sorted(path.stem for path in FINETUNE_DIR.glob("*.yaml")))
def test_preset_trains(finetune: Finetune, preset: str, tmp_path: Path) -> None:
    settings = read_preset(FINETUNE_DIR / f"{preset}.yaml")
    data = write_corpus(tmp_path / "data", multi_label=settings["task"]["multi_label"])
    network: tuple[str, ...] = ()
    if preset.startswith("ast_"):
        network = TINY_AST
    elif preset.startswith("ssast_"):
        network = (f"model.checkpoint={write_tiny_ssast(tmp_path / 'ssast.pth')}",)
    elif preset.startswith("audio_mae_"):
        network = (f"model.checkpoint={write_tiny_audio_mae(tmp_path / 'audio_mae.pth')}",)
    short = ("optimization.max_update=2", "checkpoint.no_save=true")
    log = finetune(data, *short, *network, preset=preset)
    metric = "mAP" if settings["task"]["multi_label"] else "accuracy"
    assert np.isfinite(float(log["valid"][-1][f"valid_{metric}"]))


# --- activation checkpointing and torch.compile -------------------------------------------------

FOUR = ("optimization.max_update=4", "model.precision=float32", "dataset.disable_validation=true")


@pytest.mark.parametrize("system", ["mae_ast", "ssast"])
def test_activation_checkpointing_keeps_the_losses(
    finetune: Finetune, tones: Path, tmp_path: Path, system: str
) -> None:
    start = (f"model.checkpoint={write_tiny_ssast(tmp_path / 's.pth')}",) * (system == "ssast")
    dropout = ("model.dropout=0.1", "model.attention_dropout=0.1", "checkpoint.no_save=true")
    losses = [
        [update["loss"] for update in finetune(tones, *start, *FOUR, *dropout, key)["train_inner"]]
        for key in ("model.checkpoint_activations=false", "model.checkpoint_activations=true")
    ]
    assert len(losses[0]) == 4
    assert losses[0] == losses[1]


def test_compile_keeps_losses_and_checkpoint_keys(
    finetune: Finetune, tones: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """torch.compile traces the layers but generates no code, which would take a minute."""
    compiled = []
    compile_function = torch.compile

    def traced(function: Callable[..., torch.Tensor]) -> Callable[..., torch.Tensor]:
        compiled.append(function)
        result: Callable[..., torch.Tensor] = compile_function(function, backend="aot_eager")
        return result

    monkeypatch.setattr(torch, "compile", traced)
    short = ("task.max_sample_size=4800", *FOUR)  # all clips are longer: batches of one shape
    losses, states = [], []
    for value in ("false", "true"):
        run = tmp_path / value
        log = finetune(tones, *short, f"model.compile={value}", f"checkpoint.save_dir={run}")
        losses.append([float(update["loss"]) for update in log["train_inner"]])
        states.append(weights(run / "checkpoint_last.pt"))
    assert len(compiled) == 2  # layers of the encoder
    assert losses[1] == pytest.approx(losses[0], abs=1e-4)
    assert states[1].keys() == states[0].keys()
    assert load_finetuned(tmp_path / "true").labels == LABELS
