"""Install the wheel without extras into fresh environments, and check it there.

    python -m scripts.light_install             # on each Python 3.10 to 3.13 that is there
    python -m scripts.light_install --linked    # on this Python, in seconds

Nothing may be compiled: pip takes wheels only. With ``--linked``, the dependencies are not
downloaded and unpacked (gigabytes) but linked from this environment, which must have them: those
that the wheel requires, directly or not, and no others. ``tests/light/check.py`` is then run there.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from importlib.metadata import Distribution, distribution
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[1]
CHECK = ROOT / "tests" / "light" / "check.py"
PYTHONS = ("3.10", "3.11", "3.12", "3.13")


def main() -> None:
    """Parse the arguments, and build, install and check."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--linked", action="store_true", help="link this environment's packages")
    parser.add_argument("--constraints", type=Path, help="file for pip's -c")
    parser.add_argument("--python", action="append", help="version of Python, such as 3.12")
    given = parser.parse_args()
    pythons = [sys.executable] if given.linked else list(find_pythons(given.python or PYTHONS))
    if not pythons:
        sys.exit(f"no Python of {', '.join(given.python or PYTHONS)} found")
    with tempfile.TemporaryDirectory(prefix="mae_ast_light_") as folder:
        wheel = build_wheel(Path(folder))
        for python in pythons:
            start = time.perf_counter()
            environment = Path(folder, "environment")
            install(wheel, python, environment, given.linked, given.constraints)
            print(f"{python}: installed in {time.perf_counter() - start:.0f} s", flush=True)
            work = Path(folder, "work")
            work.mkdir()
            subprocess.run([environment / "bin" / "python", "-I", CHECK], cwd=work, check=True)
            shutil.rmtree(environment)
            shutil.rmtree(work)


def find_pythons(versions: tuple[str, ...] | list[str]) -> Iterator[str]:
    """Find an interpreter for each version, on the PATH or among pyenv's; report missing ones."""
    for version in versions:
        pyenv = Path(os.environ.get("PYENV_ROOT", Path.home() / ".pyenv"), "versions")
        places = [f"python{version}", *sorted(map(str, pyenv.glob(f"{version}.*/bin/python")))]
        program = "import ensurepip, sys, venv; print('%d.%d' % sys.version_info[:2])"
        for place in filter(None, map(shutil.which, places)):
            done = subprocess.run(
                [place, "-c", program], capture_output=True, text=True, check=False
            )
            if done.stdout.strip() == version:
                yield place
                break
        else:
            print(f"Python {version}: not found, not checked", flush=True)


def build_wheel(folder: Path) -> Path:
    """Build the project's wheel in a folder, with this environment's setuptools."""
    shutil.rmtree(ROOT / "build" / "lib", ignore_errors=True)  # modules that were removed since
    pip = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation"]
    subprocess.run([*pip, "--wheel-dir", folder, ROOT], check=True)
    (wheel,) = folder.glob("mae_ast-*.whl")
    return wheel


def install(
    wheel: Path, python: str, environment: Path, linked: bool, constraints: Path | None
) -> None:
    """Make a virtual environment and install the wheel alone, without a compiler.

    Raises:
        CalledProcessError: pip failed; its messages are on the console.
    """
    subprocess.run([python, "-m", "venv", environment], check=True)
    options: list[str | Path] = ["--only-binary=:all:"]
    if linked:
        (site,) = environment.glob("lib/python*/site-packages")
        for each in required_by(wheel):
            link(each, site)
        options = ["--no-index"]
    if constraints is not None:
        options += ["-c", constraints]
    pip: list[str | Path] = [environment / "bin" / "python", "-I", "-m", "pip"]
    pip.append("--disable-pip-version-check")
    without_compiler = {**os.environ, "CC": "/bin/false", "CXX": "/bin/false"}
    subprocess.run([*pip, "install", "--quiet", *options, wheel], check=True, env=without_compiler)
    subprocess.run([*pip, "check"], check=True, stdout=subprocess.DEVNULL)


def required_by(wheel: Path) -> Iterator[Distribution]:
    """Yield this environment's packages that a wheel requires, directly or not, without extras."""
    (metadata,) = Distribution.discover(path=[str(wheel)])
    pending, seen = [(each, "") for each in metadata.requires or ()], set()
    while pending:
        text, extra = pending.pop()
        requirement = Requirement(text)
        if requirement.marker is not None and not requirement.marker.evaluate({"extra": extra}):
            continue
        for wanted in ("", *requirement.extras):
            package = (canonicalize_name(requirement.name), wanted)
            if package not in seen:
                seen.add(package)
                found = distribution(package[0])
                pending += [(each, wanted) for each in found.requires or ()]
                if not wanted:
                    yield found


def link(package: Distribution, site: Path) -> None:
    """Link the files of an installed package into another environment's ``site-packages``."""
    for file in package.files or ():
        source, target = Path(str(package.locate_file(file))), site / file
        if ".." in file.parts or not source.is_file():  # programs name their environment's Python
            continue
        target.parent.mkdir(parents=True, exist_ok=True)
        try:
            os.link(source, target)
        except OSError:  # another file system
            shutil.copy2(source, target)


if __name__ == "__main__":
    main()
