"""Build the documentation site into ``build/docs``; warnings, broken links and anchors are errors.

python -m scripts.docs.build        # from the repository's root; `make docs` runs it
"""

from __future__ import annotations

import re
import shutil
import subprocess
import sys

from scripts.docs.stage import REPOSITORY, stage

_COLOUR = re.compile(r"\x1b\[[0-9;]*m")


def main() -> int:
    """Assemble the pages and build them.

    Returns:
        Exit status, 0 without warnings; messages are printed as plain text.
    """
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
