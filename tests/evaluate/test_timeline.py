"""``mae-ast predict --window``: labels over time as tables and plots."""

from __future__ import annotations

import csv
import importlib.util
import json
import re
from io import StringIO
from pathlib import Path

import matplotlib.image
import numpy as np
import pytest
import soundfile
import torch
import typer

from mae_ast.cli.predict import _listed
from mae_ast.core.frontend.fbank import fbank
from mae_ast.core.inference.timeline import Segment
from mae_ast.core.io.audio import AudioError
from mae_ast.core.models.config import AstConfig
from mae_ast.evaluate.plots import to_array
from mae_ast.evaluate.report import confusion_figure
from mae_ast.evaluate.timeline import (
    Timeline,
    Windows,
    label_over_time,
    write_audacity,
    write_csv,
    write_raven,
)
from mae_ast.evaluate.timeline_figure import clock, timeline_figure
from mae_ast.finetune.checkpoint import FineTuned, load_finetuned
from mae_ast.hub.load import PretrainedAst
from tests.core.vits import SMALL, with_random_weights
from tests.sounds import speech_like

NAMES = ("quiet", "loud")


@pytest.fixture(scope="module")
def source(tmp_path_factory) -> Path:
    """Write an AST with a softmax over two classes."""
    folder = tmp_path_factory.mktemp("model") / "ast"
    config = AstConfig(**SMALL, num_classes=2, input_mean=-6.0)
    model = PretrainedAst(config, labels=NAMES, independent=False)
    with_random_weights(model).save_pretrained(folder)
    return folder


@pytest.fixture
def loudness(source, monkeypatch) -> FineTuned:
    """Return a classifier whose score of "loud" is the fraction of samples above a level."""
    classifier = load_finetuned(source)

    def scores(clips: torch.Tensor, lengths: None = None) -> torch.Tensor:
        loud = (clips.float().abs() > 3_000).float().mean(1)
        return torch.stack((1 - loud, loud), dim=1)

    monkeypatch.setattr(classifier, "scores", scores)
    return classifier


def write_levels(path: Path, *levels: tuple[float, float]) -> Path:
    """Write a square wave of each (seconds, amplitude)."""
    parts = [np.full(round(seconds * 16_000), level) for seconds, level in levels]
    soundfile.write(path, np.concatenate(parts), 16_000, subtype="PCM_16")
    return path


def rows_of(found: Timeline) -> list[tuple[float, float, str, float]]:
    return [
        (each.start / 16_000, each.end / 16_000, NAMES[each.label], round(each.score, 3))
        for each in found.segments
    ]


def test_segments_follow_the_sound(loudness, tmp_path):
    path = write_levels(tmp_path / "a.wav", (4.0, 0.0), (4.0, 0.5), (3.5, 0.01))
    found = label_over_time(loudness, path, Windows(1.0, 1.0))
    assert rows_of(found) == [
        (0.0, 4.0, "quiet", 1.0),
        (4.0, 8.0, "loud", 1.0),
        (8.0, 11.5, "quiet", 1.0),
    ]
    assert found.duration_s == 11.5
    assert found.log_mel is None
    # With windows of 2 s every second, 3 to 4 s is covered by the windows from 2 and from 3 s.
    halves = label_over_time(loudness, path, Windows(2.0, 1.0, threshold=0.6))
    assert rows_of(halves) == [
        (0.0, 4.0, "quiet", pytest.approx((3 + 0.75) / 4, abs=1e-3)),
        (4.0, 8.0, "loud", pytest.approx((0.75 + 1 + 1 + 0.75) / 4, abs=1e-3)),
        (8.0, 11.5, "quiet", pytest.approx((0.75 + 2.5) / 3.5, abs=0.02)),
    ]


def test_several_labels_at_a_time(loudness, tmp_path):
    path = write_levels(tmp_path / "a.wav", (2.0, 0.0), (1.0, 0.5), (1.0, 0.0), (2.0, 0.5))
    object.__setattr__(loudness.description, "multi_label", True)
    found = label_over_time(loudness, path, Windows(2.0, 2.0))
    assert rows_of(found) == [(0.0, 4.0, "quiet", 0.75), (2.0, 6.0, "loud", 0.75)]
    one = label_over_time(loudness, path, Windows(2.0, 2.0, top=1))
    assert rows_of(one) == [(0.0, 4.0, "quiet", 0.75), (4.0, 6.0, "loud", 1.0)]
    none = label_over_time(loudness, path, Windows(6.0, 6.0, threshold=0.51))
    assert none.segments == []


def test_windows_are_scored_like_files(source, tmp_path):
    wave = speech_like(3 * 16_000)
    soundfile.write(tmp_path / "a.wav", wave.numpy(), 16_000, subtype="PCM_16")
    classifier = load_finetuned(source)
    found = label_over_time(classifier, tmp_path / "a.wav", Windows(1.0, 1.0), True)
    samples = torch.from_numpy(soundfile.read(tmp_path / "a.wav", dtype="int16")[0])
    best = classifier.scores(samples.view(3, -1)).max(1)
    starts = [0, *(n for n in (1, 2) if best.indices[n] != best.indices[n - 1])]
    assert [each.start / 16_000 for each in found.segments] == starts
    assert found.segments[0].label == best.indices[0]
    ends = [*starts[1:], 3]
    for each, start, end in zip(found.segments, starts, ends, strict=True):
        assert each.score == pytest.approx(float(best.values[start:end].mean()), abs=1e-5)
    assert found.log_mel is not None
    assert found.log_mel.shape == (298, 128)
    np.testing.assert_allclose(found.log_mel, fbank(samples[None])[0].numpy(), atol=1e-4)


@pytest.mark.parametrize("seconds", [0.2, 1.0])
def test_silence_and_recordings_shorter_than_a_window(source, tmp_path, seconds):
    path = write_levels(tmp_path / "a.wav", (seconds, 0.0))
    found = label_over_time(load_finetuned(source), path, Windows(10.0, 5.0), True)
    (segment,) = found.segments
    assert (segment.start, segment.end) == (0, round(seconds * 16_000))
    assert 0.5 <= segment.score <= 1
    assert timeline_figure(found, NAMES, "silence").axes


def test_invalid_windows_and_files_are_refused(source, tmp_path):
    for values, message in (
        ((0.0, 1.0), "--window 0; a positive number"),
        ((float("nan"), 1.0), "--window nan; a positive number"),
        ((10.0, 0.0), "--hop 0; must be positive and at most --window 10"),
        ((10.0, 20.0), "--hop 20; must be positive and at most --window 10"),
        ((10.0, 5.0, 1.5), "--threshold 1.5; scores are from 0 to 1"),
    ):
        with pytest.raises(ValueError, match=message):
            Windows(*values)
    classifier = load_finetuned(source)
    path = write_levels(tmp_path / "a.wav", (0.1, 0.1))
    with pytest.raises(ValueError, match=r"--window 0\.1; must be at least one patch of the model"):
        label_over_time(classifier, path, Windows(0.1, 0.1))
    with pytest.raises(AudioError, match="1600 samples at 16 kHz are shorter than one patch"):
        label_over_time(classifier, path, Windows(1.0, 1.0))


SEGMENTS = [Segment(0, 24_000, 0, 0.75), Segment(16_000, 160_080, 1, 1 / 3)]


def test_tables_in_three_formats():
    texts = {}
    for write in (write_csv, write_audacity, write_raven):
        file = StringIO()
        write(file, SEGMENTS, ("a, b", "c\td"))
        texts[write] = file.getvalue()
    assert list(csv.reader(StringIO(texts[write_csv]))) == [
        ["start", "end", "label", "score"],
        ["0.000", "1.500", "a, b", "0.7500"],
        ["1.000", "10.005", "c\td", "0.3333"],
    ]
    assert texts[write_audacity] == "0.000\t1.500\ta, b\n1.000\t10.005\tc d\n"
    assert [line.split("\t") for line in texts[write_raven].splitlines()] == [
        [
            *("Selection", "View", "Channel", "Begin Time (s)", "End Time (s)"),
            *("Low Freq (Hz)", "High Freq (Hz)", "Label", "Score"),
        ],
        ["1", "Spectrogram 1", "1", "0.000", "1.500", "0.0", "8000.0", "a, b", "0.7500"],
        ["2", "Spectrogram 1", "1", "1.000", "10.005", "0.0", "8000.0", "c d", "0.3333"],
    ]


def test_outputs_have_different_names(tmp_path):
    names = ("a.mp3", "a.wav", "a_2.wav", "b.wav")
    folder = tmp_path / "recordings"
    folder.mkdir()
    for name in (*names, "._a.wav"):  # a hidden file of macOS
        (folder / name).touch()
    (tmp_path / "site").mkdir()
    (tmp_path / "site" / "link").symlink_to(folder)
    found = _listed([folder, folder / "b.wav", tmp_path / "site"])
    assert [file.name for file, _ in found] == [*names, "b.wav", *names]
    outputs = [str(output) for _, output in found]
    assert outputs[:5] == ["a", "a_3", "a_2", "b", "b_2"]
    assert outputs[5:] == ["link/a", "link/a_3", "link/a_2", "link/b"]


def test_names_are_not_formulas_in_plots():
    names = ("$^$", "US$ and $_$")
    log_mel = np.zeros((10, 128), dtype=np.float32)
    found = Timeline([Segment(0, 16_000, 0, 0.5)], 1.0, log_mel, 0.1)
    to_array(timeline_figure(found, names, names[1]))
    to_array(confusion_figure(np.eye(2), names, names[0]))


def test_a_plot_of_a_day_is_bounded():
    names = [f"class {n}" for n in range(40)]
    segments = [
        Segment(n * 16_000, (n + 2) * 16_000, n // 2 % 40, 0.5) for n in range(0, 86_400, 2)
    ]
    log_mel = np.random.default_rng(0).normal(size=(1_350, 128)).astype(np.float32)
    figure = timeline_figure(Timeline(segments, 86_400.0, log_mel, 64.0), names, "day.wav")
    rows, spectrogram = figure.axes
    assert len(rows.get_yticklabels()) == 16
    assert rows.get_title("right") == "more opaque: higher score; 24 more labels in the table"
    assert rows.images[0].get_array().size < 200_000
    texts = [label.get_text() for label in spectrogram.get_xticklabels()]
    assert texts[:3] == ["0:00:00", "2:00:00", "4:00:00"]


@pytest.mark.parametrize(
    ("at", "duration", "text"),
    [(7.5, 30, "7.5"), (65, 120, "1:05"), (65, 4_000, "0:01:05"), (86_399.6, 90_000, "24:00:00")],
)
def test_times_are_in_the_unit_of_the_recording(at, duration, text):
    assert clock(at, duration) == text


@pytest.fixture
def recordings(tmp_path) -> Path:
    folder = tmp_path / "in"
    (folder / "site").mkdir(parents=True)
    write_levels(folder / "a.wav", (3.0, 0.2))
    write_levels(folder / "a.flac", (1.5, 0.2))
    write_levels(folder / "site" / "b.wav", (2.0, 0.0))
    (folder / "notes.txt").write_text("not audio")
    (folder / "site" / "bad.mp3").write_bytes(b"RIFFnothing")
    return folder


@pytest.fixture
def warned(monkeypatch) -> list[str]:
    """Return the lines that commands print to standard error."""
    lines: list[str] = []
    echo = typer.echo

    def recording(message: str, err: bool = False) -> None:
        lines.extend([message] if err else [])
        echo(message, err=err)

    monkeypatch.setattr(typer, "echo", recording)
    return lines


def test_predict_writes_tables_and_plots_of_a_folder(
    mae_ast_command, source, recordings, tmp_path, warned
):
    out = tmp_path / "out"
    command = ("predict", source, recordings, "--window", 1, "--hop", 0.5, "--out", out)
    text, message = mae_ast_command(*command)
    (skipped,) = warned
    assert skipped.startswith(f"4/4 skipped: {recordings / 'site' / 'bad.mp3'}: ")
    assert message == "mae-ast: error: 1 of 4 files skipped, see above"
    written = sorted(str(path.relative_to(out)) for path in out.rglob("*") if path.is_file())
    assert written == sorted(
        [
            *("a.csv", "a.png", "a_2.csv", "a_2.png", "site/b.csv", "site/b.png"),
            "timeline.json",
        ]
    )
    assert matplotlib.image.imread(out / "site" / "b.png").std() > 0.05
    for name, end in (("a", 1.5), ("a_2", 3.0), ("site/b", 2.0)):
        rows = list(csv.DictReader((out / f"{name}.csv").open()))
        assert float(rows[0]["start"]) == 0
        assert float(rows[-1]["end"]) == end
        assert all(row["label"] in NAMES for row in rows)
    lines = text.splitlines()
    assert lines[0].startswith(f"1/4 {out / 'a.csv'}, {out / 'a.png'}: ")
    assert lines[0].endswith(" in 1.5 s")

    (out / "a_2.csv").unlink()
    text, _ = mae_ast_command(*command)
    assert f"1/4 {out / 'a.csv'}: exists already" in text
    assert (out / "a_2.csv").exists()
    _, message = mae_ast_command(*command, "--threshold", 0.3)
    assert message == (
        f"mae-ast: error: {out}: was started with threshold null, not 0.3; choose another folder "
        "(--out)"
    )
    assert json.loads((out / "timeline.json").read_text())["window_s"] == 1.0


def test_predict_of_one_file_overwrites(mae_ast_command, source, recordings, tmp_path):
    command = ("predict", source, recordings / "a.wav", "--window", 2, "--out", tmp_path / "out")
    for kind, name in (("audacity", "a.txt"), ("raven", "a.selections.txt")):
        for _ in range(2):
            _, message = mae_ast_command(*command, "--format", kind, "--no-plot")
            assert not message
        assert (tmp_path / "out" / name).read_text()
    assert not (tmp_path / "out" / "a.png").exists()


def test_predict_without_matplotlib_writes_the_table(
    mae_ast_command, source, recordings, tmp_path, monkeypatch, warned
):
    find_spec = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name: None if name == "matplotlib" else find_spec(name)
    )
    out = tmp_path / "out"
    _, message = mae_ast_command(
        "predict", source, recordings / "a.wav", "--window", 2, "--out", out
    )
    assert not message
    assert warned == ["no plots: matplotlib is not installed: pip install 'mae-ast[train]'"]
    assert [path.name for path in out.iterdir()] == ["a.csv"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--hop", 5), "--hop needs --window"),
        (("--threshold", 0.5), "--threshold needs --window"),
        (("--window", 10, "--format", "xml"), "--format xml: choose from csv, audacity, raven"),
        (("--window", 10, "--hop", 11), "--hop 11; must be positive and at most --window 10, .*"),
    ],
)
def test_invalid_options_of_predict(mae_ast_command, source, recordings, options, message):
    _, found = mae_ast_command("predict", source, recordings / "a.wav", *options)
    assert re.fullmatch(f"mae-ast: error: {message}", found)


def test_predict_labels_the_files_of_a_folder(mae_ast_command, source, recordings, tmp_path):
    (recordings / "site" / "bad.mp3").unlink()
    out, message = mae_ast_command("predict", source, recordings, "--top", 1)
    assert not message
    assert [line.split("\t")[0] for line in out.splitlines()] == [
        str(recordings / name) for name in ("a.flac", "a.wav", "site/b.wav")
    ]
    (tmp_path / "empty").mkdir()
    _, message = mae_ast_command("predict", source, tmp_path / "empty")
    assert message == f"mae-ast: error: {tmp_path / 'empty'}: no audio files in this folder"
