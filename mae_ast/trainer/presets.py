"""Compose a preset from its parts, the files that its ``defaults`` list."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml
from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.errors import HydraException
from omegaconf import OmegaConf

SEARCH_PATH = "hydra.searchpath="  # override: further folders with parts


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


def read_preset(file: Path, overrides: Sequence[str] = ()) -> dict[str, Any]:
    """Return the sections of :func:`compose_preset` as dictionaries, references unresolved."""
    sections: Any = OmegaConf.to_container(compose_preset(file, overrides), enum_to_str=True)
    return dict(sections)


def search_path_of(overrides: Sequence[str]) -> list[str]:
    """Return those of hydra's overrides that say where else parts are."""
    return [each for each in overrides if each.startswith(SEARCH_PATH)]


def has_search_path(file: Path) -> bool:
    """Return whether a preset says itself where else its parts are.

    Raises:
        ValueError: the file is not a YAML mapping.
    """
    return OmegaConf.select(_load(file), "hydra.searchpath") is not None


def check_preset(file: Path, overrides: Sequence[str] = ()) -> None:
    """Check that the parts and the settings of a preset take effect.

    hydra merges fairseq's defaults into the file itself. So these replace the settings of the parts
    that precede ``_self_``, and the parts that follow it replace the file's own settings.

    Args:
        file: YAML file of the preset.
        overrides: hydra's overrides; only the search path is used.

    Raises:
        ValueError: a part or a setting has no effect, or the file is not a YAML mapping.
    """
    own: Any = OmegaConf.to_container(_load(file))
    parts = [part for part in own.pop("defaults", []) if "hydra/" not in str(part)]
    own.pop("hydra", None)
    if not parts:
        return
    if parts[0] != "_self_":
        raise ValueError(
            f"{file}: `defaults` must begin with _self_; otherwise fairseq's defaults replace the "
            "settings of the other entries"
        )
    try:
        composed = read_preset(file, search_path_of(overrides)) if own else {}
    except HydraException:
        return  # reported when training composes the settings
    for section, values in own.items():
        for key in values if isinstance(values, dict) else ():
            if composed[section][key] != values[key]:
                raise ValueError(
                    f"{file}: {section}.{key} is replaced by an entry of `defaults`; set it on the "
                    "command line or in a file that `defaults` lists last"
                )


def _load(file: Path) -> Any:
    try:
        settings = OmegaConf.load(file)
    except yaml.YAMLError as error:
        raise ValueError(f"{file}: invalid YAML: {' '.join(str(error).split())}") from None
    if not OmegaConf.is_dict(settings):
        raise ValueError(f"{file}: must be a YAML mapping of sections")
    return settings
