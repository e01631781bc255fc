"""Presets compose the recorded settings, in stock fairseq, too."""

import subprocess

import pytest
from fairseq.dataclass.configs import FairseqConfig
from fairseq.dataclass.initialize import hydra_init
from omegaconf import OmegaConf

from mae_ast.trainer.presets import compose_preset

from . import preset_settings
from .conftest import TRAIN_PROGRAM, USER_DIR

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
    done = subprocess.run(
        [TRAIN_PROGRAM, "--config-dir", folder, "--config-name", name, user_dir, "--cfg", "job"],
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    shown = preset_settings.flatten(OmegaConf.create(done.stdout))
    assert shown == {**expected(kind, name), "common.user_dir": str(USER_DIR)}
