"""A layout of checkpoint files: how to recognise, read and write it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mae_ast.core.checkpoints.wrappers import MODEL


@dataclass(frozen=True)
class Checkpoint:
    """A model as read from a file: configuration and weights.

    Args:
        config: configuration of one of the ``SYSTEMS``.
        mask_type: type of mask in pretraining; ``None`` for models trained without, such as AST.
        weights: state dict with the names of the system; not checked yet.
        labels: class names, if the file contains them.
        encoder_only: ``weights`` are the encoder's only, without pretraining modules.
        independent: a classifier's scores are sigmoids (multi-label), as in the published AST; else
            a softmax over all classes.
        training: what is recorded about the training, as
            :func:`mae_ast.core.checkpoints.training_record.training_record` returns it.
    """

    config: Any
    mask_type: str | None
    weights: Mapping[str, Any]
    labels: tuple[str, ...] | None = None
    encoder_only: bool = False
    independent: bool = True
    training: Mapping[str, Any] = field(default_factory=dict)


Content = Mapping[str, Any]


@dataclass(frozen=True)
class Layout:
    """A layout of ``torch.save`` files, of this project or of another implementation.

    Args:
        system: name of the system whose models it contains.
        keys: names of weights that only this layout has; empty: any content is read as this layout.
        read: convert the unwrapped content of a file, whose path is for log messages; may raise
            ``KeyError``, ``TypeError`` or ``ValueError``.
        write: inverse of ``read``, may raise ``ValueError``; ``None``: cannot be written.
        fixed: fields of the configuration that must have the values that ``read`` assumes.
        unstored: fields that code reading a file must be given if they differ from these values.
        assumed: return the configuration that a reader assumes, given a file's unwrapped content
            and the true configuration; default: the one that ``read`` returns.
    """

    system: str
    keys: tuple[str, ...]
    read: Callable[[Content, Path], Checkpoint]
    write: Callable[[Checkpoint], dict[str, Any]] | None = None
    fixed: tuple[str, ...] = ()
    unstored: tuple[str, ...] = ()
    assumed: Callable[[Content, Any], Any] | None = None

    def matches(self, state: Content) -> bool:
        """Return whether the unwrapped content of a file has this layout."""
        weights = state.get(MODEL)
        has_keys = isinstance(weights, Mapping) and all(key in weights for key in self.keys)
        return has_keys or not self.keys
