"""Optional dependencies: the extra of this package that a missing module belongs to."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec

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
    },
    "superb": {"s3prl": "s3prl"},
    "timm": {"timm": "timm", "torchvision": "torchvision"},
    "onnx": {"onnx": "onnx", "onnxscript": "onnxscript", "onnxruntime": "onnxruntime"},
    "demo": {"espeakng_loader": "espeakng-loader"},
}


TRAINING = ("fairseq", "hydra", "omegaconf", "tensorboardX", "sklearn")


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
