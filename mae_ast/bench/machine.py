"""Describe the hardware and the versions of the software.

This file imports nothing from ``mae_ast``: a benchmark loads it next to another package of that
name.
"""

from __future__ import annotations

import os
import platform
import re
import resource
import subprocess
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch

from mae_ast.core.nn.precision import cpu_features

# Instruction sets for matrix products, the fastest first.
FEATURES = ("amx_bf16", "avx512_bf16", "avx512_f", "avx2")
PACKAGES = (
    *("torch", "torchaudio", "numpy", "soundfile", "av"),
    *("fairseq-fixed", "hydra-core", "omegaconf"),
)


def processor() -> str:
    """Return the name of the processor."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    found = [line.split(":")[1].strip() for line in lines if line.startswith("model name")]
    return found[0] if found else platform.processor() or platform.machine()


def features() -> str:
    """Return the fastest instruction set for matrix products that the processor supports."""
    has = cpu_features()
    return next((name for name in FEATURES if has.get(name, False)), "no AVX2")


def hardware(device: str = "cpu") -> str:
    """Describe the hardware, with the versions of torch and CUDA."""
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    threads = torch.get_num_threads()
    each = f"{threads} thread{'' if threads == 1 else 's'}"
    words = f"{processor()} ({features()}), {each}, {memory:.0f} GiB"
    if device == "cuda":
        card = torch.cuda.get_device_properties(0)
        has = f"{card.name}, {card.total_memory / 2**30:.0f} GiB, CUDA {torch.version.cuda}"
        words = f"{has}; {words}, {os.cpu_count()} cores"
    return f"{words}, torch {torch.__version__}"


def slug(device: str = "cpu") -> str:
    """Return a short name for files: ``amd-epyc-avx512bf16-2cores`` or ``nvidia-h200``."""
    if device == "cuda":
        return "-".join(_words(torch.cuda.get_device_name(0)))
    name = re.sub(r"\((R|TM)\)|\b(Processor|CPU)\b|@.*", " ", processor(), flags=re.IGNORECASE)
    instructions = features().replace("_", "").replace(" ", "")
    return "-".join((*_words(name), instructions, f"{torch.get_num_threads()}cores"))


def versions() -> dict[str, str]:
    """Return the versions of Python, CUDA and the packages that a benchmark depends on."""
    found = {"python": platform.python_version(), "cuda": str(torch.version.cuda)}
    for name in PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = "not installed"
    return found


def commit() -> str | None:
    """Return the commit of the checkout that contains this file; ``None`` outside a checkout."""
    git = ("git", "-C", str(Path(__file__).parent))
    # An installed package may lie in the checkout of another project, which does not track it.
    is_tracked = _run(*git, "ls-files", "--error-unmatch", Path(__file__).name)
    return is_tracked and _run(*git, "describe", "--always", "--dirty")


def peak_memory(used: resource.struct_rusage | None = None) -> float:
    """Return the peak memory in GiB, of this process or of one that has ended.

    Args:
        used: resources of the process that has ended; default: this process. On Linux they are at
            least the peak memory of the program that started it.
    """
    status = Path("/proc/self/status")
    if used is None and status.is_file():  # getrusage starts at the parent's peak, too
        found = re.search(r"^VmHWM:\s*(\d+) kB", status.read_text(), re.MULTILINE)
        if found is not None:
            return int(found[1]) / 2**20
    used = used or resource.getrusage(resource.RUSAGE_SELF)
    unit = 1 if sys.platform == "darwin" else 1024
    return used.ru_maxrss * unit / 2**30


def _run(*command: str) -> str | None:
    """Return the output of a program; ``None`` if there is none, or the program is missing."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    except FileNotFoundError:
        return None
    return done.stdout.strip() or None


def _words(name: str) -> list[str]:
    return re.findall(r"[a-z0-9]+", name.lower())
