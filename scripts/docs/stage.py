"""Assemble the sources of the documentation site: hand-written, included and generated pages.

``python -m scripts.docs.stage`` writes ``build/docs-source``, the folder of pages in zensical.toml:

- ``docs/`` as it is, and a page for each notebook;
- CONTRIBUTING.md, CHANGELOG.md, SECURITY.md and BENCHMARKS.md, and the folder of measured results;
- the command reference and the configuration reference, from the code.

Links between files of the repository become links between pages. Links to files that have no page,
such as source code, become plain text.
"""

from __future__ import annotations

import json
import posixpath
import re
import shutil
from pathlib import Path

from scripts.docs import commands, configuration, notebooks

REPOSITORY = Path(__file__).parents[2]
TARGET = REPOSITORY / "build" / "docs-source"
RESULTS = "benchmarks/results"
INCLUDED = {  # file of the repository: page
    "CONTRIBUTING.md": "contributing.md",
    "CHANGELOG.md": "changelog.md",
    "SECURITY.md": "security.md",
    "BENCHMARKS.md": "measurements.md",
}
GENERATED = {"commands.md": commands.reference, "configuration.md": configuration.reference}

_LINK = re.compile(r"(?P<image>!?)\[(?P<text>[^\]]*)\]\((?P<target>[^)\s#]+)(?P<anchor>#[^)]*)?\)")


def relink(markdown: str, folder: str) -> str:
    """Turn links between files of the repository into links between pages of the site.

    Args:
        markdown: contents of a file.
        folder: the file's folder, relative to the repository's root (``"docs"`` or ``""``).

    Returns:
        The contents, for a page at the root of the site.
    """

    def page_link(match: re.Match[str]) -> str:
        target = match["target"]
        if "://" in target or target.startswith("mailto:"):
            return match[0]
        path = posixpath.normpath(posixpath.join(folder, target))
        if path.startswith("docs/"):
            page = path.removeprefix("docs/").replace(".ipynb", ".md")
        elif path in INCLUDED:
            page = INCLUDED[path]
        elif path.startswith(RESULTS + "/"):
            page = f"{path}/results.md" if (REPOSITORY / path).is_dir() else path
        elif (REPOSITORY / path).exists():
            return match["text"]
        else:
            return match[0]  # the strict build names it
        return f"{match['image']}[{match['text']}]({page}{match['anchor'] or ''})"

    return _LINK.sub(page_link, markdown)


def stage(target: Path = TARGET) -> None:
    """Write the sources of all pages into a folder, which is emptied first."""
    shutil.rmtree(target, ignore_errors=True)
    shutil.copytree(REPOSITORY / "docs", target)
    shutil.copytree(REPOSITORY / RESULTS, target / RESULTS)
    for page in target.glob("*.md"):  # pages in subfolders link to pages only
        page.write_text(relink(page.read_text(encoding="utf-8"), "docs"), encoding="utf-8")
    for path in (target / "notebooks").glob("*.ipynb"):
        text, images = notebooks.page(json.loads(path.read_text(encoding="utf-8")), path.stem)
        path.with_suffix(".md").write_text(text, encoding="utf-8")
        for name, content in images.items():
            path.with_name(name).write_bytes(content)
    for source, page in INCLUDED.items():
        text = (REPOSITORY / source).read_text(encoding="utf-8")
        (target / page).write_text(relink(text, ""), encoding="utf-8")
    for page, generate in GENERATED.items():
        (target / page).write_text(generate(), encoding="utf-8")


if __name__ == "__main__":
    stage()
