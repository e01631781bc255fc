"""``python -m mae_ast.bench.worker``: measures the cases that come on standard input.

One line in: part, setting, cases. One line out a case, after an @: its row, with "error" where it
failed. What else is printed goes to the suite's log.
"""

from __future__ import annotations

import json
import os
import sys

from mae_ast.bench.parts import PARTS
from mae_ast.bench.setting import Setting


def main() -> None:
    """Measure and answer."""
    answers = os.fdopen(os.dup(sys.stdout.fileno()), "w")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())  # whatever libraries print
    request = json.loads(sys.stdin.readline())
    part, setting = PARTS[request["part"]], Setting(**request["setting"])
    for case in request["cases"]:
        try:
            row = part.measure(case, setting)
        except Exception as error:  # a case that fails leaves the others alone
            words = " ".join(str(error).split())[:300] or "no reason given"
            row = {**case, "error": f"{type(error).__name__}: {words}"}
        answers.write(f"@{json.dumps(row)}\n")
        answers.flush()


if __name__ == "__main__":
    main()
