"""Report what a command wrote, and the files that it skipped."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from mae_ast.core.io.plural import plural

if TYPE_CHECKING:
    from mae_ast.prepare.splits import Prepared

MAX_LISTED = 10  # maximum number of reasons for skipping files to print


def report_skipped(skipped: Iterable[tuple[str, str]], report: Path) -> None:
    """Print the most common reasons, with an example each.

    Args:
        skipped: path and reason of each file.
        report: file that lists all of them.
    """
    listed = list(skipped)
    if not listed:
        return
    typer.echo(f"skipped {plural(len(listed), 'file')}, listed in {report}:", err=True)
    examples = {problem: path for path, problem in reversed(listed)}
    counts = Counter(problem for _, problem in listed)
    for problem, count in counts.most_common(MAX_LISTED):
        typer.echo(f"  {count} x {problem} (such as {examples[problem]})", err=True)


def report_prepared(done: Prepared) -> None:
    """Print the splits of a prepared data set, and its missing and skipped clips."""
    from mae_ast.prepare.clips import SKIPPED_FILE
    from mae_ast.prepare.splits import MISSING_FILE

    for split in done.splits:
        clips, hours = plural(split.clips, "clip"), split.seconds / 3600
        line = f"{done.out / split.name}.tsv: {clips}, {hours:.2f} h"
        if done.num_classes:
            of = f"{split.classes} of " if split.classes < done.num_classes else ""
            line += f", {of}{plural(done.num_classes, 'class', 'classes')}"
        typer.echo(line + (f", {split.missing} missing" if split.missing else ""))
    for note in done.notes:
        typer.echo(note)
    if done.missing:
        typer.echo(
            f"{plural(len(done.missing), 'clip')} missing, listed in {done.out / MISSING_FILE}",
            err=True,
        )
    report_skipped(done.skipped, done.out / SKIPPED_FILE)


def for_each_file(files: Sequence[Path], use: Callable[[int, Path], None]) -> None:
    """Process audio files; if there are several, report and skip unreadable ones.

    Args:
        files: the files.
        use: function of a file's index and path.

    Raises:
        AudioError, FileNotFoundError: the only file cannot be read.
        SystemExit: files were skipped.
    """
    from mae_ast.core.io.audio import AudioError

    num_skipped = 0
    for index, file in enumerate(files):
        try:
            use(index, file)
        except (AudioError, FileNotFoundError) as error:
            if len(files) == 1:
                raise
            typer.echo(f"{numbered(index, files)}skipped: {error}", err=True)
            num_skipped += 1
    if num_skipped:
        raise SystemExit(f"mae-ast: error: {num_skipped} of {len(files)} files skipped, see above")


def numbered(index: int, files: Sequence[Path]) -> str:
    """Return the number of a file and of all files, "2/5 "; nothing if there is only one."""
    return f"{index + 1}/{len(files)} " if len(files) > 1 else ""
