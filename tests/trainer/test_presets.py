"""Presets compose the recorded settings, in stock fairseq, too; users compose their own."""

import re
import shutil
from copy import deepcopy
from glob import glob
from pathlib import Path

import pytest
from fairseq.dataclass.configs import FairseqConfig
from fairseq.dataclass.initialize import hydra_init
from hydra.core.config_store import ConfigStore
from omegaconf import OmegaConf

from mae_ast.bench.plan import compose_settings
from mae_ast.trainer.command import PACKAGE, config_dir, module_command, train_command
from mae_ast.trainer.presets import check_preset, compose_preset, read_preset

from . import preset_settings
from .conftest import LAUNCHER, TRAIN_PROGRAM, USER_DIR
from .forked import run_forked

RECORDED = preset_settings.read()
FILES = preset_settings.preset_files()


def expected(kind: str, name: str) -> preset_settings.Settings:
    """Return all settings of a preset; those that it does not set are fairseq's defaults."""
    defaults = preset_settings.flatten(OmegaConf.structured(FairseqConfig))
    return {**defaults, **RECORDED[kind, name]}


def test_all_presets_are_recorded():
    assert {(path.parent.name, path.stem) for path in FILES} == set(RECORDED)
    assert len(FILES) >= 23


@pytest.mark.parametrize("file", FILES, ids=lambda path: f"{path.parent.name}/{path.stem}")
def test_preset_has_the_recorded_settings(file):
    """After an intended change run ``python -m tests.trainer.preset_settings``."""
    hydra_init(file.stem)
    assert preset_settings.flatten(compose_preset(file)) == expected(file.parent.name, file.stem)


@pytest.mark.parametrize(("kind", "name"), [("pretrain", "audio_mae"), ("finetune", "ast_esc50")])
def test_stock_fairseq_shows_the_same_settings(kind, name):
    folder = preset_settings.CONFIG / kind
    user_dir = f"common.user_dir={USER_DIR}"
    done = run_forked(
        [TRAIN_PROGRAM, "--config-dir", folder, "--config-name", name, user_dir, "--cfg", "job"]
    )
    assert done.returncode == 0, done.stderr
    shown = preset_settings.flatten(OmegaConf.create(done.stdout))
    assert shown == {**expected(kind, name), "common.user_dir": str(USER_DIR)}


# --- presets of the user's own ------------------------------------------------------------------


def test_settings_written_to_one_file_are_a_preset(tmp_path):
    folder = tmp_path / "with space, comma"
    folder.mkdir()
    given = ["pretrain", "manifests", "--config", "ssast_frame", "--cfg", "job"]
    done = run_forked([*module_command("mae_ast"), *given], cwd=folder)
    assert done.returncode == 0, done.stderr
    assert list(folder.iterdir()) == []
    file = folder / "mine.yaml"
    file.write_text(done.stdout)
    command = train_command(folder / "manifests", str(file), folder, ["model.two_pass=true"])
    overrides = [each for each in command if re.match(r"(task|model|hydra\.searchpath)", each)]
    hydra_init("mine")
    composed = preset_settings.flatten(compose_preset(file, overrides))
    assert composed == {
        **expected("pretrain", "ssast_frame"),
        **{"common.user_dir": str(PACKAGE), "task.data": str(folder / "manifests")},
        "model.two_pass": True,
    }


def test_documented_preset_with_a_part_of_its_own(tmp_path):
    """``mae-ast`` finds the other parts in the package."""
    text = (preset_settings.CONFIG.parent / "docs" / "pretrain.md").read_text(encoding="utf-8")
    preset, part = re.findall(r"^```yaml\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)
    file = tmp_path / "mine.yaml"
    file.write_text(preset)
    (tmp_path / "recipe").mkdir()
    (tmp_path / "recipe" / "mine.yaml").write_text(part)
    composed = preset_settings.flatten(compose_settings(tmp_path, str(file), []))
    usual = preset_settings.flatten(compose_settings(tmp_path, "mae_ast", []))
    assert {key for key in usual if composed[key] != usual[key]} == {
        "optimization.max_update",
        "lr_scheduler.total_num_update",
    }
    assert composed["lr_scheduler.total_num_update"] == 100_000


# Of both kinds; what is tested depends on the folder and not on the preset.
@pytest.mark.parametrize("file", FILES[::5], ids=lambda path: f"{path.parent.name}/{path.stem}")
def test_copied_preset_finds_its_parts(file, tmp_path):
    copy = tmp_path / file.name
    shutil.copy(file, copy)
    command = train_command(tmp_path, str(copy), tmp_path, [], file.parent.name)
    search_path = [each for each in command if each.startswith("hydra.searchpath=")]
    assert read_preset(copy, search_path) == read_preset(file)


def test_search_path_of_the_user_is_kept(tmp_path):
    file = tmp_path / "mine.yaml"
    file.write_text("common: {seed: 1}\n")
    given = "hydra.searchpath=[file:///other]"
    command = train_command(tmp_path, str(file), tmp_path, [given])
    assert [each for each in command if "searchpath" in each] == [given]
    file.write_text("hydra: {searchpath: ['file:///other']}\n")
    assert "searchpath" not in " ".join(train_command(tmp_path, str(file), tmp_path, []))
    assert "searchpath" not in " ".join(train_command(tmp_path, "demo", tmp_path, []))


SELF_FIRST = "`defaults` must begin with _self_; now, fairseq's default replaces"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("defaults: [recipe: demo]", f"{SELF_FIRST} checkpoint.keep_interval_updates"),
        (
            "defaults: [recipe: demo, _self_]\ncheckpoint: {keep_interval_updates: 2}",
            f"{SELF_FIRST} checkpoint.no_epoch_checkpoints",
        ),
        ("common: [1,", "invalid YAML: while parsing a flow node expected the node content, but"),
        ("- common", "must be a YAML mapping of sections"),
    ],
)
def test_own_file_without_effect_is_refused(text, message, tmp_path):
    file = tmp_path / "mine.yaml"
    file.write_text(text)
    for _ in range(2):
        with pytest.raises(ValueError, match=f"^{re.escape(f'{file}: {message}')}"):
            compose_settings(tmp_path, str(file), [])


REPLACED = "{file}: replaced by later entries of `defaults`, which set other values: "


@pytest.mark.parametrize(
    ("text", "replaced"),
    [
        ("defaults: [_self_, recipe: demo]\ncommon: {seed: 2}\ntask: {data: x}", None),
        ("defaults: [_self_, recipe: demo]\ntask: {seed: '${common.seed}'}", None),
        ("defaults: [override hydra/launcher: basic]\ncommon: {log_interval: 2}", None),
        ("defaults: [network: demo]\ncommon: {log_interval: 2}", None),
        ("defaults: [_self_, nowhere]\ncommon: {seed: 2}", None),  # hydra names what is missing
        ("defaults:\nmodel: mae_ast\ncommon:", None),
        (
            "defaults: [_self_, network: demo]\nmodel: {encoder_layers: 2, dropout: 0.5}",
            "model.encoder_layers, model.dropout",
        ),
        (
            "defaults: [_self_, run_config: local]\ncommon: {log_interval: 5}",
            "common.log_interval",
        ),
    ],
)
def test_settings_that_parts_replace_are_named(text, replaced, tmp_path):
    file = tmp_path / "mine.yaml"
    file.write_text(text)
    command = train_command(tmp_path, str(file), tmp_path, [])
    expected = None if replaced is None else REPLACED.format(file=file) + replaced
    assert check_preset(file, command) == expected


def test_training_warns_about_settings_that_parts_replace(tmp_path):
    """Users may edit a preset where it is."""
    shutil.copytree(preset_settings.CONFIG / "finetune", tmp_path / "finetune")
    file = tmp_path / "finetune" / "esc50.yaml"
    assert check_preset(file) is None
    file.write_text(file.read_text() + "\noptimization:\n  lr: [0.001]\n")
    done = run_forked(
        [*LAUNCHER, "--config-dir", file.parent, "--config-name", "esc50", "--cfg", "job"],
        cwd=tmp_path,
    )
    warning = REPLACED.format(file=file) + "optimization.lr"
    assert done.stderr.splitlines() == [f"mae-ast: warning: {warning}"]
    assert OmegaConf.create(done.stdout).optimization.lr == [0.0001]


def test_part_is_no_preset():
    for name in ("recipe/esc50", "input/esc50", "run_config/local"):
        with pytest.raises(ValueError, match=f"^--config {name}: no such preset or file"):
            train_command(Path(), name, Path(), [], "finetune")


def test_wheel_has_all_parts_of_the_presets():
    """The pattern is that of setup.py."""
    setup = (preset_settings.CONFIG.parent / "setup.py").read_text(encoding="utf-8")
    assert '"mae_ast.config": "config"' in setup
    assert '"mae_ast.config": ["**/*.yaml"]' in setup
    matched = glob("**/*.yaml", root_dir=preset_settings.CONFIG, recursive=True)
    assert {"finetune/esc50.yaml", "finetune/recipe/esc50.yaml"} <= set(matched)
    files = [path for path in preset_settings.CONFIG.rglob("*") if path.is_file()]
    assert len(matched) == len(files)


def test_composed_settings_share_nothing_with_those_that_hydra_stores():
    """hydra's store is not copied, see ``share_config_store``; what is loaded from it is."""
    hydra_init("demo")
    file = config_dir() / "pretrain" / "demo.yaml"
    first = compose_preset(file)
    assert deepcopy(ConfigStore.instance()) is ConfigStore.instance()
    seed = first.common.seed
    first.common.seed = seed + 1
    assert compose_preset(file).common.seed == seed
