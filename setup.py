"""Packages; everything else stands in pyproject.toml."""

from setuptools import find_packages, setup

setup(
    # The presets live in config/ beside the package and are installed inside it.
    packages=[*find_packages(include=["mae_ast", "mae_ast.*"]), "mae_ast.config"],
    package_dir={"mae_ast.config": "config"},
    package_data={"mae_ast.config": ["**/*.yaml"], "mae_ast": ["py.typed"]},
)
