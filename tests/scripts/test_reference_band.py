"""The band of the reference run: recorded values, the interval, and values outside it."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from scripts import reference_band
from scripts.reference_band import band_of, main, metrics_of, read_band

VALUES = (1.0, 1.1, 0.9, 1.05)


@pytest.fixture
def runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """Folders of runs whose losses at update 300 are ``VALUES``."""
    monkeypatch.setattr(reference_band, "_trained", lambda *_: {"mse, trained": 0.06})
    monkeypatch.setattr(reference_band, "commit", lambda: "abc1234")
    folders = []
    for number, value in enumerate(VALUES, 1):
        folder = tmp_path / f"seed{number}"
        (folder / "checkpoints").mkdir(parents=True)
        (folder / "checkpoints" / "checkpoint_last.pt").touch()
        (folder / "starts.jsonl").write_text('{"commit": "abc1234"}\n')
        stamp = {"timestamp": "2026-11-26T00:00:00+00:00", "num_updates": 300}
        valid = dict.fromkeys(("mse", "info_nce", "info_nce_accuracy"), value)
        lines = [
            {**stamp, "kind": "valid", "loss": value, **valid},
            {**stamp, "kind": "train", "loss": 7.0},
        ]
        (folder / "metrics.jsonl").write_text("".join(f"{json.dumps(each)}\n" for each in lines))
        folders.append(folder)
    return folders


def test_interval_is_that_of_another_value():
    # scipy.stats: t.ppf(0.9995, 3) = 12.924, std of VALUES = 0.0854
    low, high = band_of(VALUES)
    assert (low + high) / 2 == pytest.approx(1.0125)
    assert (high - low) / 2 == pytest.approx(12.924 * 0.08539 * 1.25**0.5, rel=1e-3)


def test_metrics_are_those_of_validation_and_of_the_trained_model(runs: list[Path]):
    found = metrics_of(runs[0], Path("corpus"))
    assert found["loss at 300"] == 1.0
    assert found["mse, trained"] == 0.06
    assert "minutes" not in found
    assert 7.0 not in found.values()


def test_runs_are_recorded_and_compared(runs: list[Path], tmp_path: Path, capsys):
    band = tmp_path / "band.csv"
    common = ["--corpus", "corpus"]
    main([*common, "--record", str(band), *map(str, runs)])
    assert read_band(band)["loss at 300"] == list(VALUES)
    path = runs[0] / "metrics.jsonl"
    main([*common, "--band", str(band), str(runs[0])])
    assert capsys.readouterr().out.endswith("inside the band of band.csv\n")
    path.write_text(path.read_text().replace('"loss": 1.0', '"loss": 3.0'))
    with pytest.raises(SystemExit, match=r"outside the band of band\.csv: loss at 300 of seed1"):
        main([*common, "--band", str(band), str(runs[0])])
    assert re.search(r"loss at 300 +3\.0000 .* outside\n", capsys.readouterr().out)
    with pytest.raises(SystemExit, match="error: a band needs at least 3 runs, not 1"):
        main([*common, "--record", str(band), str(runs[0])])


def test_runs_of_another_commit_or_without_a_value_are_refused(runs: list[Path]):
    path = runs[0] / "metrics.jsonl"
    path.write_text(path.read_text().replace('"loss": 1.0', '"loss": null'))
    with pytest.raises(SystemExit, match=r"error: .*seed1: no loss at update 300"):
        main(["--corpus", "corpus", "--band", "band.csv", str(runs[0])])
    (runs[1] / "starts.jsonl").write_text('{"commit": "other"}\n')
    with pytest.raises(SystemExit, match="was trained at commit other, not abc1234; remove it"):
        main(["--corpus", "corpus", "--band", "band.csv", str(runs[1])])


def test_a_metric_that_a_run_lacks_is_outside(runs: list[Path], tmp_path: Path):
    band = tmp_path / "band.csv"
    main(["--corpus", "corpus", "--record", str(band), *map(str, runs)])
    (runs[0] / "metrics.jsonl").write_text('{"kind": "train", "num_updates": 300, "loss": 1}\n')
    with pytest.raises(SystemExit, match="mse at 300 of seed1"):
        main(["--corpus", "corpus", "--band", str(band), str(runs[0])])
