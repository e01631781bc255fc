"""Compare measured numbers with stored ones."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any


def differences(
    found: Any, stored: Any, relative: float, absolute: float = 0.0, where: str = ""
) -> Iterator[str]:
    """Yield a line for each entry that differs in nested dictionaries and lists.

    Floats may differ by ``relative`` times the stored value, or by ``absolute``. Within the summary
    of an array (with an entry ``std``) the latter is at least ``relative`` times that std: a value
    near zero is a difference of larger ones and carries their rounding errors.
    """
    if isinstance(stored, dict) and isinstance(found, dict):
        scale = stored.get("std", 0.0)
        absolute = max(absolute, relative * scale) if isinstance(scale, float) else absolute
        for key in sorted(stored.keys() | found.keys()):
            if key not in stored or key not in found:
                yield f"{where}/{key}: {'new' if key in found else 'missing'}"
            else:
                yield from differences(
                    found[key], stored[key], relative, absolute, f"{where}/{key}"
                )
    elif isinstance(stored, list) and isinstance(found, list) and len(stored) == len(found):
        for index, (one, other) in enumerate(zip(found, stored, strict=True)):
            yield from differences(one, other, relative, absolute, f"{where}/{index}")
    elif isinstance(stored, float) and isinstance(found, float):
        if not abs(found - stored) <= max(relative * abs(stored), absolute):
            off = abs(found - stored) / max(abs(stored), 1e-30)
            yield f"{where}: {found!r}, stored is {stored!r} (relative difference {off:.1e})"
    elif found != stored:
        yield f"{where}: {found!r}, stored is {stored!r}"
