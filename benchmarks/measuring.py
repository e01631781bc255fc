"""What the benchmarks share: steps that take turns, memory, hardware in words, files of results.

Nothing of ``mae_ast`` is imported here: one of the benchmarks runs another package of that name.
"""

from __future__ import annotations

import os
import platform
import re
import resource
import shlex
import subprocess
import sys
import time
from collections.abc import Callable
from datetime import date
from pathlib import Path

import torch

RESULTS = Path(__file__).parent / "results"
# What a processor multiplies matrices with, the best first.
FEATURES = ("amx_bf16", "avx512_bf16", "avx512_f", "avx2")


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


def serve(step: Callable[[], object]) -> None:
    """Run a step for each line on standard input, and answer with its seconds; memory at the end.

    The first step is not counted: libraries prepare themselves, optimizers make their moments.
    """
    step()
    print("@ready", flush=True)
    for _ in sys.stdin:
        begin = time.perf_counter()
        step()
        print(f"@{time.perf_counter() - begin}", flush=True)
    print(f"@{peak_memory(resource.getrusage(resource.RUSAGE_SELF))}", flush=True)


def peak_memory(used: resource.struct_rusage) -> float:
    """The most memory that a process had, in GiB."""
    unit = 1 if sys.platform == "darwin" else 1024
    return used.ru_maxrss * unit / 2**30


def hardware() -> str:
    """The machine in words, with the versions that matter."""
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    return (
        f"{_processor()} ({_features()}), {torch.get_num_threads()} threads, {memory:.0f} GiB, "
        f"torch {torch.__version__}"
    )


def _processor() -> str:
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    found = [line.split(":")[1].strip() for line in lines if line.startswith("model name")]
    return found[0] if found else platform.processor() or platform.machine()


def _features() -> str:
    has = torch.cpu.get_capabilities()
    return next((name for name in FEATURES if has.get(name, False)), "no AVX2")


class Report:
    """What a benchmark prints, and keeps for its file of results.

    Args:
        title: of the file.
        about: what was measured, in a paragraph.
    """

    def __init__(self, title: str, about: str) -> None:
        self._head = f"# {title}\n\n{about}\n"
        self._lines: list[str] = []
        self.say(f"{date.today()}, {hardware()}")
        self.say()

    def say(self, line: str = "") -> None:
        """Print a line and keep it."""
        print(line, flush=True)
        self._lines.append(line)

    def write(self, name: str, folder: Path) -> Path:
        """Write ``{name}_{hardware}_{date}.md``; where."""
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / f"{name}_{_slug()}_{date.today()}.md"
        command = shlex.join(["python", f"benchmarks/{Path(sys.argv[0]).name}", *sys.argv[1:]])
        body = "\n".join(self._lines)
        path.write_text(f"{self._head}\n```\n{command}\n```\n\n{body}\n", encoding="utf-8")
        print(f"written: {path}")
        return path


def _slug() -> str:
    """Such as ``amd-epyc-avx512bf16-2cores``."""
    name = re.sub(r"\((R|TM)\)|\b(Processor|CPU)\b|@.*", " ", _processor(), flags=re.IGNORECASE)
    words = [*re.findall(r"[a-z0-9]+", name.lower()), _features().replace("_", "")]
    return "-".join((*words, f"{torch.get_num_threads()}cores")).replace(" ", "")
