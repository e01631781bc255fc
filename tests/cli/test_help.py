"""Help of the ``mae-ast`` command: groups, and the modules that it imports."""

from __future__ import annotations

import json
import subprocess
import sys

from typer.testing import CliRunner

from mae_ast.bench.parts import PARTS
from mae_ast.cli.bench import PART_NAMES
from mae_ast.cli.main import COMMANDS, GROUPS, app

# Packages that take long to import.
HEAVY = (
    *("torch", "torchaudio", "numpy", "av", "soundfile", "matplotlib", "sklearn", "fairseq"),
    *("hydra", "omegaconf", "huggingface_hub", "requests", "pooch", "yaml", "tqdm"),
)
# Prints the status of each command's help, and the heavy packages imported so far.
ALL_HELPS = """
import json, sys
from mae_ast.cli.main import main
heavy, names = map(json.loads, sys.argv[1:])
found = {}
for name in names:
    sys.argv = ["mae-ast", name, "--help"]
    try:
        main()
    except SystemExit as end:
        found[name] = [end.code, [each for each in heavy if each in sys.modules]]
print("@" + json.dumps(found))
"""


def command_names() -> list[str]:
    named = [command.__name__ for commands in COMMANDS.values() for command in commands]
    return [*named, *GROUPS]


def python(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, *arguments], capture_output=True, text=True, timeout=300, check=True
    )


def test_help_imports_nothing_heavy() -> None:
    done = python("-X", "importtime", "-m", "mae_ast", "--help")
    lines = [line for line in done.stderr.splitlines() if line.startswith("import time:")]
    imported = {line.rpartition("|")[2].strip().partition(".")[0] for line in lines}
    assert {"typer", "mae_ast"} <= imported
    assert imported.isdisjoint(HEAVY)
    assert "Usage:" in done.stdout


def test_help_of_a_command_imports_nothing_heavy() -> None:
    names = command_names()
    done = python("-c", ALL_HELPS, json.dumps(HEAVY), json.dumps(names))
    found = json.loads(done.stdout.rpartition("@")[2])
    assert found == {name: [0, []] for name in names}


def test_help_groups_the_commands() -> None:
    assert list(COMMANDS) == ["Data", "Train", "Evaluate", "Use a model", "Measure"]
    registered = {each.callback.__name__: each.rich_help_panel for each in app.registered_commands}
    assert registered == {
        command.__name__: panel for panel, commands in COMMANDS.items() for command in commands
    }
    assert {each.name: each.rich_help_panel for each in app.registered_groups} == {
        name: panel for name, (panel, _) in GROUPS.items()
    }
    said = CliRunner().invoke(app, ["--help"]).output
    places = [said.index(f"─ {panel} ─") for panel in COMMANDS]
    assert places == sorted(places)
    evaluate = said[places[2] : places[3]]
    assert all(name in evaluate for name in ("evaluate", "probe", "superb"))
    assert "pretrain" not in evaluate


def test_bench_lists_its_parts() -> None:
    assert tuple(PARTS) == PART_NAMES
