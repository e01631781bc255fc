"""Shared code of the benchmarks: steps in child processes, hardware, and result files.

The package ``mae_ast`` is not imported here, because two of the benchmarks run another package of
that name.
"""

from __future__ import annotations

import importlib.util
import json
import shlex
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterable
from datetime import date
from pathlib import Path
from types import ModuleType

import torch

REPOSITORY = Path(__file__).parents[2]
RESULTS = REPOSITORY / "benchmarks" / "results"


def _load(path: Path) -> ModuleType:
    """Load a module from its file, since ``import mae_ast`` may find another package."""
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


machine = _load(REPOSITORY / "mae_ast" / "bench" / "machine.py")
hardware, peak_memory = machine.hardware, machine.peak_memory


class Side:
    """A step that runs in a child process, which calls :func:`serve`.

    Args:
        command: command line of the process.
    """

    def __init__(self, command: list[str]) -> None:
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        self._answer()

    def step(self) -> float:
        """Run one step and return its seconds."""
        assert self._process.stdin is not None
        self._process.stdin.write("\n")
        self._process.stdin.flush()
        return float(self._answer())

    def close(self) -> float:
        """End the process and return its peak memory in GiB."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        peak = float(self._answer())
        self._process.wait()
        return peak

    def _answer(self) -> str:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            if line.startswith("@"):
                return line[1:].strip()
        raise SystemExit("a process of the comparison failed, see above")


def serve(step: Callable[[], object], device: str = "cpu") -> None:
    """Run a step for each line on standard input and print its seconds; at the end, peak memory.

    The first steps are a warm-up, in which libraries and optimizer states are initialised. A step
    includes synchronisation with the device. On a GPU, memory is the maximum that PyTorch
    allocated.
    """
    is_gpu = device == "cuda"
    for _ in range(3 if is_gpu else 1):
        step()
    print("@ready", flush=True)
    for _ in sys.stdin:
        begin = time.perf_counter()
        step()
        if is_gpu:
            torch.cuda.synchronize()
        print(f"@{time.perf_counter() - begin}", flush=True)
    peak = torch.cuda.max_memory_allocated() / 2**30 if is_gpu else peak_memory()
    print(f"@{peak}", flush=True)


def ratios_of(values: Iterable[float]) -> str:
    """Format ratios between steps of the same turn: median (minimum to maximum)."""
    ratios = list(values)
    return f"{statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})"


class Report:
    """Result of a benchmark, printed line by line and then written to a file.

    Args:
        title: heading of the file.
        about: paragraph that describes the measurement.
        device: device that was measured.
    """

    def __init__(self, title: str, about: str, device: str = "cpu") -> None:
        self._head = f"# {title}\n\n{about}\n"
        self._device = device
        self._lines: list[str] = []
        self.add(f"{date.today()}, {hardware(device)}")
        self.add()

    def add(self, line: str = "") -> None:
        """Print a line and add it to the file."""
        print(line, flush=True)
        self._lines.append(line)

    def write(self, name: str, folder: Path, values: object) -> Path:
        """Write ``{name}_{hardware}_{date}.md``, with all values as JSON, and return its path."""
        self.add(f"\n```json\n{json.dumps(values)}\n```")
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / f"{name}_{machine.slug(self._device)}_{date.today()}.md"
        command = shlex.join(
            ["python", f"scripts/benchmarks/{Path(sys.argv[0]).name}", *sys.argv[1:]]
        )
        body = "\n".join(self._lines)
        path.write_text(f"{self._head}\n```\n{command}\n```\n\n{body}\n", encoding="utf-8")
        print(f"written: {path}")
        return path
