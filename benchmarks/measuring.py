"""What the benchmarks share: steps that take turns, memory, hardware in words, files of results.

The package ``mae_ast`` is not imported here: one of the benchmarks runs another of that name.
"""

from __future__ import annotations

import importlib.util
import shlex
import subprocess
import sys
import time
from collections.abc import Callable
from datetime import date
from pathlib import Path
from types import ModuleType

import torch

RESULTS = Path(__file__).parent / "results"


def _load(path: Path) -> ModuleType:
    """A file as a module of its own: what ``import mae_ast`` finds may be another package."""
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


machine = _load(Path(__file__).parents[1] / "mae_ast" / "bench" / "machine.py")
hardware, peak_memory = machine.hardware, machine.peak_memory


class Side:
    """A step in a process of its own, which answers to :func:`serve`.

    Args:
        command: starts the process.
    """

    def __init__(self, command: list[str]) -> None:
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        self._answer()

    def step(self) -> float:
        """Seconds of one step."""
        assert self._process.stdin is not None
        self._process.stdin.write("\n")
        self._process.stdin.flush()
        return float(self._answer())

    def close(self) -> float:
        """End the process; the most memory that it had, in GiB."""
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
        raise SystemExit("a side of the comparison failed, see above")


def serve(step: Callable[[], object], device: str = "cpu") -> None:
    """Run a step for each line on standard input, and answer with its seconds; memory at the end.

    The first steps are not counted: libraries prepare themselves, optimizers make their moments.
    A step ends when the device has done all of it. On a GPU memory is what PyTorch allocated.
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


class Report:
    """What a benchmark prints, and keeps for its file of results.

    Args:
        title: of the file.
        about: what was measured, in a paragraph.
        device: that it ran on.
    """

    def __init__(self, title: str, about: str, device: str = "cpu") -> None:
        self._head = f"# {title}\n\n{about}\n"
        self._device = device
        self._lines: list[str] = []
        self.say(f"{date.today()}, {hardware(device)}")
        self.say()

    def say(self, line: str = "") -> None:
        """Print a line and keep it."""
        print(line, flush=True)
        self._lines.append(line)

    def write(self, name: str, folder: Path) -> Path:
        """Write ``{name}_{hardware}_{date}.md``; where."""
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / f"{name}_{machine.slug(self._device)}_{date.today()}.md"
        command = shlex.join(["python", f"benchmarks/{Path(sys.argv[0]).name}", *sys.argv[1:]])
        body = "\n".join(self._lines)
        path.write_text(f"{self._head}\n```\n{command}\n```\n\n{body}\n", encoding="utf-8")
        print(f"written: {path}")
        return path
