"""Packages; everything else stands in pyproject.toml."""

from setuptools import find_packages, setup

setup(
    # The presets live in config/ and s3prl/config/ beside the package and are installed inside it.
    packages=[
        *find_packages(include=["mae_ast", "mae_ast.*"]),
        *("mae_ast.config", "mae_ast.superb_config"),
    ],
    py_modules=["audio_mae"],  # a face of the model by the name that others import
    package_dir={"mae_ast.config": "config", "mae_ast.superb_config": "s3prl/config"},
    package_data={
        "mae_ast": ["py.typed"],
        "mae_ast.report": ["page/*"],
        "mae_ast.config": ["**/*.yaml"],
        "mae_ast.superb_config": ["*.yaml"],
    },
)
