"""Run the demo: ``python -m scripts.demo`` is the same as ``mae-ast demo``."""

from __future__ import annotations

import sys

from mae_ast.cli.main import main

if __name__ == "__main__":
    sys.argv.insert(1, "demo")
    main()
