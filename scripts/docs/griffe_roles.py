"""Griffe extension: render Sphinx roles in docstrings, such as ``:func:`name```, as code."""

from __future__ import annotations

import re
from typing import Any

import griffe

_ROLE = re.compile(r":(?:class|func|meth|mod|attr|data|exc):`(~?)([^`]+)`")


def without_roles(text: str) -> str:
    """Replace roles by code; a leading ``~`` keeps the last part of the name, as in Sphinx."""
    return _ROLE.sub(
        lambda match: f"`{match[2].rpartition('.')[2] if match[1] else match[2]}`", text
    )


class Roles(griffe.Extension):
    """Rewrite every docstring when it is collected."""

    def on_instance(self, *, obj: griffe.Object, **kwargs: Any) -> None:
        """Rewrite the docstring of one object."""
        if obj.docstring is not None:
            obj.docstring.value = without_roles(obj.docstring.value)
