"""Every code block of README.md and docs/*.md that can run here is run."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

import pytest
import torch

from mae_ast.cli import main as command
from tests.docs import scratch
from tests.docs.snippets import ELSEWHERE, Page, blocks, command_lines, parse

REPOSITORY = Path(__file__).parents[2]
PAGES = ["README.md", *sorted(f"docs/{path.name}" for path in (REPOSITORY / "docs").glob("*.md"))]
PAGES = [page for page in PAGES if "```" in (REPOSITORY / page).read_text(encoding="utf-8")]


def run_here(*arguments: str) -> None:
    """Run ``mae-ast`` in this process."""
    given, sys.argv = sys.argv, ["mae-ast", *arguments]
    status: object = None
    try:
        command.main()
    except SystemExit as end:
        status = end.code
    finally:
        sys.argv = given
    assert not status, f"mae-ast {' '.join(arguments)}: {status}"


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("scratch")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        scratch.make(folder, run_here)
    return folder


@pytest.fixture
def here(prepared: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of the scratch folder, as the working folder."""
    folder = tmp_path / "here"
    shutil.copytree(prepared, folder, symlinks=True)
    monkeypatch.chdir(folder)
    monkeypatch.setenv("MAE_AST_CACHE", str(folder / "cache"))
    monkeypatch.setattr(torch.hub, "_check_repo_is_trusted", lambda *_: None)
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("page", PAGES)
def test_blocks_of_a_page_run(page: str, here: Path) -> None:
    runner = Page(run_here)
    for block in blocks((REPOSITORY / page).read_text(encoding="utf-8")):
        runner.run_block(block, page)


def test_wrong_option_is_noticed() -> None:
    with pytest.raises(Exception, match="--ot"):
        parse(["manifest", "clips", "--ot", "manifests"])


@pytest.mark.slow
@pytest.mark.parametrize(
    ("line", "word"),
    [
        ("mae-ast pretrain manifests --out runs/x model.encoder_layer=6", "encoder_layer"),
        ("mae-ast finetune model.pt manifests --config esc51 --out runs/x", "esc51"),
        ("mae-ast extract runs/patch manifests/train.tsv features --layer 13", "13"),
        ("mae-ast nothing", "nothing"),
        ("make nothing", "nothing"),
        ("nothing", "nothing"),
    ],
)
def test_wrong_command_is_noticed(line: str, word: str, here: Path) -> None:
    page = Page(run_here)
    (block,) = blocks(f"```\n{line}\n```\n")
    with pytest.raises(BaseException, match=word):  # typer's, hydra's, or an assertion
        page.run_block(block, "page.md")


def test_python_blocks_share_a_namespace_and_know_their_line() -> None:
    page = Page(run_here)
    first, second = blocks("```python\nx = 1\n```\n\n```python\nassert x == 2\n```\n")
    page.run_block(first, "page.md")
    with pytest.raises(AssertionError) as error:
        page.run_block(second, "page.md")
    assert (str(error.traceback[-1].path).endswith("page.md"), error.traceback[-1].lineno) == (
        True,
        5,
    )


def test_excused_blocks_are_parsed_but_not_run() -> None:
    calls: list[tuple[str, ...]] = []
    (block,) = blocks("<!-- not run: a reason -->\n```\nmae-ast models\n```\n")
    assert block.excuse == "a reason"
    Page(lambda *arguments: calls.append(arguments)).run_block(block, "page.md")
    assert not calls


def test_commands_of_a_block() -> None:
    code = "a b \\\n  c  # comment\n$ x /data/y && z\n"
    assert command_lines("a b \\\n  c  # comment\nd\n") == [["a", "b", "c"], ["d"]]
    assert command_lines(code) == [["x", "data/y"], ["z"]]
    assert all(ELSEWHERE.values())
