"""Shell completion of the ``mae-ast`` command."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

COMMAND = Path(sys.executable).with_name("mae-ast")


def complete(*words: str) -> list[str]:
    """Return what bash would offer for the last word."""
    environment = {
        **os.environ,
        "_MAE_AST_COMPLETE": "complete_bash",
        "COMP_WORDS": " ".join(("mae-ast", *words)),
        "COMP_CWORD": str(len(words)),
    }
    done = subprocess.run([COMMAND], capture_output=True, text=True, env=environment, timeout=120)
    assert done.stderr == ""
    return done.stdout.split()


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (("pre",), ["prepare", "predict", "pretrain"]),
        (("finetune", "--ran"), ["--random-weights"]),
        (("finetune", "--config", "audio_mae_e"), ["audio_mae_esc50"]),
        (("pretrain", "--config", "ssast"), ["ssast_frame", "ssast_patch"]),
        (("extract", "mae"), ["mae_ast_patch", "mae_ast_frame"]),
        (("convert", "a.pt", "out", "--to", "s"), ["safetensors"]),
    ],
)
def test_bash_completes(words: tuple[str, ...], expected: list[str]) -> None:
    assert sorted(complete(*words)) == sorted(expected)


def test_completion_can_be_shown_and_installed(tmp_path: Path) -> None:
    def run(option: str) -> str:
        # Typer asks for the parent process, which must be a shell: "; true" keeps bash there.
        done = subprocess.run(
            ["bash", "-c", f"'{COMMAND}' {option}; true"],
            capture_output=True,
            text=True,
            env={**os.environ, "HOME": str(tmp_path)},
            timeout=120,
        )
        assert done.stderr == ""
        return done.stdout

    script = run("--show-completion")
    assert "_MAE_AST_COMPLETE=complete_bash" in script
    assert "complete -o default" in script
    assert list(tmp_path.iterdir()) == []
    assert "bash completion installed" in run("--install-completion")
    (installed,) = (tmp_path / ".bash_completions").iterdir()
    assert installed.read_text().strip() == script.strip()
    assert str(installed) in (tmp_path / ".bashrc").read_text()
