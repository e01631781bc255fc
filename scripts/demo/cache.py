"""On-disk cache of demo results, keyed by their inputs."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from mae_ast.core.io.atomic import atomic_write

Results = dict[str, Any]


def cached(
    path: Path,
    inputs: Mapping[str, Any],
    compute: Callable[[], Results],
    files: Iterable[Path] = (),
) -> Results:
    """Return the cached results, or compute them if their inputs have changed.

    Args:
        path: JSON file of inputs and results. One of an older format counts as absent.
        inputs: everything that the results depend on.
        compute: called without arguments if there is no valid entry; its ``minutes`` are added to
            the results.
        files: other files that ``compute`` writes; if one is missing, the results are recomputed.
    """
    if path.is_file() and all(file.is_file() for file in files):
        entry = json.loads(path.read_text(encoding="utf-8"))
        if entry.get("inputs") == inputs:
            results: Results = entry["results"]
            return results
    started = time.monotonic()
    results = compute()
    results["minutes"] = round((time.monotonic() - started) / 60, 2)
    write_json(path, {"inputs": inputs, "results": results})
    return results


def write_json(path: Path, values: Mapping[str, Any]) -> None:
    """Write indented JSON atomically."""
    with atomic_write(path) as part:
        part.write_text(json.dumps(values, indent=1) + "\n", encoding="utf-8")
