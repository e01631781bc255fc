"""``python -m mae_ast.bench.worker``: measure the cases read from standard input.

Input is one line with part, setting and cases. Output is one line per case: an @ and its row, with
"error" if it failed. All other output goes to the log of the suite.
"""

from __future__ import annotations

import json
import os
import sys

from mae_ast.bench.parts import PARTS
from mae_ast.bench.setting import Setting


def main() -> None:
    """Read a request, measure its cases and write their rows."""
    answers = os.fdopen(os.dup(sys.stdout.fileno()), "w")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())  # redirects the output of libraries
    request = json.loads(sys.stdin.readline())
    part, setting = PARTS[request["part"]], Setting(**request["setting"])
    for case in request["cases"]:
        try:
            row = part.measure(case, setting)
        except Exception as error:  # a failed case does not affect the others
            words = " ".join(str(error).split())[:300] or "no reason given"
            row = {**case, "error": f"{type(error).__name__}: {words}"}
        answers.write(f"@{json.dumps(row)}\n")
        answers.flush()


if __name__ == "__main__":
    main()
