"""Griffe extension: render Sphinx roles in docstrings as code."""

from __future__ import annotations

from typing import Any

import griffe

from scripts.docs.roles import without_roles


class Roles(griffe.Extension):
    """Rewrite every docstring when it is collected."""

    def on_instance(self, *, obj: griffe.Object, **kwargs: Any) -> None:
        """Rewrite the docstring of one object."""
        if obj.docstring is not None:
            obj.docstring.value = without_roles(obj.docstring.value)
