"""Test the feature monitor: its clips, its metrics, its schedule, its warnings."""

from __future__ import annotations

import json
import logging
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch

from mae_ast.core.inference.features import extract_features
from mae_ast.core.io.labels import Labels, write_clip_labels
from mae_ast.core.io.manifest import Manifest, write_manifest
from mae_ast.core.models.config import SsastConfig
from mae_ast.core.models.mae_ast import MaeAst
from mae_ast.core.models.ssast import Ssast
from mae_ast.evaluate import feature_monitor
from mae_ast.evaluate.feature_monitor import FeatureMonitor, PeriodicMonitor
from mae_ast.evaluate.probe import rank_me

WORDS = ("low", "high")
COUNTS = {"train": 32, "valid": 16}


def write_labelled(folder: Path, both_in_every: int = 0) -> Path:
    """Write tones of two pitches; every ``both_in_every``-th test clip has both labels."""
    rng = np.random.default_rng(0)
    folder.mkdir(parents=True, exist_ok=True)
    for split, count in COUNTS.items():
        rows, labels = [], []
        for number in range(count):
            word = WORDS[number % 2]
            tone = np.sin(np.arange(8_000) * (0.05 if word == "low" else 0.5))
            noisy = 0.3 * tone + 0.02 * rng.standard_normal(8_000)
            name = f"{split}{number}.wav"
            soundfile.write(folder / name, noisy, 16_000, subtype="PCM_16")
            rows.append((name, 8_000, 16_000))
            is_both = both_in_every and split == "valid" and number % both_in_every == 0
            labels.append(list(WORDS) if is_both else [word])
        write_manifest(folder / f"{split}.tsv", ".", rows)
        write_clip_labels(folder / f"{split}.lbl", labels)
    Labels(WORDS, WORDS).write(folder / "labels.csv")
    return folder


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write_labelled(tmp_path / "data")


@pytest.fixture
def model(small_config) -> MaeAst:
    model = MaeAst(small_config(dropout=0.5, encoder_layers=3)).train()
    model.batch_norm.running_mean.fill_(-7.0)
    model.batch_norm.running_var.fill_(16.0)
    return model


def test_metrics_of_labelled_clips(folder: Path, model: MaeAst) -> None:
    found = FeatureMonitor.read(Manifest.read(folder / "valid.tsv"), folder, 100).metrics(model)
    assert list(found) == ["rank_me", "linear_accuracy", "knn_accuracy", "layer", "skipped"]
    assert found["linear_accuracy"] == 1
    assert found["knn_accuracy"] == 1
    assert found["layer"] in (1, 2, 3)
    assert found["skipped"] == 0
    paths = [str(folder / f"valid{n}.wav") for n in range(16)]
    pooled = extract_features(model, paths, layers=[3]).pooled[:, 0]
    assert found["rank_me"] == pytest.approx(rank_me(pooled), rel=1e-3)
    assert 1 < found["rank_me"] < 16


def test_random_labels_score_at_chance_level(folder: Path, model: MaeAst) -> None:
    rng = np.random.default_rng(1)
    for split, count in COUNTS.items():
        write_clip_labels(
            folder / f"{split}.lbl", [[WORDS[c]] for c in rng.integers(2, size=count)]
        )
    found = FeatureMonitor.read(Manifest.read(folder / "valid.tsv"), folder, 100).metrics(model)
    assert 0.1 < found["linear_accuracy"] < 0.9


def test_only_rank_me_without_labels(folder: Path, model: MaeAst) -> None:
    monitor = FeatureMonitor.read(Manifest.read(folder / "train.tsv"), None, 100)
    assert list(monitor.metrics(model)) == ["rank_me", "skipped"]
    assert monitor.log_mel_metrics(model) == {}


def test_collapsed_features_have_rank_1(folder: Path, model: MaeAst) -> None:
    monitor = FeatureMonitor.read(Manifest.read(folder / "train.tsv"), None, 100)
    before = monitor.metrics(model)["rank_me"]
    with torch.no_grad():
        model.encoder.layers[-1].final_layer_norm.weight.zero_()
        model.encoder.layers[-1].final_layer_norm.bias.fill_(1.0)
    assert monitor.metrics(model)["rank_me"] == pytest.approx(1, abs=0.05)
    assert before > 1.2


def test_several_labels_give_mean_average_precision(tmp_path: Path, model: MaeAst) -> None:
    """Only the test clips have several labels."""
    folder = write_labelled(tmp_path / "both", both_in_every=3)
    monitor = FeatureMonitor.read(Manifest.read(folder / "valid.tsv"), folder, 100)
    found = monitor.metrics(model)
    assert 0.7 < found["linear_mAP"] <= 1
    assert set(monitor.log_mel_metrics(model)) == {"linear_mAP", "knn_mAP"}


def test_selected_clips_are_evenly_spaced_and_reproducible(folder: Path) -> None:
    monitor = FeatureMonitor.read(Manifest.read(folder / "train.tsv"), folder, 22)
    assert monitor.probe is not None
    train, test = monitor.probe
    assert (len(monitor.clips), len(train.targets), len(test.targets)) == (22, 22, 16)
    names = [train.manifest.row_path(row) for row in range(22)]
    numbers = [int(name.removeprefix("train").removesuffix(".wav")) for name in names]
    assert numbers[0] == 0
    assert numbers[-1] == 31
    assert set(np.diff(numbers)) == {1, 2}
    assert train.targets.tolist() == [n % 2 for n in numbers]
    again = FeatureMonitor.read(Manifest.read(folder / "train.tsv"), folder, 22)
    assert [again.clips.row_path(row) for row in range(22)] == names


def test_taken_rows_keep_their_paths_and_lines(folder: Path) -> None:
    whole = Manifest.read(folder / "train.tsv")
    some = whole.take([30, 2, 9])
    assert [some.audio_path(n) for n in range(3)] == [whole.audio_path(n) for n in (30, 2, 9)]
    assert [some.where(n) for n in range(3)] == [whole.where(n) for n in (30, 2, 9)]
    assert some.num_samples.tolist() == [8_000] * 3


def test_short_and_damaged_clips_are_skipped_and_counted(folder: Path, model: MaeAst) -> None:
    whole = FeatureMonitor.read(Manifest.read(folder / "valid.tsv"), folder, 100)
    soundfile.write(folder / "valid3.wav", np.zeros(500), 16_000, subtype="PCM_16")
    (folder / "valid4.wav").write_bytes(b"no music")
    (folder / "train5.wav").unlink()
    found = whole.metrics(model)
    assert found["skipped"] == 5  # two of valid.tsv are read twice
    assert found["linear_accuracy"] == 1
    assert whole.log_mel_metrics(model)["linear_accuracy"] == 1


@pytest.mark.parametrize(("count", "layers"), [(1, [1]), (3, [1, 2, 3]), (12, [3, 6, 9, 12])])
def test_compared_layers_are_evenly_spaced(count: int, layers: list[int]) -> None:
    assert feature_monitor._some_layers(count) == layers


@pytest.mark.parametrize("file", ["train.tsv", "valid.tsv", "train.lbl", "valid.lbl", "labels.csv"])
def test_read_names_a_missing_file(folder: Path, tmp_path: Path, file: str) -> None:
    own = tmp_path / "own"
    own.mkdir()
    write_manifest(own / "clips.tsv", str(folder), [("valid0.wav", 8_000, 16_000)])
    (folder / file).unlink()
    with pytest.raises(FileNotFoundError, match=file):
        FeatureMonitor.read(Manifest.read(own / "clips.tsv"), folder, 100)


def test_rejects_too_few_clips_or_classes(folder: Path) -> None:
    with pytest.raises(ValueError, match=r"task\.probe_clips=19; at least 20"):
        FeatureMonitor.read(Manifest.read(folder / "valid.tsv"), folder, 19)
    write_clip_labels(folder / "train.lbl", [["low"]] * 32)
    with pytest.raises(ValueError, match=r"train\.tsv: 32 clips of 1 class"):
        FeatureMonitor.read(Manifest.read(folder / "valid.tsv"), folder, 100)


class CountingMonitor:
    """Count calls, and return metrics or raise an error."""

    def __init__(self) -> None:
        self.calls: list[str] = []
        self.error: Exception | None = None

    def metrics(self, model: object) -> dict[str, float]:
        self.calls.append("metrics")
        if self.error is not None:
            raise self.error
        return {"rank_me": 2.0}

    def log_mel_metrics(self, model: object) -> dict[str, float]:
        self.calls.append("log-mel")
        return {"knn_accuracy": 0.5}


def test_metrics_are_logged_every_interval_and_the_baseline_is_computed_once(caplog) -> None:
    caplog.set_level(logging.INFO)
    counting = CountingMonitor()
    monitor = PeriodicMonitor(counting, 4, None)  # type: ignore[arg-type]
    for num_updates in (1, 2, 3, 4, 4, 5, 6, 7, 8):  # update 4 is repeated after an overflow
        monitor.after_update(None, num_updates)  # type: ignore[arg-type]
    assert counting.calls == ["metrics", "log-mel", "metrics"]
    lines = [json.loads(record.getMessage()) for record in caplog.records]
    assert [line["num_updates"] for line in lines] == [4, 8]
    assert all(line["log_mel_knn_accuracy"] == 0.5 for line in lines)


@pytest.mark.parametrize(
    "error",
    [torch.OutOfMemoryError("CUDA out of memory\nmore"), OSError("no disk"), ValueError("NaN")],
)
def test_errors_are_logged_as_warnings(caplog, error: Exception) -> None:
    counting = CountingMonitor()
    counting.error = error
    monitor = PeriodicMonitor(counting, 2, None)  # type: ignore[arg-type]
    monitor.after_update(None, 2)  # type: ignore[arg-type]
    (record,) = caplog.records
    assert record.levelname == "WARNING"
    assert record.getMessage() == (
        f"no feature metrics after update 2: {str(error).splitlines()[0]}"
    )
    counting.error = None
    monitor.after_update(None, 4)  # type: ignore[arg-type]
    assert counting.calls[-1] == "log-mel"


def test_non_finite_features_are_logged_as_a_warning(caplog, folder: Path, model: MaeAst) -> None:
    with torch.no_grad():
        model.post_extract_proj.weight.fill_(float("nan"))
    monitor = PeriodicMonitor(
        FeatureMonitor.read(Manifest.read(folder / "valid.tsv"), folder, 100), 1, None
    )
    monitor.after_update(model, 1)
    assert [r.getMessage() for r in caplog.records] == [
        "no feature metrics after update 1: the model's features are not finite; its training has "
        "diverged"
    ]


def test_model_and_random_state_are_unchanged(folder: Path, model: MaeAst) -> None:
    weights = {name: value.clone() for name, value in model.state_dict().items()}
    modes = [module.training for module in model.modules()]
    torch_state, numpy_state = torch.get_rng_state(), np.random.get_state()[1].copy()
    monitor = FeatureMonitor.read(Manifest.read(folder / "valid.tsv"), folder, 100)
    first = monitor.metrics(model)
    monitor.log_mel_metrics(model)
    assert first == monitor.metrics(model)
    assert torch.equal(torch_state, torch.get_rng_state())
    assert np.array_equal(numpy_state, np.random.get_state()[1])
    assert [module.training for module in model.modules()] == modes
    assert all(parameter.grad is None for parameter in model.parameters())
    for name, value in model.state_dict().items():
        assert torch.equal(value, weights[name]), name


def test_ssast_is_monitored(folder: Path) -> None:
    config = SsastConfig(
        encoder_layers=2, encoder_embed_dim=64, encoder_ffn_embed_dim=96, encoder_attention_heads=1
    )
    model = Ssast(config).train()
    found = FeatureMonitor.read(Manifest.read(folder / "valid.tsv"), folder, 100).metrics(model)
    assert found["linear_accuracy"] > 0.7
    assert found["rank_me"] > 1
    assert found["skipped"] == 0
    assert model.training
