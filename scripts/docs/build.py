"""Build the documentation site into ``build/docs``: ``python -m scripts.docs.build``.

Warnings, broken links and broken anchors are errors. ``make docs`` runs it.
"""

from __future__ import annotations

import logging
import re
import shutil
import subprocess
import sys

_COLOUR = re.compile(r"\x1b\[[0-9;]*m")


def main() -> int:
    """Assemble the pages and build them.

    Returns:
        Exit status, 0 without warnings; messages are printed as plain text.
    """
    logging.basicConfig(level=logging.WARNING)  # else fairseq sets DEBUG when it is imported
    from scripts.docs.stage import REPOSITORY, stage

    stage()
    # Its cache can keep pages of an earlier build.
    shutil.rmtree(REPOSITORY / ".cache", ignore_errors=True)
    zensical = [sys.executable, "-m", "zensical", "build", "--clean", "--strict"]
    built = subprocess.run(zensical, cwd=REPOSITORY, capture_output=True, text=True, check=False)
    # Faults in docstrings are warnings that --strict does not count.
    messages = _COLOUR.sub("", built.stdout + built.stderr)
    print(messages.partition("Traceback (most recent call last)")[0].strip())
    return built.returncode or int(re.search(r"^griffe: ", messages, re.MULTILINE) is not None)


if __name__ == "__main__":
    sys.exit(main())
