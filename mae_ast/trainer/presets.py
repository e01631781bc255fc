"""Compose a preset from its parts, the files that its ``defaults`` list."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from hydra import compose, initialize_config_dir
from hydra.core.config_store import ConfigStore
from hydra.core.global_hydra import GlobalHydra
from hydra.errors import HydraException
from omegaconf import OmegaConf

from mae_ast.core.io.first_line import first_line

# Sections whose dataclass depends on ``_name``; hydra only knows the keys that the YAML files list.
NAMED_SECTIONS = ("task", "model", "criterion", "optimizer", "lr_scheduler")
SEARCH_PATH = "hydra.searchpath="  # override: further folders with parts


def share_config_store() -> None:
    """Let hydra compose without a copy of its store, which holds all of fairseq's dataclasses.

    hydra copies the sources of a composition, and the store with them, which takes longer than all
    the rest. There is one store only, and what is loaded from it is copied anyway.
    """
    ConfigStore.__deepcopy__ = lambda self, memo: self  # type: ignore[attr-defined]


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
    share_config_store()
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


def read_valid_preset(file: Path) -> dict[str, Any]:
    """Return :func:`read_preset` of a file without overrides.

    Raises:
        ValueError: the file is invalid, or one of its parts is missing.
    """
    try:
        return read_preset(file)
    except (HydraException, yaml.YAMLError) as error:
        raise ValueError(f"{file}: {first_line(error)}") from None


def search_path_of(overrides: Sequence[str]) -> list[str]:
    """Return those of hydra's overrides that say where else parts are."""
    return [each for each in overrides if each.startswith(SEARCH_PATH)]


def has_search_path(file: Path) -> bool:
    """Return whether a preset says itself where else its parts are.

    Raises:
        ValueError: the file is not a YAML mapping.
    """
    return OmegaConf.select(_load(file), "hydra.searchpath") is not None


def check_preset(file: Path, overrides: Sequence[str] = ()) -> str | None:
    """Check that the parts and the settings of a preset take effect.

    hydra merges fairseq's defaults into the file itself. So these replace the settings of the parts
    that precede ``_self_``, and the parts that follow it replace the file's own settings.

    Args:
        file: YAML file of the preset.
        overrides: hydra's overrides; only the search path is used.

    Returns:
        A warning if a part replaces a setting of the file, else ``None``.

    Raises:
        ValueError: fairseq's defaults replace a setting of a part, or the file is invalid.
    """
    own: Any = OmegaConf.to_container(_load(file))
    entries = own.pop("defaults", None) or ["_self_"]
    own.pop("hydra", None)
    if entries == ["_self_"] or (entries[0] == "_self_" and not own):
        return None
    ConfigStore.instance().repo.pop(f"{file.stem}.yaml", None)  # fairseq's defaults, if registered
    try:
        composed = read_preset(file, search_path_of(overrides))
    except HydraException:
        return None  # reported when training composes the settings
    of_file, of_all = _settings(own), _settings(composed)
    with_defaults = {key for key in of_all if key.partition(".")[0] not in NAMED_SECTIONS}
    lost = min(with_defaults - of_file.keys(), default=None)
    if entries[0] != "_self_" and lost is not None:
        raise ValueError(
            f"{file}: `defaults` must begin with _self_; now, fairseq's default replaces {lost}"
        )
    replaced = ", ".join(key for key, value in of_file.items() if of_all[key] != value)
    if not replaced:
        return None
    return f"{file}: replaced by later entries of `defaults`, which set other values: {replaced}"


def _settings(sections: Mapping[str, Any]) -> dict[str, Any]:
    """Return settings by ``section.key``."""
    return {
        f"{section}.{key}": value
        for section, values in sections.items()
        if isinstance(values, Mapping)
        for key, value in values.items()
    }


def _load(file: Path) -> Any:
    try:
        settings = OmegaConf.load(file)
    except yaml.YAMLError as error:
        raise ValueError(f"{file}: invalid YAML: {' '.join(str(error).split())}") from None
    if not OmegaConf.is_dict(settings):
        raise ValueError(f"{file}: must be a YAML mapping of sections")
    return settings
