"""Test ``mae-ast bench``: counted against measured work, the suite, its files."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from importlib.metadata import PackageNotFoundError
from pathlib import Path

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode
from typer.testing import CliRunner

import mae_ast as mae_ast_package
from mae_ast.bench import kernels, machine, parts, report, steps, suite, training
from mae_ast.bench.setting import Column, Part, Setting
from mae_ast.bench.steps import build_config, check_overrides, step_cases
from mae_ast.bench.work import (
    Activations,
    count_activations,
    count_flops,
    draw_mask,
    peak_bytes,
    pretraining_loss,
)
from mae_ast.cli.bench import bench
from mae_ast.cli.main import app
from mae_ast.core.frontend.collate_rows import RowCollater as Row
from mae_ast.core.frontend.fbank import num_samples_of_frames
from mae_ast.core.models.config import AudioMaeConfig, MaeAstConfig, SsastConfig
from mae_ast.core.models.registry import SYSTEMS, system_name

pytestmark = pytest.mark.slow

REPOSITORY = Path(__file__).parents[2]
NO_DROPOUT = {"dropout": 0.0, "attention_dropout": 0.0}


def setting(folder: Path, **changes: object) -> Setting:
    return Setting(**{"device": "cpu", "folder": str(folder), "batches": [2], **changes})


ENCODER = {
    "encoder_layers": 3,
    "encoder_embed_dim": 64,
    "encoder_ffn_embed_dim": 128,
    "encoder_attention_heads": 4,
}


def mae_ast(**fields: object) -> MaeAstConfig:
    return MaeAstConfig(
        **{
            **ENCODER,
            "decoder_layers": 2,
            "decoder_embed_dim": 64,
            **NO_DROPOUT,
            **fields,
        }
    )


def audio_mae(**fields: object) -> AudioMaeConfig:
    decoder = {"layers": 3, "embed_dim": 32, "ffn_embed_dim": 96, "attention_heads": 4}
    sizes = {f"decoder_{key}": size for key, size in decoder.items()}
    return AudioMaeConfig(**{**ENCODER, **sizes, **fields})


FRAMES = {
    "ast_kernel_size_chan": 128,
    "ast_kernel_stride_chan": 128,
    "ast_kernel_size_time": 2,
    "ast_kernel_stride_time": 2,
}
CONFIGS = {
    "patches": (mae_ast(), "chunk_mask"),
    "frames": (mae_ast(**FRAMES), "random_mask"),
    "spans": (mae_ast(**FRAMES, random_mask_prob=1.45), "retain_spans"),
    "narrower decoder": (mae_ast(decoder_embed_dim=32, decoder_ffn_embed_dim=96), "random_mask"),
    "SSAST": (SsastConfig(**ENCODER), "chunk_mask"),
    "SSAST, two passes": (SsastConfig(**ENCODER, two_pass=True), "chunk_mask"),
    "Audio-MAE, local": (audio_mae(), "random_mask"),
    "Audio-MAE, hybrid": (
        audio_mae(decoder_attention="hybrid", decoder_global_layers=1),
        "random_mask",
    ),
    "Audio-MAE, global": (audio_mae(decoder_attention="global"), "random_mask"),
}


def log_mel(config, mask_type: str, frames: int, batch: int = 2):
    """Return a model, its input and mask."""
    model = SYSTEMS[system_name(config)].network(config).train()
    mask = draw_mask(config, mask_type, num_samples_of_frames(frames), batch)
    return model, torch.randn(batch, frames, 128), mask


@pytest.mark.parametrize("name", CONFIGS)
def test_operations_equal_those_of_a_step_with_data(name):
    config, mask_type = CONFIGS[name]
    model, source, mask = log_mel(config, mask_type, 200)
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        pretraining_loss(model, source, mask).backward()
    counted = count_flops(config, mask_type, num_samples_of_frames(200))
    assert 2 * counted == counter.get_total_flops()


def test_operations_are_those_of_matrix_products():
    """MAE-AST patch with one layer each, by hand: 3 times 2 m n k of each product."""
    config = mae_ast(encoder_layers=1, decoder_layers=1)
    samples = num_samples_of_frames(320)
    n, v = 20 * 8, 40
    assert draw_mask(config, "random_mask", samples).visible_ids.shape == (1, v)
    m, d, f, p = n - v, 64, 128, 256
    encoder = 4 * v * d * d + 2 * v * v * d + 2 * v * d * f  # projections, attention, feed-forward
    decoder = 2 * (m + n) * d * d + 2 * m * n * d + 2 * m * d * f  # only m queries
    heads = 2 * m * d * p
    embedding, logits = v * p * d, m * m * p  # no gradient to patches and targets: 2 times
    expected = 2 * (3 * (encoder + decoder + heads) + 2 * (embedding + logits))
    assert count_flops(config, "random_mask", samples) == expected


def test_dropped_layers_are_counted():
    config = mae_ast(encoder_layerdrop=0.5, dropout=0.1)
    clip = "random_mask", 48_000
    assert count_flops(config, *clip) == count_flops(mae_ast(encoder_layerdrop=0.0), *clip)


def saved_bytes(model, source, mask) -> int:
    """Measure the bytes that the forward saves, without parameters and input."""
    given = {t.untyped_storage().data_ptr() for t in (*model.parameters(), source, *mask[:2])}
    kept: dict[int, torch.UntypedStorage] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in given:
            kept[storage.data_ptr()] = storage
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        loss = pretraining_loss(model, source, mask)
    del loss
    return sum(storage.nbytes() for storage in kept.values())


@pytest.mark.parametrize(
    "name", ["patches", "frames", "narrower decoder", "SSAST", "Audio-MAE, local"]
)
def test_bytes_are_those_saved_by_a_forward_with_data(name):
    config, mask_type = CONFIGS[name]
    one, two = (saved_bytes(*log_mel(config, mask_type, 480, batch)) for batch in (1, 2))
    counted = count_activations(config, mask_type, num_samples_of_frames(480), half=False)
    assert two - one == pytest.approx(counted.saved, rel=0.01)


def test_half_precision_saves_less_than_float32():
    config, mask_type = CONFIGS["patches"]
    half, full = (count_activations(config, mask_type, 160_000, half) for half in (True, False))
    assert 0.5 < half.saved / full.saved < 0.75  # layer norms and the loss are in float32
    assert half.transient == full.transient == 8 * 372**2


@pytest.mark.parametrize(
    ("row", "config"),
    [
        ("MAE-AST patch, 12", MaeAstConfig()),
        ("SSAST patch, 12 layers, one", SsastConfig()),
    ],
)
def test_counted_work_matches_the_documentation(row, config):
    clip = config, "random_mask", 160_000
    saved = [count_activations(*clip, half).saved for half in (True, False)]
    stated = (REPOSITORY / "BENCHMARKS.md").read_text(encoding="utf-8")
    line = next(line for line in stated.splitlines() if line.startswith(f"| {row}"))
    cells = [cell.strip() for cell in line.strip("|").split("|")]
    assert cells[1] == f"{count_flops(*clip) / 1e9:.0f}"
    assert cells[2:] == [f"{size / 1e6:.0f}" for size in saved]


def test_peak_memory_includes_weights_gradients_and_moments():
    each = Activations(saved=1e6, transient=2e6)
    assert peak_bytes(10**9, each, 1, half=False) == 16 * 10**9
    assert peak_bytes(10**3, each, 7, half=False) == 7 * 3e6 + 12 * 10**3
    assert peak_bytes(10**3, each, 7, half=True) == 7 * 3e6 + 14 * 10**3


def test_configs_are_built_from_the_presets(tmp_path):
    config = build_config("ssast_patch", {"two_pass": True}, setting(tmp_path))
    assert config.layer_norm_eps == 1e-6
    assert config.two_pass
    assert build_config("mae_ast", {}, setting(tmp_path)).encoder_layerdrop == 0.05


def test_step_cases_cover_all_systems_and_batch_sizes(tmp_path):
    cases = step_cases(setting(tmp_path, batches=[4, 8]))
    assert {case["batch"] for case in cases} == {4, 8}
    assert len({case["name"] for case in cases}) * 2 == len(cases) == 18


def test_rejects_an_unknown_model_setting():
    check_overrides({"dropout": 0.0, "two_pass": True})
    with pytest.raises(ValueError, match=r"model\.dropuot"):
        check_overrides({"dropuot": 0.0})


def test_training_drops_settings_of_other_systems(tmp_path):
    asked = {"two_pass": True, "dropout": 0.5, "decoder_ffn_embed_dim": None}
    overrides = training.model_overrides(setting(tmp_path, model=asked))
    assert sorted(overrides) == [
        "++model.decoder_ffn_embed_dim=null",
        "++model.dropout=0.5",
        "++model.precision=auto",
    ]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"parts": "masks,steps,fun"}, "--parts masks,steps,fun: .*masks, fbank"),
        ({"batches": "4,x"}, "--batches 4,x"),
        ({"precision": "fp8"}, "--precision fp8: .*auto, float32"),
        ({"device": "tpu"}, "--device tpu"),
        ({"minutes": 0.0}, "--minutes 0"),
    ],
)
def test_rejects_invalid_options(arguments, message, tmp_path):
    given = {
        "parts": "masks",
        "batches": None,
        "precision": "auto",
        "device": "cpu",
        "out": tmp_path,
        "minutes": 1.0,
        "quick": True,
    }
    with pytest.raises(ValueError, match=message):
        bench(**{**given, **arguments})
    assert not list(tmp_path.iterdir())


@pytest.fixture(scope="module")
def quick_results(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """Run two parts in tiny sizes; return the folder and the output."""
    folder = tmp_path_factory.mktemp("bench")
    names = "masks,lengths"
    done = subprocess.run(
        [sys.executable, "-m", "mae_ast.bench", "--quick", "--parts", names, "--out", str(folder)],
        capture_output=True,
        text=True,
        timeout=400,
        env={**os.environ, "CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stdout + done.stderr
    (results,) = folder.iterdir()
    return results, done.stdout


@pytest.mark.slow
def test_command_writes_table_json_and_plot(quick_results):
    folder, output = quick_results
    assert folder.name.startswith("quick_")  # not to be mistaken for a measurement
    assert sorted(path.name for path in folder.iterdir()) == [
        "lengths.png",
        "results.json",
        "results.md",
    ]
    results = report.read_results(folder)
    assert list(results["parts"]) == ["masks", "lengths"]
    assert results["versions"]["torch"] == torch.__version__.partition("+")[0]
    assert "GiB" in results["hardware"]
    assert "bench --quick --parts masks,lengths" in results["command"]
    assert "measuring the CPU" in output
    assert "about " in output.splitlines()[2]  # expected minutes, printed before measuring
    count = len(results["parts"]["masks"]["rows"])
    assert f"masks {count}/{count}" in output
    assert (folder / "results.md").read_text() in output + "\n"


@pytest.mark.slow
def test_each_row_holds_a_measurement(quick_results):
    results = report.read_results(quick_results[0])
    rows = {name: part["rows"] for name, part in results["parts"].items()}
    assert {row["name"] for row in rows["masks"]} == {
        *("random_mask", "random_mask_batched", "chunk_mask", "retain_spans"),
    }
    for row in rows["masks"]:
        assert 0 < row["min_s"] <= row["median_s"] <= row["max_s"]
    for row in rows["lengths"]:
        assert row["flops_per_s"] == row["batch"] * row["flops_per_clip"] / row["median_s"]
        assert row["share_of_matrix_rate"] == row["flops_per_s"] / row["matrix_flops_per_s"]
        assert row["peak_gib"] > 0.1  # the process with its libraries
        assert row["clips_per_s"] == pytest.approx(row["batch"] / row["median_s"])
    assert [row["sweep"] for row in rows["lengths"]] == ["length", "ratio"]


@pytest.mark.parametrize("name", ["fbank", "decoding"])
def test_cases_of_a_part_are_measured(name, tmp_path):
    part, quick = parts.PARTS[name], setting(tmp_path, quick=True)
    rows = [part.measure(case, quick) for case in part.cases(quick)]
    for row in rows:
        assert 0 < row["min_s"] <= row["median_s"] <= row["max_s"]
    names = [row["name"] for row in rows]
    assert len(names) == len(set(names)) == {"fbank": 2, "decoding": 8}[name]


def test_plot_shows_measured_and_counted_values():
    row = {
        "name": "10 s",
        "sweep": "length",
        "clip_s": 10.0,
        "batch": 2,
        "flops_per_clip": 1e9,
        "median_s": 0.5,
        "optimizer_s": 0.1,
        "peak_gib": 2.0,
        "predicted_peak_gib": 1.9,
        "precision": "float32",
        "config": {"random_mask_prob": 0.75, "encoder_layers": 12, "decoder_layers": 2},
    }
    longer = {**row, "clip_s": 20.0, "flops_per_clip": 3e9, "median_s": 1.2}
    failed = {"name": "120 s", "sweep": "length", "error": "out of memory"}
    figure = report.lengths_figure([row, longer, failed])
    measured, counted = figure.axes[0].lines
    assert figure.get_suptitle() == "MAE-AST patch, 12 + 2 layers, 2 clips, float32, dropout 0"
    assert list(measured.get_ydata()) == [0.5, 1.2]
    assert list(counted.get_ydata()) == pytest.approx([0.5, 1.3])  # 0.1 + 3 * 0.4


def test_clips_are_packed_and_layers_compiled(tmp_path, monkeypatch):
    compiled = []
    monkeypatch.setattr(steps, "compile_layers", compiled.append)
    rows_of = []
    monkeypatch.setattr(steps, "RowCollater", lambda *given: rows_of.append(given) or Row(*given))
    given = setting(tmp_path, quick=True)
    measured = [steps.measure_step(case, given) for case in steps.form_cases(given)]
    assert [
        (row["name"], row["batching"], row["form"], row["num_patches"]) for row in measured
    ] == [
        ("MAE-AST patch, 12 layers", "cropped", "eager", 96),
        ("MAE-AST frame, 12 layers", "packed", "compiled", 99),
    ]
    assert len(compiled) == len(rows_of) == 1
    for row in measured:
        assert row["clips_per_s"] == pytest.approx(2 / row["median_s"])
        assert row["median_s"] > 0


# --- errors ---------------------------------------------------------------------------------------


def test_a_failed_case_is_reported_and_the_others_run(tmp_path, monkeypatch):
    said: list[str] = []
    case = {"name": "unknown mask", "way": "a batch at once", "batch": 2}
    cases = [case, *kernels.mask_cases(setting(tmp_path))[:1]]
    part = Part("Masks", "", lambda _: cases, kernels.measure_masks, (), lambda _: 1.0)
    monkeypatch.setitem(parts.PARTS, "masks", part)  # the worker has its own registry
    measured = dict(
        suite.run_parts(
            ["masks"], setting(tmp_path, quick=True), 100, tmp_path / "log", said.append
        )
    )
    failed, good = measured["masks"].rows
    assert failed["error"] == "KeyError: 'unknown mask'"
    assert good["median_s"] > 0
    assert said[0] == "masks 1/2: unknown mask: FAILED, KeyError: 'unknown mask'"
    lines = report.table(parts.PARTS["masks"], [failed])
    assert "- unknown mask, 2 clips: KeyError: 'unknown mask'" in lines


def test_only_the_case_of_a_dead_process_fails(tmp_path, monkeypatch):
    script = tmp_path / "python"
    script.write_text(
        "#!/bin/sh\nread request\n"
        'case "$request" in *\'"cases": [{"name": "first"\'*) exit 9;; esac\n'
        'echo \'@{"name": "second"}\'\n'
    )
    script.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(script))
    cases = [{"name": "first"}, {"name": "second"}]
    part = Part("Some", "", lambda _: cases, lambda case, _: case, (), lambda _: 1.0)
    monkeypatch.setitem(parts.PARTS, "some", part)
    measured = dict(suite.run_parts(["some"], setting(tmp_path), 100, tmp_path / "log", print))
    first, second = measured["some"].rows
    assert "status 9" in first["error"]
    assert second == {"name": "second"}


def test_out_of_memory_is_a_result(tmp_path, monkeypatch):
    def refuse(*args: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 900 GiB")

    monkeypatch.setattr(steps, "build_config", refuse)
    case = steps.step_cases(setting(tmp_path))[0]
    assert steps.measure_step(case, setting(tmp_path)) == {**case, "error": "out of memory"}


def test_cases_after_the_time_limit_are_skipped(tmp_path):
    measured = dict(suite.run_parts(["masks"], setting(tmp_path), -1, tmp_path / "log", print))
    assert {row["error"] for row in measured["masks"].rows} == {"skipped: time limit reached"}


def test_parts_of_an_earlier_run_are_kept(tmp_path):
    def run(name: str) -> dict:
        row = {"name": "x", "error": "no"}
        results = {name: suite.Measured([row], 1.0)}
        return report.write_results(tmp_path, results, setting(tmp_path), ["mae-ast", "bench"])

    run("fbank")
    assert list(run("masks")["parts"]) == ["masks", "fbank"]


def test_rejects_files_without_results(tmp_path):
    with pytest.raises(FileNotFoundError, match="mae-ast bench"):
        report.read_results(tmp_path)
    (tmp_path / "results.json").write_text(json.dumps([1]))
    with pytest.raises(ValueError, match="holds no results"):
        report.read_results(tmp_path)


def test_missing_values_are_empty_cells():
    assert Column("ms", "s", ".1f", 1000).show({"s": 0.0123}) == "12.3"
    assert Column("ms", "s", ".1f", 1000).show({}) == ""


def test_columns_show_three_significant_digits():
    flops = Column("GFLOP", "n", ".0f", 1e-9)
    shown = [flops.show({"n": n}) for n in (0.0, 0.0123e9, 4.567e9, 45.67e9, 113.4e9, 1234.5e9)]
    assert shown == ["0", "0.0123", "4.57", "45.7", "113", "1234"]
    assert Column("ms", "s", ".2f").show({"s": 3.456789}) == "3.46"


def test_versions_name_this_package_even_if_not_installed(tmp_path, monkeypatch):
    def version(name: str) -> str:
        raise PackageNotFoundError(name)

    monkeypatch.setattr(machine, "version", version)
    found = report.write_results(tmp_path, {}, setting(tmp_path), ["mae-ast", "bench"])["versions"]
    assert found["mae-ast"] == mae_ast_package.__version__
    assert found["numpy"] == "not installed"


# A command whose worker measures the part "masks" immediately and hangs in the second case of
# "fbank", in a child process.
WORKER = """#!/bin/sh
read request
echo '@{"name": "first"}'
case "$request" in *'"part": "masks"'*) echo '@{"name": "second"}'; exit;; esac
sleep 300 & echo $! > FOLDER/child
echo "waiting for $!" >&2
wait
"""
COMMAND = """
import signal, sys
signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored in a background job
from mae_ast.bench import parts
from mae_ast.bench.setting import Part
from mae_ast.cli.main import main
cases = [{"name": "first"}, {"name": "second"}]
for name in ("masks", "fbank"):
    parts.PARTS[name] = Part(name, "", lambda _: cases, lambda case, _: case, (), lambda _: 1.0)
sys.executable = "FOLDER/worker"
main()
"""


def is_running(pid: int) -> bool:
    try:
        status = Path(f"/proc/{pid}/stat").read_text()
    except FileNotFoundError:
        return False
    return status.rpartition(")")[2].split()[0] != "Z"


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_command_keeps_its_results(number, tmp_path):
    worker = tmp_path / "worker"
    worker.write_text(WORKER.replace("FOLDER", str(tmp_path)))
    worker.chmod(0o755)
    command = COMMAND.replace("FOLDER", str(tmp_path))
    given = ["bench", "--parts", "masks,fbank", "--device", "cpu", "--out", str(tmp_path / "out")]
    process = subprocess.Popen(
        [sys.executable, "-c", command, *given],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1"},
    )
    lines = iter(process.stdout.readline, "")
    said = next((line for line in lines if line.startswith("fbank 1/2")), None)
    if said is None:
        pytest.fail(process.communicate()[1])
    child = tmp_path / "child"
    while not child.exists() or not child.read_text().strip():
        time.sleep(0.01)
    process.send_signal(number)
    _, error = process.communicate(timeout=60)
    (results,) = (tmp_path / "out").iterdir()
    assert process.returncode == 1
    assert error.splitlines() == [
        f"mae-ast: interrupted; results so far are in {results}. Measure the rest with "
        "--parts fbank"
    ]
    measured = report.read_results(results)["parts"]
    assert measured["masks"]["rows"] == [{"name": "first"}, {"name": "second"}]
    assert measured["fbank"]["rows"] == [
        {"name": "first"},
        {"name": "second", "error": "skipped: interrupted"},
    ]
    assert "skipped: interrupted" in (results / "results.md").read_text()
    assert not is_running(int(child.read_text()))


def test_a_part_with_skipped_cases_does_not_replace_a_complete_one(tmp_path):
    def run(*rows: dict) -> list[dict]:
        measured = {"masks": suite.Measured(list(rows), 1.0)}
        command = ["mae-ast", "bench"]
        written = report.write_results(tmp_path, measured, setting(tmp_path), command)
        return written["parts"]["masks"]["rows"]

    skipped = {"name": "b", "error": "skipped: time limit reached"}
    assert run({"name": "a"}, skipped) == [{"name": "a"}, skipped]
    assert run({"name": "a"}, {"name": "b"}) == [{"name": "a"}, {"name": "b"}]
    assert run({"name": "a"}, skipped) == [{"name": "a"}, {"name": "b"}]
    failed = {"name": "b", "error": "KeyError: 'b'"}
    assert run({"name": "c"}, failed) == [{"name": "c"}, failed]


def test_unreadable_results_are_reported_before_measuring(tmp_path):
    given = ["--quick", "--parts", "masks", "--device", "cpu", "--out", str(tmp_path)]
    folder = report.results_folder(tmp_path, setting(tmp_path, quick=True))
    folder.mkdir()
    (folder / "results.json").write_text('{"parts": ')
    done = CliRunner().invoke(app, ["bench", *given])
    assert isinstance(done.exception, ValueError)
    assert str(done.exception) == f"{folder}/results.json: holds no results of 'mae-ast bench'"
    assert not done.output


def test_seconds_per_update_exclude_the_warm_up():
    lines = [
        {"timestamp": f"2026-01-01T10:00:{time}+00:00", "kind": kind, "num_updates": number}
        for number, time, kind in (
            *((1, "00.000", "train_inner"), (2, "30.250", "train_inner")),
            *((3, "32.250", "train_inner"), (4, "34.250", "train_inner"), (4, "59.000", "train")),
        )
    ]
    assert training.seconds_per_update(lines, 2) == 2.0
    with pytest.raises(RuntimeError, match="fewer than two"):
        training.seconds_per_update(lines[:1], 1)


@pytest.mark.slow
def test_training_from_files_and_with_synthetic_batches(tmp_path, monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    quick = setting(tmp_path, quick=True)
    rows = [training.measure_training(case, quick) for case in training.training_cases(quick)]
    assert [row["name"] for row in rows] == ["from FLAC", "synthetic batches"]
    assert all(row["clips_per_s"] > 0 for row in rows)
    logged = [path.read_text() for path in sorted(tmp_path.glob("run_*.log"))]
    assert all('"num_updates": "4"' in text for text in logged)
