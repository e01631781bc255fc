"""Console output of a training, and the checks before a run creates any file."""

from __future__ import annotations

import json
import logging
import re
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest
import torch

from mae_ast.trainer.command import train_command
from mae_ast.trainer.console_filter import ConsoleFilter, ConsoleFormatter

from .classification import HERE
from .conftest import SMALL_DECODER, SMALL_ENCODER, SMALL_RUN, Training
from .forked import run_forked
from .test_ctrl_c import PROGRAM

LINE = re.compile(r"\[[\d-]+ [\d:]+,\d+\]\[([\w.]+)\]\[(\w+)\] - (.*)")
SHOWN = ("train_inner", "train", "valid")
# Fewer progress lines than updates, as in the presets.
SIXTY = (
    *("optimization.max_update=60", "common.log_interval=200", "dataset.num_workers=1"),
    *("dataset.validate_interval_updates=20", "checkpoint.save_interval_updates=20"),
)
TO_THE_LOG = ("Start iterating", "'max_update': 60", "(encoder)", "clips, ", "begin training epoch")


def mae_ast_command(*arguments: object) -> list[str]:
    program = "from mae_ast.cli.main import main; main()"
    return [sys.executable, "-c", program, *map(str, arguments)]


@pytest.fixture(scope="module")
def programs(
    corpus: Path, tones: Path, pretrained: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[dict[str, Training]]:
    """Run ``mae-ast pretrain`` and ``finetune`` at once, with 60 updates each."""
    folder = tmp_path_factory.mktemp("console")
    small = (*SMALL_ENCODER, *SMALL_DECODER, *SMALL_RUN)
    commands = {
        "pretrain": ("pretrain", corpus, "--out", folder / "pretrain", *small, *SIXTY),
        "finetune": (
            *("finetune", pretrained, tones, "--config", "demo", "--out", folder / "finetune"),
            *(*HERE, *SIXTY, "model.dropout=0.1"),
        ),
    }
    runs = {
        name: Training(mae_ast_command(*command), folder / f"{name}.console")
        for name, command in commands.items()
    }
    yield runs
    for run in runs.values():
        run.kill()


@pytest.mark.parametrize("name", ["pretrain", "finetune"])
def test_console_shows_only_summary_progress_and_checkpoints(
    programs: dict[str, Training], name: str
) -> None:
    run = programs[name].finish()
    lines = run.output.splitlines()
    assert 10 < len(lines) <= 40
    assert run.errors == ""
    matches = [LINE.fullmatch(line) for line in lines]
    assert all(matches), lines
    messages = [(m[1], m[3]) for m in matches if m]
    assert {logger for logger, _ in messages if not logger.startswith("mae_ast.")} == set(SHOWN)
    for logger, text in messages:
        if logger in SHOWN:
            json.loads(text)

    # First a summary, then progress within 10 updates, checkpoints, the end.
    summary = "pretraining mae_ast" if name == "pretrain" else "fine-tuning mae_ast for 3 classes"
    assert messages[0][1].startswith(summary)
    folder = run.log.with_suffix("") / "checkpoints"
    for part in ("60 updates", "CPU in ", "1 process", f"checkpoints in {folder}"):
        assert part in messages[0][1]
    assert [int(values["num_updates"]) for values in run.stats("train_inner")] == [10]
    assert int(run.stats("valid")[0]["valid_num_updates"]) == 20
    assert any(re.fullmatch(r"update 20: saved checkpoint\w*\.pt", text) for _, text in messages)
    end = rf"done: update 60; took [\d.]+ s; checkpoints in {re.escape(str(folder))}"
    assert re.fullmatch(end, messages[-1][1])


def test_clips_longer_than_a_batch_are_counted(corpus: Path, train_here, caplog) -> None:
    """One warning and the summary count them, instead of fairseq's warning in each epoch."""
    overrides = ("dataset.max_tokens=16000", "task.max_sample_size=null", "dataset.num_workers=0")
    train_here(corpus, "optimization.max_update=1", *overrides, "checkpoint.no_save=true")
    records = [record for record in caplog.records if ConsoleFilter().filter(record)]
    messages = [record.getMessage() for record in records]
    line = re.compile(r"; (\d) clips? of 26, the others longer than dataset.max_tokens \(")
    assert len(list(filter(line.search, messages))) == 1
    skipped = [text.split(":")[0] for text in messages if "clips are longer than" in text]
    assert skipped == [str(corpus / f"{split}.tsv") for split in ("train", "valid")]
    assert "invalid sizes" not in caplog.text


@pytest.mark.parametrize("name", ["pretrain", "finetune"])
def test_the_log_file_keeps_every_message_and_digit(
    programs: dict[str, Training], name: str
) -> None:
    """The console rounds floats to 4 significant digits."""
    run = programs[name].finish()
    log = (run.log.with_suffix("") / "hydra_train.log").read_text()
    for text in TO_THE_LOG:
        assert text in log
    logged = {m[0].removesuffix(m[3]): m[3] for m in LINE.finditer(log)}
    for line in run.log.read_text().splitlines():
        m = LINE.fullmatch(line)
        assert m
        full = logged[line.removesuffix(m[3])]
        if m[1] not in SHOWN:
            assert m[3] == full
            continue
        shown, exact = json.loads(m[3]), json.loads(full)
        assert shown.keys() == exact.keys()
        for key, value in exact.items():
            assert float(shown[key]) == pytest.approx(float(value), rel=5e-4)
            if "." in str(shown[key]):
                digits, _, _ = str(shown[key]).lstrip("0.").replace(".", "").partition("e")
                assert len(digits) <= 4, key
        assert len(full) > len(m[3])


@pytest.mark.parametrize(
    ("exact", "shown"),
    [
        (
            '{"loss": 6.389675140380859, "num_updates": "123456"}',
            '{"loss": 6.39, "num_updates": "123456"}',
        ),
        ("loss=14.622750282287598, lr=1.23456789e-05", "loss=14.62, lr=1.235e-05"),
        ("wps=1248.7, gnorm=-123456.78, clip=0.0", "wps=1249, gnorm=-123457, clip=0"),
    ],
)
def test_progress_lines_are_rounded(exact: str, shown: str) -> None:
    record = logging.LogRecord("train_inner", logging.INFO, "progress_bar.py", 1, exact, (), None)
    assert ConsoleFormatter("%(message)s").format(record) == shown
    assert logging.Formatter("%(message)s").format(record) == exact
    record = logging.LogRecord("mae_ast", logging.INFO, "training.py", 1, "1.23456", (), None)
    assert ConsoleFormatter("%(message)s").format(record) == "1.23456"


def test_info_nce_chance_is_logged(corpus: Path, train_here: Callable[..., list[dict]]) -> None:
    """All clips have the same length: 48 patches, 36 of them masked."""
    (values,) = train_here(
        corpus,
        *("optimization.max_update=1", "task.min_sample_size=16000", "dataset.num_workers=0"),
        *("checkpoint.no_save=true", "dataset.disable_validation=true"),
    )
    assert float(values["info_nce_chance"]) == pytest.approx(1 / 36, abs=1e-4)
    assert 0 <= float(values["info_nce_accuracy"]) < 0.3
    assert "accuracy" not in values


# --- refused before a file is created -----------------------------------------------------------


@pytest.fixture
def refusal(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., str]:
    """Return the line that refuses a run before it creates its folder."""
    from fairseq.dataclass.initialize import hydra_init
    from hydra import compose, initialize_config_dir
    from hydra.core.hydra_config import HydraConfig

    from mae_ast import plugin
    from mae_ast.console import user_errors
    from mae_ast.trainer import preflight

    plugin.register()
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    monkeypatch.setattr(HydraConfig.instance(), "cfg", None)

    def refusal(
        data: Path, *overrides: str, config: str = "mae_ast", kind: str = "pretrain"
    ) -> str:
        command = train_command(data, config, tmp_path / "run", list(overrides), kind)
        folder = command[command.index("--config-dir") + 1]
        wanted = command[command.index("--config-name") + 2 :]
        hydra_init(config)
        with initialize_config_dir(folder, version_base="1.1"):
            cfg = compose(config, overrides=wanted, return_hydra_config=True)
        with pytest.raises(SystemExit) as caught, user_errors():
            preflight.check(cfg)
        assert not (tmp_path / "run").exists()
        message = str(caught.value)
        assert message.startswith("mae-ast: error: ")
        assert "\n" not in message
        return message

    return refusal


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["model.encoder_layers=two"], "model.encoder_layers=two: a whole number is needed"),
        (["task.data=/no/such/folder"], "/no/such/folder/train.tsv: no such manifest"),
        (["dataset.valid_subset=test"], "test.tsv: no such manifest"),
        (["task.mask_type=retain_spans"], "retain_spans"),
        (["task.mask_type=holes"], "holes"),
        (["criterion.classification_weight=-1"], "criterion.classification_weight=-1"),
        (["checkpoint.best_checkpoint_metric=accuracy"], "info_nce_accuracy"),
        (["checkpoint.restore_file=/no/such.pt"], "/no/such.pt: no such file"),
        (["checkpoint.finetune_from_model=/no/such.pt"], "/no/such.pt"),
        (["dataset.max_tokens=null"], "dataset.max_tokens or dataset.batch_size"),
        (["task.min_sample_size=500000", "task.max_sample_size=null"], "min_sample_size=500000"),
        (["common.fp16=true"], "common.fp16=true needs a GPU"),
    ],
)
def test_pretraining_that_cannot_start_is_refused(
    corpus: Path, refusal: Callable[..., str], overrides: Sequence[str], words: str
) -> None:
    assert words in refusal(corpus, "task.min_sample_size=8000", *overrides)


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["model.checkpoint=/no/such.pt"], "/no/such.pt"),
        (["model.checkpoint=null"], "model.checkpoint"),
        (["model.pool=nothing"], "nothing"),
        (["checkpoint.best_checkpoint_metric=mAP"], "metric=mAP: validation logs loss, accuracy"),
    ],
)
def test_fine_tuning_that_cannot_start_is_refused(
    tones: Path,
    pretrained: Path,
    refusal: Callable[..., str],
    overrides: Sequence[str],
    words: str,
) -> None:
    arguments = (f"model.checkpoint={pretrained}", *overrides)
    assert words in refusal(tones, *arguments, config="demo", kind="finetune")


def test_checks_of_a_valid_run_have_no_effect(
    corpus: Path, tmp_path: Path, refusal: Callable[..., str]
) -> None:
    """They create no file and draw no random numbers."""
    before = torch.get_rng_state()
    with pytest.raises(pytest.fail.Exception, match="DID NOT RAISE"):
        refusal(corpus, "task.min_sample_size=8000", "common.cpu=true")
    assert torch.equal(torch.get_rng_state(), before)
    assert not (tmp_path / "run").exists()


def test_refused_programs_leave_no_folder(corpus: Path, tones: Path, tmp_path: Path) -> None:
    mistakes = {
        "manifest": ("pretrain", tmp_path / "nowhere"),
        "key": ("pretrain", corpus, "task.pad_audios=true"),
        "taken/run": ("pretrain", corpus, "task.min_sample_size=8000", *SMALL_ENCODER),
        "checkpoint": ("finetune", tmp_path / "no.pt", tones, "--config", "demo"),
    }
    (tmp_path / "taken").touch()
    outputs: dict[str, str] = {}
    for name, arguments in mistakes.items():
        done = run_forked([PROGRAM, *arguments, "--out", tmp_path / name])
        assert done.returncode == 1
        assert done.stdout == ""
        outputs[name] = done.stderr
    for name, text in outputs.items():
        (line,) = text.splitlines()
        assert line.startswith("mae-ast: error: ")
        assert not (tmp_path / name).exists()
    assert f"{tmp_path}/nowhere/train.tsv: no such manifest" in outputs["manifest"]
    assert (
        f"{tmp_path}/taken/run: is below a file; a folder is needed there" in outputs["taken/run"]
    )
    assert "task.pad_audios: there is no such setting" in outputs["key"]
    assert f"{tmp_path}/no.pt" in outputs["checkpoint"]


def test_feature_metrics_are_shown(corpus: Path, train_here, caplog) -> None:
    """They are logged under their own name, like progress."""
    overrides = (
        "task.probe_interval_updates=2",
        "dataset.num_workers=0",
        "checkpoint.no_save=true",
    )
    train_here(corpus, "optimization.max_update=2", "dataset.disable_validation=true", *overrides)
    (record,) = [record for record in caplog.records if record.name == "health"]
    assert ConsoleFilter().filter(record)
