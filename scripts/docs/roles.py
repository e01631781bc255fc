"""Sphinx roles in docstrings, such as ``:func:`name```, as code."""

from __future__ import annotations

import re

_ROLE = re.compile(r":(?:class|func|meth|mod|attr|data|exc):`(~?)([^`]+)`")


def without_roles(text: str) -> str:
    """Replace roles by code; a leading ``~`` keeps the last part of the name, as in Sphinx."""
    return _ROLE.sub(
        lambda match: f"`{match[2].rpartition('.')[2] if match[1] else match[2]}`", text
    )
