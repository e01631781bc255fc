"""The ``mae-ast`` command."""
