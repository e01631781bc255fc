"""Compare runs of the demo's model with the band of recorded ones, or record a band.

    python -m scripts.reference_band --corpus demo/corpus outputs/reference/seed1

Metrics are those of validation and of the probe during training at each 300 updates, and of the
trained model those of the demo's table. A value lies in the band if it is in the interval that
holds another run's value with a probability of 99.9 % (Student's t, mean and std of the seeds).
"""

from __future__ import annotations

import argparse
import csv
import dataclasses
import statistics
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from scipy.stats import t as student

from mae_ast.bench.machine import commit
from mae_ast.core.checkpoints.reader import RUN_FILE
from mae_ast.core.io.atomic import atomic_write
from mae_ast.core.io.manifest import Manifest
from mae_ast.core.io.settings_note import file_digest
from mae_ast.hub.load import PretrainedMaeAst, load
from mae_ast.trainer.metrics_log import read_metrics
from mae_ast.trainer.run_record import first_start
from scripts.demo.cache import cached
from scripts.demo.evaluate import evaluate
from scripts.demo.recognition import probe_words

RESULTS = Path(__file__).parents[1] / "benchmarks" / "results"
PATTERN = "reference_run_*.csv"  # of recorded bands, which end in their date
KINDS = {  # kinds of a run's lines, and their metrics
    "valid": ("loss", "mse", "info_nce", "info_nce_accuracy"),
    "health": ("linear_accuracy", "knn_accuracy", "rank_me"),
}
TRAINED_FILE = "trained.json"  # in a run's folder: metrics of the trained model
PROBABILITY = 0.999

Metrics = dict[str, float]  # by "METRIC at UPDATE"


def main(arguments: Sequence[str] | None = None) -> None:
    """Compare or record; exit with status 1 if a value lies outside the band."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("runs", nargs="+", type=Path, metavar="RUN", help="folders of the runs")
    parser.add_argument("--corpus", type=Path, required=True, help="folder DEMO/corpus")
    parser.add_argument("--record", type=Path, metavar="FILE", help="CSV file to record a band to")
    parser.add_argument(
        "--band", type=Path, metavar="FILE", help="recorded band; default: that of the repository"
    )
    chosen = parser.parse_args(arguments)
    path = chosen.band or max(RESULTS.glob(PATTERN), key=lambda file: file.stem[-10:], default=None)
    if path is None and chosen.record is None:
        parser.error(f"{RESULTS}: no {PATTERN}; --record makes one")
    try:
        for run in chosen.runs:
            check_commit(run)
        if chosen.record is not None:
            check_number(len(chosen.runs))
        found = {run.name: metrics_of(run, chosen.corpus) for run in chosen.runs}
    except (ValueError, FileNotFoundError) as error:
        sys.exit(f"reference_band: error: {error}")
    if chosen.record is not None:
        write_band(chosen.record, found)
        print(chosen.record)
        return
    recorded = read_band(path)
    outside = [line for run, metrics in found.items() for line in compare(run, metrics, recorded)]
    if outside:
        sys.exit(f"outside the band of {path.name}: {', '.join(outside)}")
    print(f"inside the band of {path.name}")


def check_commit(run: Path) -> None:
    """Check that a run was trained by the current commit.

    Raises:
        ValueError: it was not.
    """
    trained_by, current = first_start(run).get("commit"), commit()
    if trained_by != current:
        raise ValueError(
            f"{run}: was trained at commit {trained_by}, not {current}; remove it, or choose "
            "another OUT"
        )


def check_number(count: int) -> None:
    """Check that there are enough runs for a band.

    Raises:
        ValueError: there are fewer than three.
    """
    if count < 3:
        raise ValueError(f"a band needs at least 3 runs, not {count}")


def metrics_of(run: Path, corpus: Path) -> Metrics:
    """Return the metrics of a run; those of the trained model are computed once.

    Args:
        run: folder of the run.
        corpus: folder of the demo's corpus.

    Raises:
        FileNotFoundError: the run has no checkpoint or no metrics.
        ValueError: a metric is missing or not finite.
    """
    found: Metrics = {}
    for line in read_metrics(run):
        for metric in KINDS.get(line["kind"], ()):
            if line.get(metric) is None:
                raise ValueError(f"{run}: no {metric} at update {line['num_updates']}")
            found[f"{metric} at {line['num_updates']}"] = line[metric]
    checkpoint = run / RUN_FILE
    inputs = {"checkpoint": file_digest(checkpoint)}
    trained = cached(run / TRAINED_FILE, inputs, lambda: _trained(checkpoint, corpus))
    del trained["minutes"]
    return found | trained


def _trained(checkpoint: Path, corpus: Path) -> Metrics:
    """Return the metrics of a trained model in the demo's table."""
    model = load(checkpoint)
    assert isinstance(model, PretrainedMaeAst)  # as the preset says
    sets = [Manifest.load(corpus / f"{split}.tsv") for split in ("train", "valid")]
    scores = dataclasses.asdict(evaluate(model, *sets))
    probes = probe_words(model, corpus)
    return {
        "mse, trained": scores["mse"],
        "info_nce_accuracy, trained": scores["accuracy"],
        "linear_accuracy, trained": probes["pretrained"]["linear"],
        "knn_accuracy, trained": probes["pretrained"]["knn"],
    }


def band_of(values: Sequence[float]) -> tuple[float, float]:
    """Return the interval that holds the value of another run with a probability of 99.9 %."""
    count = len(values)
    quantile = student.ppf((1 + PROBABILITY) / 2, count - 1)
    half = float(quantile) * statistics.stdev(values) * (1 + 1 / count) ** 0.5
    mean = statistics.mean(values)
    return mean - half, mean + half


def compare(run: str, metrics: Metrics, recorded: Mapping[str, Sequence[float]]) -> list[str]:
    """Print a row for each recorded metric; return the names of those outside the band."""
    outside = []
    print(f"{run:36} {'this run':>10} {'mean':>10} {'lower':>10} {'upper':>10}")
    for metric, values in recorded.items():
        low, high = band_of(values)
        value = metrics.get(metric)
        is_inside = value is not None and low <= value <= high
        if not is_inside:
            outside.append(f"{metric} of {run}")
        texts = [value, statistics.mean(values), low, high]
        cells = " ".join(f"{'-' if text is None else f'{text:.4f}':>10}" for text in texts)
        print(f"{metric:36} {cells}{'' if is_inside else '  outside'}")
    return outside


def write_band(path: Path, found: Mapping[str, Metrics]) -> None:
    """Write the metrics of runs: a row for each metric, a column for each run."""
    first = next(iter(found.values()))
    with atomic_write(path) as part, part.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(("metric", *found))
        for metric in first:
            writer.writerow((metric, *(metrics[metric] for metrics in found.values())))


def read_band(path: Path) -> dict[str, list[float]]:
    """Return the values of all recorded runs, by metric."""
    with path.open(encoding="utf-8", newline="") as file:
        rows = list(csv.reader(file))[1:]
    return {metric: [float(value) for value in values] for metric, *values in rows}


if __name__ == "__main__":
    main()
