"""Generate the command reference from the `mae-ast` command itself."""

from __future__ import annotations

import re
from typing import Any

import typer

from mae_ast.cli.main import app
from scripts.docs.tables import code, prose, table

HEADER = """\
# Commands

`mae-ast COMMAND --help` prints the same. Where the script `mae-ast` is not on the path,
`python -m mae_ast` does the same. An error is one line, with exit status 1.

"""
_NOTES = re.compile(r"\s*\[([^\[\]]+)\]$")  # what typer appends: default, requirement, range


def reference() -> str:
    """Describe all commands, grouped as in ``mae-ast --help``."""
    group = typer.main.get_command(app)
    context = typer.Context(group, info_name="mae-ast")
    panels: dict[str, list[tuple[str, Any]]] = {}
    for name in group.list_commands(context):
        command = group.get_command(context, name)
        if not command.hidden:
            panels.setdefault(_panel(command), []).append((name, command))
    overview = table(
        ["command", ""],
        (
            [f"[`{name}`](#mae-ast-{name})", prose(_summary(command))]
            for members in panels.values()
            for name, command in members
        ),
    )
    sections = []
    for panel, members in panels.items():
        sections.append(f"## {panel}\n")
        for name, command in members:
            sections += _sections([name], command, context)
    return HEADER + overview + "\n" + "\n".join(sections)


def _panel(command: Any) -> str:
    panel = getattr(command, "rich_help_panel", None)
    return panel if isinstance(panel, str) else "All commands"


def _summary(command: Any) -> str:
    return _paragraphs(command)[0]


def _paragraphs(command: Any) -> list[str]:
    return [" ".join(part.split()) for part in (command.help or "").split("\n\n")]


def _sections(names: list[str], command: Any, parent: Any) -> list[str]:
    """Describe a command, and those below it."""
    context = typer.Context(command, info_name=names[-1], parent=parent)
    below = getattr(command, "commands", {})
    found = [_section(names, command, context)]
    for name, each in below.items():
        found += _sections([*names, name], each, context)
    return found


def _section(names: list[str], command: Any, context: Any) -> str:
    usage = command.get_usage(context).removeprefix("Usage: ")
    if command.context_settings.get("allow_extra_args") and not hasattr(command, "commands"):
        usage += " [KEY=VALUE ...]" if names != ["superb"] else " [-- ARGUMENTS OF S3PRL]"
    level = "#" * (2 + len(names))
    parts = [
        f"{level} mae-ast {' '.join(names)} {{ #mae-ast-{'-'.join(names)} }}\n",
        "\n\n".join(prose(paragraph) for paragraph in _paragraphs(command)) + "\n",
        f"```text\n{' '.join(usage.split())}\n```\n",
    ]
    rows = [row for parameter in command.params if (row := _row(parameter, context))]
    if rows:
        parts.append(table(["argument or option", "default", ""], rows))
    return "\n".join(parts)


def _row(parameter: Any, context: Any) -> list[str] | None:
    record = parameter.get_help_record(context)
    if record is None or parameter.name == "help":
        return None
    names, text = record
    notes = _NOTES.search(text)
    default, further = "", []
    if notes is not None:
        text = text[: notes.start()]
        for note in notes[1].split("; "):
            if note.startswith("default: "):
                default = code(note.removeprefix("default: "))
            elif note == "required":
                default = "required"
            else:
                further.append(code(note))
    name, _, values = names.removesuffix(">").partition(" <")
    shown = code(name) + (f"<br>{prose(values.replace('|', ' | '))}" if values else "")
    return [shown, default, " ".join([prose(text), *further])]
