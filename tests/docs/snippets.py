"""Run the code blocks of a Markdown page, in order, in a scratch folder.

- ``python`` blocks run in one namespace per page.
- In blocks without a language, and in ``bash`` and ``console`` blocks, each ``mae-ast`` command is
  parsed by the command itself. Those that train are not run at their size; their settings are
  composed by hydra instead. The others are run.
- ``<!-- not run: REASON -->`` before a block excuses it from being run. Its ``mae-ast`` commands
  are parsed all the same.
"""

from __future__ import annotations

import re
import shlex
import shutil
import subprocess
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import typer
from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra

from mae_ast.cli.main import app

REPOSITORY = Path(__file__).parents[2]
SHELL = ("", "bash", "console", "sh")
TRAINING = {
    "pretrain": "pretrain",
    "finetune": "finetune",
    "crossvalidate": "finetune",
}
ELSEWHERE = {  # programs that are not run here, and why
    "make": "installs, or runs for minutes; `make` itself is checked for the target",
    "pip": "installs packages",
    "torchrun": "starts several processes; tests/trainer/test_two_processes.py runs it",
    "srun": "needs SLURM",
    "docker": "needs Docker",
    "apptainer": "needs Apptainer",
    ".": "activates an environment",
}
PARSED_ONLY = {  # words of a command, and why it is not run
    "superb": "needs data of SUPERB",
    "bench": "takes minutes",
    "demo": "takes minutes",
    "onnx": "takes 15 s; tests/hub/test_export_onnx.py runs it",
}
DEFAULT_PRESETS = {"pretrain": "mae_ast", "finetune": "own"}
NOT_COMPOSED = ("hydra.", "hydra/", "+run_config=")
_OVERRIDE = re.compile(r"\+{0,2}[\w./]+=")
_BLOCK = re.compile(
    r"(?:^<!-- not run: (?P<excuse>[^>]+) -->\n+)?"
    r"^```(?P<language>\w*)[^\n]*\n(?P<code>.*?)^```",
    re.MULTILINE | re.DOTALL,
)


@dataclass(frozen=True)
class Block:
    """A code block: its language, text, line number, and why it is not run."""

    language: str
    code: str
    line: int
    excuse: str | None


def blocks(markdown: str) -> list[Block]:
    """Find the code blocks of a page."""
    return [
        Block(
            match["language"],
            match["code"],
            markdown.count("\n", 0, match.start("code")),
            match["excuse"],
        )
        for match in _BLOCK.finditer(markdown)
    ]


def command_lines(code: str) -> list[list[str]]:
    """Split a shell block into commands without comments, prompts and output."""
    is_console = re.search(r"^\$ ", code, re.MULTILINE) is not None
    found: list[list[str]] = []
    for line in code.replace("\\\n", " ").splitlines():
        if is_console and not line.startswith("$ "):
            continue
        text = line.removeprefix("$ ").replace("/data/", "data/")
        lexer = shlex.shlex(text, posix=True, punctuation_chars="&;")
        lexer.whitespace_split = True
        command: list[str] = []
        for word in [*lexer, ";"]:
            if set(word) <= set("&;"):
                if command:
                    found.append(command)
                command = []
            else:
                command.append(word)
    return found


class Page:
    """Runs the blocks of one page.

    Args:
        run: runs ``mae-ast`` with some arguments.
    """

    def __init__(self, run: Callable[..., None]) -> None:
        self.run = run
        self.namespace: dict[str, Any] = {}

    def run_block(self, block: Block, name: str) -> None:
        """Run a block, or parse it.

        Raises:
            AssertionError: a command is wrong.
        """
        if block.language == "python":
            if block.excuse is None:
                code = "\n" * block.line + block.code
                exec(compile(code, name, "exec"), self.namespace)
        elif block.language in SHELL:
            for command in command_lines(block.code):
                self._run_command(command, block.excuse is not None)

    def _run_command(self, command: list[str], is_excused: bool) -> None:
        program, *arguments = _without_loop(command)
        if program == "mae-ast":
            parse(arguments)
            name = arguments[0]
            if name in TRAINING:
                check_settings(TRAINING[name], arguments)
            elif not is_excused and not PARSED_ONLY.keys() & set(arguments):
                if name == "manifest":  # a reader has none yet
                    shutil.rmtree(arguments[arguments.index("--out") + 1], ignore_errors=True)
                self.run(*arguments)
        elif "mae-ast" in arguments and program != "pip":  # behind a launcher, such as torchrun
            assert program in ELSEWHERE, command
            self._run_command(arguments[arguments.index("mae-ast") :], True)
        elif program == "make":
            _check_targets(arguments)
        elif program == "cp":
            shutil.copy(*arguments)
        elif not is_excused:
            assert program in ELSEWHERE, f"{command}: not known how to run this here"


def _without_loop(command: list[str]) -> list[str]:
    """Reduce a part of a ``for`` loop on one line to its command, or to nothing known."""
    if command[0] == "do":
        return [word.replace("$n", "1") for word in command[1:]]
    return ["."] if command[0] in ("for", "done") else command


def parse(arguments: list[str]) -> None:
    """Parse a command's arguments as the command does.

    Raises:
        typer's UsageError: there is no such command or option, or something is missing.
    """
    group: Any = typer.main.get_command(app)
    parent = typer.Context(group, info_name="mae-ast")
    name, command, rest = group.resolve_command(parent, list(arguments))
    command.make_context(name, rest, parent=parent)


def check_settings(kind: str, arguments: list[str]) -> None:
    """Compose a training's settings from its preset.

    Raises:
        hydra's exceptions: there is no such preset or key, or a value does not parse.
    """
    named = arguments.index("--config") + 1 if "--config" in arguments else None
    preset = arguments[named] if named is not None else DEFAULT_PRESETS[kind]
    if preset.endswith(".yaml"):  # the reader's own file, with the keys of a preset
        preset = "mae_ast" if kind == "pretrain" else "esc50"
    is_sweep = "--multirun" in arguments
    overrides = [word for word in arguments if _OVERRIDE.match(word)]
    for override in overrides:
        if override.startswith("+run_config="):
            file = f"{override.partition('=')[2]}.yaml"
            assert (REPOSITORY / "config" / kind / "run_config" / file).is_file(), override
    wanted = [
        override.split(",")[0] if is_sweep else override
        for override in overrides
        if not override.startswith(NOT_COMPOSED)
    ]
    GlobalHydra.instance().clear()
    with initialize_config_dir(str(REPOSITORY / "config" / kind), version_base="1.1"):
        compose(preset, overrides=wanted)


def _check_targets(targets: list[str]) -> None:
    made = subprocess.run(
        ["make", "-n", *targets], cwd=REPOSITORY, capture_output=True, text=True, check=False
    )
    assert made.returncode == 0, made.stderr
