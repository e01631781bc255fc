"""Console: progress, one-line errors, and the extra that a missing package belongs to."""

from __future__ import annotations

import errno
import linecache
import os
import sys
import traceback
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from importlib.util import find_spec
from time import monotonic
from types import TracebackType
from typing import Any, TypeVar

T = TypeVar("T")

_PACKAGES = ("mae_ast", "fairseq", "fairseq_cli")
LINE_INTERVAL_S = 10.0  # from one line of progress to the next where there is no terminal
_LINE = "{desc}: {percentage:.0f}% {n_fmt}/{total_fmt} [{elapsed}<{remaining}, {rate_fmt}{postfix}]"

_PYTHONS_OF_FAIRSEQ = ((3, 11), (3, 12))
# Extra to the modules that it installs, with the names of their packages.
EXTRAS = {
    "train": {
        "fairseq": "fairseq-fixed",
        "fairseq_cli": "fairseq-fixed",
        "hydra": "hydra-core",
        "omegaconf": "omegaconf",
        "yaml": "PyYAML",
        "tensorboardX": "tensorboardX",
        "matplotlib": "matplotlib",
        "sklearn": "scikit-learn",
        "scipy": "scipy",
        "sortedcontainers": "sortedcontainers",
        "threadpoolctl": "threadpoolctl",
    },
    "superb": {"s3prl": "s3prl"},
    "timm": {"timm": "timm", "torchvision": "torchvision"},
    "onnx": {"onnx": "onnx", "onnxscript": "onnxscript", "onnxruntime": "onnxruntime"},
    "remote": {"aiohttp": "aiohttp"},  # fsspec is there with torch
    "demo": {"espeakng_loader": "espeakng-loader"},
}
TRAINING = ("fairseq", "hydra", "omegaconf", "tensorboardX", "sklearn")


class ProgressLines:
    """Progress as lines on stderr, for log files: one every 10 s, and one at the end.

    It has those methods of ``tqdm.tqdm`` that this package uses.

    Args:
        desc: description at the start of each line.
        unit: noun in the singular, such as "clip".
        total: number of units to expect; ``None`` if unknown.
        initial: number of units done before.
        unit_scale: show numbers with metric prefixes, such as 65.5kB.
        delay: show nothing before this time, in seconds.
    """

    def __init__(
        self,
        desc: str,
        unit: str,
        total: int | None = None,
        initial: int = 0,
        unit_scale: bool = False,
        delay: float = 0.0,
    ) -> None:
        self.n = initial
        self._format: dict[str, Any] = {
            "prefix": desc,
            "unit": unit,
            "total": total,
            "initial": initial,
            "unit_scale": unit_scale,
            "bar_format": _LINE if total else None,
        }
        self._start = self._printed = monotonic()
        self._delay = delay
        self._is_closed = False

    def __enter__(self) -> ProgressLines:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def update(self, n: int = 1) -> None:
        """Count further units, and print a line if the last one is 10 s old."""
        self.n += n
        if monotonic() - self._printed >= LINE_INTERVAL_S:
            self._print()

    def set_postfix(self, values: Mapping[str, object]) -> None:
        """Show values at the end of the lines that follow."""
        self._format["postfix"] = ", ".join(f"{key}={value}" for key, value in values.items())

    def close(self) -> None:
        """Print the last line; calling it again does nothing."""
        if not self._is_closed:
            self._is_closed = True
            self._print()

    def _print(self) -> None:
        self._printed = monotonic()
        elapsed = self._printed - self._start
        if elapsed >= self._delay:
            from tqdm import tqdm  # not needed for the help

            line = tqdm.format_meter(self.n, elapsed=elapsed, **self._format)
            print(line, file=sys.stderr, flush=True)


def progress_bar(
    desc: str,
    unit: str,
    total: int | None = None,
    initial: int = 0,
    unit_scale: bool = False,
    delay: float = 0.0,
) -> Any:
    """Return a tqdm bar on a terminal, and :class:`ProgressLines`, whose arguments these are, else.

    Use it as a context, and call ``update(n)``.
    """
    if not sys.stderr.isatty():
        return ProgressLines(desc, unit, total, initial, unit_scale, delay)
    from tqdm import tqdm  # not needed for the help

    return tqdm(
        desc=desc, unit=unit, total=total, initial=initial, unit_scale=unit_scale, delay=delay
    )


def bar(desc: str, unit: str) -> Callable[[Iterable[T], int], Iterable[T]]:
    """Return a function of items and their number that shows progress over the iteration."""

    def wrap(items: Iterable[T], total: int) -> Iterator[T]:
        with progress_bar(desc, unit, total) as progress:
            for item in items:
                yield item
                progress.update()

    return wrap


def require(*modules: str) -> None:
    """Check that modules of an extra are installed, before work starts that needs them.

    Raises:
        ValueError: one is missing; the message has pip's command.
    """
    for module in modules:
        try:
            is_installed = find_spec(module) is not None
        except ModuleNotFoundError:  # of the package that it is part of
            is_installed = False
        if not is_installed:
            raise ValueError(advice(module))


@contextmanager
def named_extras() -> Iterator[None]:
    """Turn the error of a missing module into a ``ValueError`` that names its extra."""
    try:
        yield
    except ModuleNotFoundError as error:
        text = advice(error.name or "")
        if text is None:
            raise
        raise ValueError(text) from error


def advice(module: str) -> str | None:
    """Return what to install for a module; ``None`` if it belongs to no extra."""
    name = module.partition(".")[0]
    for extra, packages in EXTRAS.items():
        if name in packages:
            package, version = packages[name], sys.version_info
            if package == "fairseq-fixed" and version[:2] not in _PYTHONS_OF_FAIRSEQ:
                return (
                    f"{package} is not installed: it needs Python 3.11 or 3.12, and this is "
                    f"{version[0]}.{version[1]}"
                )
            return f"{package} is not installed: pip install 'mae-ast[{extra}]'"
    return None


@contextmanager
def user_errors() -> Iterator[None]:
    """Turn errors of the user's input, and missing extras, into one line that ends the program."""
    try:
        with named_extras():
            yield
    except (ValueError, OSError) as error:
        if not is_for_user(error):
            raise
        raise SystemExit(f"mae-ast: error: {describe(error)}") from error


def is_for_user(error: BaseException) -> bool:
    """Return ``True`` if the message of an error suffices; ``False`` if it may be a bug.

    ``raise`` statements of this package and of fairseq say what is wrong with the input, and the
    operating system names the file. Errors of other libraries, and of operations that failed, need
    their traceback.
    """
    if isinstance(error, OSError) and error.filename is not None:
        return True
    *_, (frame, line) = traceback.walk_tb(error.__traceback__)
    package = frame.f_globals.get("__name__", "").partition(".")[0]
    statement = linecache.getline(frame.f_code.co_filename, line, frame.f_globals)
    return package in _PACKAGES and statement.lstrip().startswith("raise")


def describe(error: Exception) -> str:
    """Return the message of an error; for errors of the operating system, path and reason."""
    if not isinstance(error, OSError) or error.filename is None or error.filename2 is not None:
        return str(error)
    if error.errno == errno.EEXIST and not os.path.isdir(error.filename):
        return f"{error.filename}: is a file; a folder is needed there"
    if error.errno == errno.ENOTDIR:
        return f"{error.filename}: is below a file; a folder is needed there"
    return f"{error.filename}: {error.strerror}"


def readable(size: int) -> str:
    """Format a number of bytes, such as 1.23GB."""
    from tqdm import tqdm  # not needed for the help

    return f"{tqdm.format_sizeof(size, divisor=1000)}B"
