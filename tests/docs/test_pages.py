"""Links of README.md and other files outside the site, and the generated references."""

from __future__ import annotations

import dataclasses
import re
import tomllib
from functools import cache
from pathlib import Path

import pytest
import typer
from fairseq.models import MODEL_DATACLASS_REGISTRY
from fairseq.tasks import TASK_DATACLASS_REGISTRY

from mae_ast.cli.main import app
from scripts.docs import commands, configuration, stage
from scripts.docs.roles import without_roles
from scripts.docs.tables import prose

REPOSITORY = Path(__file__).parents[2]
OUTSIDE = ["README.md", *stage.INCLUDED]


def anchors(markdown: str) -> set[str]:
    """Anchors of headings, as GitHub and the site make them."""
    titles = re.findall(r"^#+ (.+)$", markdown, re.MULTILINE)
    return {re.sub(r"[^\w -]", "", title.lower()).strip().replace(" ", "-") for title in titles}


@pytest.mark.parametrize("file", OUTSIDE)
def test_links_outside_the_site_lead_somewhere(file):
    """The site's own are checked by its strict build, ``make docs``."""
    text = (REPOSITORY / file).read_text(encoding="utf-8")
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        if "://" in target:
            continue
        path, _, anchor = target.partition("#")
        linked = REPOSITORY / path if path else REPOSITORY / file
        assert linked.exists(), f"{file}: {target}"
        if anchor:
            assert anchor in anchors(linked.read_text(encoding="utf-8")), f"{file}: {target}"


def test_every_page_is_in_the_navigation():
    nav = tomllib.loads((REPOSITORY / "zensical.toml").read_text())["project"]["nav"]
    listed = set(re.findall(r"'([\w/-]+\.md)'", str(nav)))
    written = {
        path.relative_to(REPOSITORY / "docs").with_suffix(".md").as_posix()
        for suffix in ("md", "ipynb")
        for path in (REPOSITORY / "docs").rglob(f"*.{suffix}")
    }
    written |= {
        f"notebooks/{path.stem}.md" for path in (REPOSITORY / "docs/notebooks").glob("*.ipynb")
    }
    assert listed == written | stage.GENERATED.keys() | set(stage.INCLUDED.values())


def test_commands_are_all_described():
    reference = commands.reference()
    group = typer.main.get_command(app)
    context = typer.Context(group)
    found = {(name,): group.get_command(context, name) for name in group.list_commands(context)}
    for (name,), command in list(found.items()):
        below = getattr(command, "commands", {})
        found |= {(name, each): sub for each, sub in below.items()}
    assert ("prepare", "esc50") in found
    for names, command in found.items():
        name = " ".join(names)
        section = reference.partition(f"{{ #mae-ast-{'-'.join(names)} }}")[2].partition("\n##")[0]
        assert section, name
        for parameter in command.params:
            if parameter.param_type_name == "option" and not getattr(parameter, "hidden", False):
                assert parameter.opts[0] in section or parameter.name == "help", parameter.opts


def test_default_requirement_and_range_of_options():
    class Parameter:
        name = "fold"

        def get_help_record(self, context):
            return "--fold <int range>", "Fold to test on.  [default: 1; 1<=x<=5]"

    row = commands._row(Parameter(), None)
    assert row == ["`--fold`<br>int range", "`1`", "Fold to test on. `1<=x<=5`"]
    reference = commands.reference()
    section = reference.partition("#mae-ast-manifest }")[2].partition("\n### ")[0]
    (row,) = re.findall(r"^\| `--valid.*$", section, re.MULTILINE)
    assert row.split(" | ")[1] == "`0.01`"
    section = reference.partition("#mae-ast-convert }")[2].partition("\n### ")[0]
    (row,) = re.findall(r"^\| `--to`.*$", section, re.MULTILINE)
    assert row.split(" | ")[1] == "required"


@cache
def configuration_reference():
    return configuration.reference()


@pytest.mark.parametrize(
    ("section", "registry"),
    [("task", TASK_DATACLASS_REGISTRY), ("model", MODEL_DATACLASS_REGISTRY)],
)
def test_keys_are_all_described(section, registry):
    reference = configuration_reference()
    ours = {name: kind for name, kind in registry.items() if kind.__module__.startswith("mae_ast")}
    assert len(ours) >= 2
    for name, kind in ours.items():
        text = reference.partition(f"{{ #{section}-{name} }}")[2].partition("\n### ")[0]
        for field in dataclasses.fields(kind):
            if field.metadata.get("help"):
                row = re.search(rf"^\| `{section}\.{field.name}`.*$", text, re.MULTILINE)
                assert row, f"{section}.{field.name} of {name}"
                assert prose(field.metadata["help"]) in row[0]


def test_values_of_presets_are_named():
    reference = configuration_reference()
    text = reference.partition("{ #task-mae_ast_pretraining }")[2].partition("\n### ")[0]
    (row,) = re.findall(r"^\| `task\.max_sample_size`.*$", text, re.MULTILINE)
    assert "`mae_ast`: `250000`" in row
    assert "| `null` |" in row


@pytest.mark.parametrize(
    ("link", "folder", "page"),
    [
        ("[a](faq.md)", "docs", "[a](faq.md)"),
        ("[a](../CONTRIBUTING.md#layout)", "docs", "[a](contributing.md#layout)"),
        ("![a](drawings/ast.svg)", "docs", "![a](drawings/ast.svg)"),
        ("[a](docs/faq.md)", "", "[a](faq.md)"),
        ("[`a`](mae_ast/core/io/audio.py)", "", "`a`"),
        ("[a](https://x.org/y)", "", "[a](https://x.org/y)"),
        ("[a](nowhere.md)", "", "[a](nowhere.md)"),
    ],
)
def test_links_become_links_between_pages(link, folder, page):
    assert stage.relink(link, folder) == page


def test_a_folder_of_results_is_a_page():
    folder = next(path for path in (REPOSITORY / stage.RESULTS).iterdir() if path.is_dir())
    name = f"{stage.RESULTS}/{folder.name}"
    assert stage.relink(f"[a](../{name})", "docs") == f"[a]({name}/results.md)"


def test_roles_become_code():
    assert without_roles("see :func:`a.b` and :class:`~a.C`") == "see `a.b` and `C`"
