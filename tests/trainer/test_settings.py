"""Presets list every key; messages about invalid keys and values say what to type."""

import ast
import json
import re
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest
from fairseq.dataclass.configs import FairseqConfig
from omegaconf import OmegaConf

from mae_ast.bench.plan import compose_settings
from mae_ast.plugin import register
from mae_ast.trainer.command import config_dir
from mae_ast.trainer.presets import read_preset
from mae_ast.trainer.settings import NAMED_SECTIONS, defaults_of

ROOT = Path(__file__).parents[2]
PRESETS = sorted(
    path for kind in ("pretrain", "finetune") for path in (config_dir() / kind).glob("*.yaml")
)


@cache
def keys_of(preset: Path) -> tuple[str, ...]:
    """List all keys of the dataclasses that a preset chooses, as ``section.key``."""
    register()
    settings = read_preset(preset)
    return tuple(
        f"{section}.{key}"
        for section in NAMED_SECTIONS
        for key in defaults_of(section, settings[section]["_name"])
        if key != "_name"
    )


@pytest.mark.parametrize("preset", PRESETS, ids=lambda path: f"{path.parent.name}/{path.stem}")
def test_preset_lists_exactly_the_keys_of_its_dataclasses(preset):
    listed = read_preset(preset)
    keys = [f"{s}.{key}" for s in NAMED_SECTIONS for key in listed[s] if key != "_name"]
    expected = keys_of(preset)
    assert set(keys) == set(expected), f"{preset.name} lacks {set(expected) - set(keys)}"
    for section in NAMED_SECTIONS:  # keys that copy other sections come last
        copied = [_follows_another(listed, key) for key in keys if key.startswith(f"{section}.")]
        assert copied == sorted(copied), section


def _follows_another(listed: dict, full_key: str) -> bool:
    section, key = full_key.split(".")
    return str(listed[section][key]).startswith("${")


def _names(keys: list[str], section: str) -> list[str]:
    return [key.split(".")[1] for key in keys if key.startswith(f"{section}.")]


STOCK = """
import json, sys
from fairseq.dataclass.initialize import hydra_init
from hydra import compose, initialize_config_dir
for folder, name, keys in json.loads(sys.stdin.read()):
    hydra_init(name)
    with initialize_config_dir(folder, version_base="1.1"):
        cfg = compose(name, overrides=[f"{key}=null" for key in keys])
    for key in keys:
        section, name = key.split(".")
        assert cfg[section][name] is None, key
assert "mae_ast" not in sys.modules
"""


def test_stock_fairseq_accepts_every_key_without_a_plus():
    """``fairseq-hydra-train`` composes in hydra's struct mode, before it imports the plug-in."""
    # One of the presets with the same keys, which the test above finds in their files.
    distinct = {(path.parent, keys_of(path)): path for path in PRESETS}
    assert len(distinct) >= 4
    wanted = [(str(path.parent), path.stem, keys_of(path)) for path in distinct.values()]
    done = subprocess.run(
        [sys.executable, "-c", STOCK],
        input=json.dumps(wanted),
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr


def documented_settings() -> list[tuple[str, str]]:
    """Read keys and defaults of the table of settings in docs/pretrain.md."""
    text = (ROOT / "docs" / "pretrain.md").read_text(encoding="utf-8")
    table = text.partition("\n## Settings\n")[2].partition("\n## ")[0]
    rows = [
        [cell.strip() for cell in row.split("|")[1:3]]
        for row in table.splitlines()
        if row.startswith("| `")
    ]
    return [
        (key.strip("` "), default.strip().replace("none", "null"))
        for keys, defaults in rows
        for key, default in zip(keys.split(","), defaults.split(","), strict=True)
    ]


def test_demo_accepts_every_documented_setting(tmp_path):
    rows = documented_settings()
    assert len(rows) >= 14
    assert ("task.pad_audio", "false") in rows
    settings = compose_settings(tmp_path, "demo", [f"{key}={value}" for key, value in rows])
    for key, value in rows:
        chosen = OmegaConf.select(settings, key)
        assert str(chosen).lower().removesuffix(".0") == value.replace("null", "none"), key


def keys_in_texts() -> dict[str, str]:
    """Find the settings that messages and help texts name, and the file of each."""
    sections = "|".join((*NAMED_SECTIONS, *FairseqConfig.__dataclass_fields__))
    pattern = re.compile(rf"(?<![\w./])({sections})\.([a-z_]\w+)(?![\w/(])")
    found = {}
    for path in (ROOT / "mae_ast").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Constant) and isinstance(node.value, str):
                for section, key in pattern.findall(node.value):
                    found[f"{section}.{key}"] = path.name
    return found


def test_messages_name_only_keys_that_exist():
    register()
    files = {"model.pt", "model.safetensors", "model.onnx", "checkpoint.best_loss_1"}
    named = {key: file for key, file in keys_in_texts().items() if key not in files}
    assert {"task.min_sample_size", "dataset.max_tokens", "model.precision"} <= named.keys()
    known = {key for preset in PRESETS for key in keys_of(preset)}
    known |= {f"{section}._name" for section in NAMED_SECTIONS}
    known |= {
        f"{section}.{key}"
        for section in FairseqConfig.__dataclass_fields__
        if section not in NAMED_SECTIONS
        for key in defaults_of(section, None)
    }
    assert {key: file for key, file in named.items() if key not in known} == {}


def composed(file: Path, *overrides: str) -> str:
    """Return the message that refuses settings."""
    with pytest.raises(ValueError, match=r"^[+\w.]+(\[\d+\])?(=\S+)?: ") as caught:
        compose_settings(file.parent, str(file), list(overrides))
    return str(caught.value)


def test_message_about_a_short_yaml_file_says_what_to_type(tmp_path):
    file = tmp_path / "mine.yaml"
    file.write_text(
        "task: {_name: mae_ast_pretraining, data: '???'}\n"
        "model: {_name: mae_ast, encoder_layers: 2}\n"
        "criterion: {_name: mae_ast}\n"
    )
    assert composed(file, "task.pad_audio=true") == (
        "task.pad_audio: mine.yaml does not list this key; type +task.pad_audio=VALUE to add it"
    )
    assert compose_settings(tmp_path, str(file), ["+task.pad_audio=true"]).task.pad_audio
    assert composed(file, "+model.encoder_layers=3") == (
        "+model.encoder_layers: mine.yaml lists this key already; type model.encoder_layers=VALUE, "
        "without the +"
    )


@pytest.mark.parametrize(
    ("override", "message"),
    [
        (
            "model.encoder_layer=3",
            "model.encoder_layer: there is no such setting of model._name=mae_ast; did you mean "
            "model.encoder_layers?",
        ),
        (
            "+model.encoder_layer=3",
            "model.encoder_layer: there is no such setting of model._name=mae_ast; did you mean "
            "model.encoder_layers?",
        ),
        (
            "dataset.max_token=3",
            "dataset.max_token: there is no such setting; did you mean dataset.max_tokens?",
        ),
        (
            "max_update=3",
            "max_update: there is no such setting; did you mean optimization.max_update?",
        ),
        (
            "encoder_layers=3",
            "encoder_layers: there is no such setting; did you mean model.encoder_layers?",
        ),
        ("modle.encoder_layers=3", "modle.encoder_layers: there is no such setting"),
        ("model.encoder_layers=two", "model.encoder_layers=two: a whole number is needed"),
        ("model.encoder_layers=2.5", "model.encoder_layers=2.5: a whole number is needed"),
        ("model.encoder_layers=null", "model.encoder_layers=null: a whole number is needed"),
        ("task.min_sample_size=none", "task.min_sample_size=none: a whole number or null is"),
        ("dataset.max_tokens=many", "dataset.max_tokens=many: a whole number or null is needed"),
        ("model.dropout=low", "model.dropout=low: a number is needed"),
        ("optimization.lr=[low]", "optimization.lr[0]=low: a number is needed"),
        ("optimization.lr=0.001", "optimization.lr=0.001: a list is needed, such as [0.001]"),
        ("task.random_crop=maybe", "task.random_crop=maybe: true or false is needed"),
    ],
)
def test_invalid_keys_and_values_end_in_one_line(override, message):
    assert composed(config_dir() / "pretrain" / "demo.yaml", override).startswith(message)


def test_another_name_drops_the_defaults_of_the_presets_one(tmp_path):
    """The keys of fairseq's ``adam`` are those of a preset of the user's own."""
    given = ["optimizer._name=mae_ast_adamw", "lr_scheduler._name=cosine"]
    settings = compose_settings(tmp_path, "mae_ast", [*given, "+optimizer.use_old_adam=false"])
    assert "use_old_adam" not in settings.optimizer
    assert "power" not in settings.lr_scheduler
    assert settings.lr_scheduler.warmup_updates == 32_000
    with pytest.raises(ValueError, match=r"^optimizer.use_old_adam: there is no such setting"):
        compose_settings(tmp_path, "mae_ast", [*given, "+optimizer.use_old_adam=true"])
