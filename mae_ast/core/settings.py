"""Fields of configurations: a default, a help text and rules that one function checks."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, TypeVar

T = TypeVar("T")


def setting(
    default: Any,
    *,
    help: str,  # noqa: A002
    minimum: int | None = None,
    choices: tuple[Any, ...] = (),
    probability: bool = False,
    positive: bool = False,
) -> Any:
    """Return a dataclass field with a help text and the rules of :func:`check_fields`.

    Args:
        default: value if the key is not set. If it is ``None``, the rules do not apply to ``None``.
        help: help text.
        minimum: the value is an integer of at least this.
        choices: the value is one of these.
        probability: the value is from 0 to below 1.
        positive: the value is above 0.
    """
    rules = {"minimum": minimum, "choices": choices or None}
    rules |= {"probability": probability or None, "positive": positive or None}
    given = {name: rule for name, rule in rules.items() if rule is not None}
    return dataclasses.field(default=default, metadata={"help": help, **given})


def other_default(config: type, key: str, default: Any) -> Any:
    """Return a field like that of another configuration, with a default of its own."""
    fields = {field.name: field for field in dataclasses.fields(config)}
    return dataclasses.field(default=default, metadata=fields[key].metadata)


def take(config: type[T], values: Any) -> T:
    """Make a dataclass of the attributes of ``values`` that have the names of its fields."""
    return config(**{each.name: getattr(values, each.name) for each in dataclasses.fields(config)})  # type: ignore[arg-type]


def check_fields(values: Any, config: Any = None, section: str = "") -> None:
    """Check values by the rules of their fields.

    Args:
        values: object with the fields as attributes.
        config: dataclass with the fields; default: ``values`` itself.
        section: prefix of the keys in messages, such as ``model.``.

    Raises:
        ValueError: a value is invalid; the message names the key, the value and what is valid.
    """
    for field in dataclasses.fields(values if config is None else config):
        rules = {name: rule for name, rule in field.metadata.items() if name != "help"}
        value = getattr(values, field.name) if rules else None
        if not rules or (value is None and field.default is None):
            continue
        if problem := _problem(value, rules):
            null = ", or null" if field.default is None else ""
            raise ValueError(f"{section}{field.name}={value!r}; must be {problem}{null}")


def _problem(value: Any, rules: Mapping[str, Any]) -> str:
    """Return what a value must be, if it breaks a rule; else an empty text."""
    minimum, choices = rules.get("minimum"), rules.get("choices")
    if minimum is not None and (not isinstance(value, int) or value < minimum):
        return f"an integer >= {minimum}"
    if choices and value not in choices:
        return f"one of {', '.join(str(choice) for choice in choices)}"
    is_number = isinstance(value, (int, float))
    if "probability" in rules and not (is_number and 0 <= value < 1):
        return "a probability from 0 to below 1"
    if "positive" in rules and not (is_number and value > 0):
        return "positive"
    return ""
