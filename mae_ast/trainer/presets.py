"""Compose a preset from its parts, the files that its ``defaults`` list."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from omegaconf import OmegaConf


def compose_preset(file: Path, overrides: Sequence[str] = ()) -> Any:
    """Compose a preset with hydra.

    The result has fairseq's defaults only if ``hydra_init(file.stem)`` has registered them.

    Args:
        file: YAML file of the preset; its folder holds the folders of the parts.
        overrides: hydra's overrides, without options.

    Returns:
        OmegaConf dictionary, without hydra's own settings.

    Raises:
        hydra's and omegaconf's exceptions: a part is missing, or an override is invalid.
    """
    GlobalHydra.instance().clear()
    with (
        warnings.catch_warnings(),
        initialize_config_dir(str(file.absolute().parent), version_base="1.1"),
    ):
        warnings.simplefilter("ignore", UserWarning)  # by hydra, about its versions
        return compose(file.stem, overrides=list(overrides))


def read_preset(file: Path) -> dict[str, Any]:
    """Return the sections that a preset sets as dictionaries, references unresolved."""
    sections: Any = OmegaConf.to_container(compose_preset(file), enum_to_str=True)
    return dict(sections)
