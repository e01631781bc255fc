"""Execute the notebooks of the documentation, and turn them into pages.

``python -m scripts.docs.notebooks FILE OUT KEY=VALUE...`` executes a notebook with other parameters
in the current folder, and writes it with its outputs to ``OUT``; for example

    python -m scripts.docs.notebooks docs/notebooks/use-a-model.ipynb out.ipynb 'MODEL="demo/run"'

Values are Python expressions. Cells with the tag ``install`` are skipped.
"""

from __future__ import annotations

import base64
import io
import json
import re
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).parents[2] / "docs" / "notebooks"
INSTALL, PARAMETERS = "install", "parameters"  # tags of cells
HOSTED_FOLDER = "/content"  # shown instead of the folder of the execution, as in hosted notebooks
MAX_WIDTH = 1000  # of a stored image
MAX_LINES, LAST_LINES = 16, 4  # that are stored of what a cell prints, and those at its end

_CONTROL = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")
_OVERWRITTEN = re.compile(r"[^\n]*\r(?!\n)")  # earlier states of a progress bar


def execute(notebook: dict[str, Any], parameters: Iterable[str], folder: Path) -> None:
    """Execute a notebook in this process, and replace its outputs.

    Args:
        notebook: contents of an ``.ipynb`` file; changed in place.
        parameters: assignments that run after the cell with the tag ``parameters``.
        folder: working folder, which this process already has.

    Raises:
        Exception: of a cell.
    """
    from IPython.core.displayhook import DisplayHook
    from IPython.core.interactiveshell import InteractiveShell
    from IPython.display import display
    from IPython.utils.capture import capture_output

    class Hook(DisplayHook):
        def __call__(self, result: Any = None) -> None:
            """Show the value of a cell's last expression, unless it ends in a semicolon."""
            if result is not None and not self.quiet():
                display(result)

    class Shell(InteractiveShell):
        displayhook_class = Hook

        def enable_gui(self, gui: Any = None) -> None:
            """Do nothing: plots are shown in the notebook."""

    shell = Shell.instance()
    count = 0
    for cell in notebook["cells"]:
        if cell["cell_type"] != "code" or INSTALL in tags(cell):
            continue
        count += 1
        with capture_output() as captured:
            result = shell.run_cell("".join(cell["source"]))
        if not result.success:
            sys.stderr.write(captured.stdout)
        result.raise_error()
        shown = [_displayed(each.data, folder) for each in captured.outputs]
        text = _printed(captured.stdout, folder)
        printed = [{"output_type": "stream", "name": "stdout", "text": text}] if text else []
        cell |= {"execution_count": count, "outputs": printed + shown}
        if PARAMETERS in tags(cell):
            shell.run_cell("\n".join(parameters)).raise_error()


def page(notebook: Mapping[str, Any], name: str) -> tuple[str, dict[str, bytes]]:
    """Turn an executed notebook into Markdown.

    Args:
        notebook: contents of ``NAME.ipynb``.
        name: its name, for links.

    Returns:
        The page, and the contents of its images by file name.
    """
    parts: list[str] = []
    images: dict[str, bytes] = {}
    for cell in notebook["cells"]:
        source = "".join(cell["source"])
        if cell["cell_type"] == "markdown":
            parts.append(source)
            if len(parts) == 1:
                parts.append(f"[Download this notebook]({name}.ipynb)")
            continue
        parts.append(f"```python\n{source}\n```")
        for output in cell["outputs"]:
            parts.append(_shown(output, name, images))
    return "\n\n".join(part for part in parts if part) + "\n", images


def tags(cell: Mapping[str, Any]) -> list[str]:
    """Return the tags of a cell."""
    found: list[str] = cell["metadata"].get("tags", [])
    return found


def _displayed(data: Mapping[str, Any], folder: Path) -> dict[str, Any]:
    """Return an output of a cell as notebooks store it."""
    stored: dict[str, Any] = {}
    for kind, value in data.items():
        if isinstance(value, bytes):
            value = base64.b64encode(value).decode()  # the inline plots are text already
        if kind == "image/png":
            stored[kind] = base64.b64encode(_small(base64.b64decode(value))).decode()
        else:
            stored[kind] = value.replace(str(folder), HOSTED_FOLDER).splitlines(keepends=True)
    return {"output_type": "display_data", "data": stored, "metadata": {}}


def _small(png: bytes) -> bytes:
    """Return an image with at most ``MAX_WIDTH`` columns and 64 colours, a third of the bytes."""
    from PIL import Image

    image = Image.open(io.BytesIO(png)).convert("RGB")
    if image.width > MAX_WIDTH:
        image = image.resize((MAX_WIDTH, round(image.height * MAX_WIDTH / image.width)))
    out = io.BytesIO()
    image.quantize(64, dither=Image.Dither.NONE).save(out, "PNG", optimize=True)
    return out.getvalue()


def _printed(text: str, folder: Path) -> list[str]:
    """Return printed lines without control characters and the machine's paths."""
    text = _CONTROL.sub("", text).replace("\r\n", "\n").replace(str(folder), HOSTED_FOLDER)
    lines = _OVERWRITTEN.sub("", text).splitlines(keepends=True)
    if len(lines) > MAX_LINES:
        lines[MAX_LINES - LAST_LINES : -LAST_LINES] = ["...\n"]
    return lines


def _shown(output: Mapping[str, Any], name: str, images: dict[str, bytes]) -> str:
    """Return the Markdown of an output; add its image, if any, to ``images``."""
    if output["output_type"] == "stream":
        return _text("".join(output["text"]))
    data = output["data"]
    if "image/png" in data:
        file = f"{name}_{len(images) + 1}.png"
        images[file] = base64.b64decode("".join(data["image/png"]))
        return f"![Plot]({file})"
    if "text/html" in data:
        html = re.sub(r"\n\s*", "\n", "".join(data["text/html"])).strip()
        return f"<div>\n{html}\n</div>"
    return _text("".join(data["text/plain"]))


def _text(text: str) -> str:
    return f"```text\n{text.rstrip()}\n```" if text.strip() else ""


def main(arguments: list[str]) -> None:
    """Execute a notebook here, and write it with its outputs."""
    source, out, *parameters = arguments
    notebook = json.loads(Path(source).read_text(encoding="utf-8"))
    target = Path(out).absolute()
    execute(notebook, parameters, Path.cwd())
    text = json.dumps(notebook, indent=1, ensure_ascii=False)
    target.write_text(f"{text}\n", encoding="utf-8")


if __name__ == "__main__":
    main(sys.argv[1:])
