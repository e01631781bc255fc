"""The installation that ``make light`` checks: what is linked into it."""

from __future__ import annotations

import sys
from importlib.metadata import distribution
from pathlib import Path
from zipfile import ZipFile

from scripts.light_install import find_pythons, link, required_by


def test_a_wheel_requires_its_dependencies_and_theirs_but_no_extras(tmp_path: Path) -> None:
    wheel = tmp_path / "example-1.0-py3-none-any.whl"
    requirements = ("pooch>=1", "pytest; extra == 'dev'", "nothing; python_version < '3'")
    with ZipFile(wheel, "w") as file:
        lines = ["Metadata-Version: 2.1", "Name: example", "Version: 1.0"]
        lines += [f"Requires-Dist: {requirement}" for requirement in requirements]
        file.writestr("example-1.0.dist-info/METADATA", "\n".join(lines) + "\n")
    names = [package.metadata["Name"].lower() for package in required_by(wheel)]
    assert len(names) == len(set(names))
    assert {"pooch", "requests", "urllib3", "platformdirs"} <= set(names)  # requests is pooch's
    assert not {"example", "pytest", "tqdm", "pysocks"} & set(names)


def test_a_linked_package_can_be_imported_and_has_no_programs(tmp_path: Path) -> None:
    package = distribution("tqdm")
    link(package, tmp_path)
    file = "tqdm/__init__.py"
    assert (tmp_path / file).read_bytes() == Path(str(package.locate_file(file))).read_bytes()
    assert list(tmp_path.glob("tqdm-*.dist-info/METADATA"))
    assert not (tmp_path.parents[2] / "bin" / "tqdm").exists()


def test_pythons_that_are_not_there_are_reported(capsys) -> None:
    here = f"{sys.version_info[0]}.{sys.version_info[1]}"
    (found,) = find_pythons([here, "3.99"])
    assert Path(found).exists()
    assert capsys.readouterr().out == "Python 3.99: not found, not checked\n"
