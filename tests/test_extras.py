"""Extras: commands without the packages that only an extra installs."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from mae_ast import console
from mae_ast.console import EXTRAS, advice, named_extras, require

REPOSITORY = Path(__file__).parents[1]
HIDDEN = sorted({module for modules in EXTRAS.values() for module in modules} - {"yaml"})

# Hides modules, and prints how each command ends: its status or its message.
HIDE = """
import json, sys
class Hidden:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in hidden:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
hidden = json.loads(sys.argv[1])
sys.meta_path.insert(0, Hidden())
"""
COMMANDS = f"""{HIDE}
from mae_ast.cli.main import main
found = {{}}
for line in json.loads(sys.argv[2]):
    sys.argv = ["mae-ast", *line.split()]
    try:
        main()
    except SystemExit as end:
        found[line] = end.code
print("@" + json.dumps(found))
"""
LAUNCH = f"{HIDE}\nimport mae_ast.launch"

NEEDS = {
    "pretrain DATA": "fairseq-fixed is not installed: pip install 'mae-ast[train]'",
    "finetune model.pt DATA --config esc50": "fairseq-fixed",
    "crossvalidate model.pt DATA --config esc50": "fairseq-fixed",
    "bench": "fairseq-fixed",
    "plan DATA": "matplotlib",
    "reconstruct model.pt a.wav": "matplotlib",
    "evaluate model.pt DATA": "matplotlib",
    "probe model.pt DATA/train.tsv": "scikit-learn is not installed: pip install 'mae-ast[train]'",
    "report runs/patch": "scikit-learn",
    "superb ks model.pt": "s3prl is not installed: pip install 'mae-ast[superb]'",
}


def run(program: str, *arguments: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", program, *map(json.dumps, arguments)],
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )


@pytest.mark.slow
def test_commands_name_the_extra_that_they_need(tmp_path: Path) -> None:
    lines = [line.replace("DATA", str(tmp_path)) for line in NEEDS]
    helps = ["--help", *(f"{line.split()[0]} --help" for line in NEEDS), "convert --help"]
    done = run(COMMANDS, HIDDEN, [*lines, *helps, "models"])
    found = json.loads(done.stdout.rpartition("@")[2])
    for line, text in zip(lines, NEEDS.values(), strict=True):
        assert found[line].startswith(f"mae-ast: error: {text} is not installed: pip") or (
            found[line] == f"mae-ast: error: {text}"
        )
        assert re.search(r"pip install 'mae-ast\[(train|superb)\]'$", found[line])
        assert "\n" not in found[line]
    assert [found[line] for line in [*helps, "models"]] == [0] * (len(helps) + 1)
    assert "Traceback" not in done.stderr


@pytest.mark.slow
@pytest.mark.parametrize("module", ["fairseq", "tensorboardX"])
def test_the_launcher_names_the_extra_that_it_needs(module: str) -> None:
    done = run(LAUNCH, [module])
    package = EXTRAS["train"][module]
    expected = f"mae-ast: error: {package} is not installed: pip install 'mae-ast[train]'\n"
    assert (done.returncode, done.stderr) == (1, expected)


def test_missing_modules_of_others_keep_their_traceback() -> None:
    with pytest.raises(ModuleNotFoundError), named_extras():
        raise ModuleNotFoundError("No module named 'mae_ast.nothing'", name="mae_ast.nothing")


def test_installed_modules_are_accepted_and_submodules_are_looked_for() -> None:
    require("matplotlib", "yaml.loader")
    with pytest.raises(
        ValueError, match=r"^PyYAML is not installed: pip install 'mae-ast\[train\]'"
    ):
        require("yaml.no_such_module")


def test_fairseq_is_not_offered_where_it_cannot_be_installed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(console.sys, "version_info", (3, 13, 0, "final", 0))
    assert advice("fairseq_cli.train") == (
        "fairseq-fixed is not installed: it needs Python 3.11 or 3.12, and this is 3.13"
    )
    assert advice("sklearn") == "scikit-learn is not installed: pip install 'mae-ast[train]'"


def test_the_table_has_all_packages_of_the_extras() -> None:
    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    light = names_of(project["dependencies"])
    for extra, modules in EXTRAS.items():
        required = names_of(project["optional-dependencies"][extra])
        assert set(modules.values()) <= required | light, extra
        known = {package for each in EXTRAS.values() for package in each.values()}
        # soxr is only imported by s3prl; torch requires fsspec
        unlisted = {"mae-ast", "soxr", "fsspec"}
        assert required - light - unlisted <= known, extra


def names_of(requirements: list[str]) -> set[str]:
    return {re.split(r"[\[=<>; ]", requirement)[0] for requirement in requirements}
