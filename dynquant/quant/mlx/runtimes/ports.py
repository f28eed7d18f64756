"""The interface of a runtime."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Protocol

import mlx.nn as nn

from dynquant.quant.mlx.arrays import Weights

__all__ = ["MODEL_CODE_ERRORS", "OnSanitized", "Runtime"]

OnSanitized = Callable[[Weights, Weights], None]
"""Gets the weights before and after the model's class renamed, joined and dropped some."""

MODEL_CODE_ERRORS = (
    ArithmeticError,
    AssertionError,
    AttributeError,
    LookupError,
    RuntimeError,
    TypeError,
    ValueError,
)
"""Errors that a model's own code raises when a config makes no sense to it."""


class Runtime(Protocol):
    """A library that loads and runs models.

    A model that it builds or loads takes token ids, (batch, seq), int32, and returns logits,
    (batch, seq, vocab). Its `layers` are the blocks of the language model.

    Attributes:
        name: As on PyPI: `mlx-lm`.
    """

    name: str

    def build(self, config: Mapping[str, Any]) -> nn.Module:
        """The model's modules with lazily made parameters.

        Raises:
            UnsupportedModelError: The library has no such architecture, or needs another package.
            ValueError: The library's own complaint, or another of `MODEL_CODE_ERRORS`.
        """
        ...

    def load(
        self,
        folder: Path,
        settings: Mapping[str, Any],
        *,
        decode: Callable[[Weights], Weights] = lambda weights: weights,
        on_sanitized: OnSanitized = lambda _read, _kept: None,
    ) -> nn.Module:
        """The model in `folder`, its weights not yet read.

        Args:
            folder: A model's folder, checked.
            settings: Keys that replace those of its config.
            decode: Gets the weights as they are stored, before the model's class sees them.
            on_sanitized: Gets the weights before and after the model's class changed them.

        Raises:
            ValueError: The library's own complaint, or another of `MODEL_CODE_ERRORS`.
        """
        ...

    def spelled(self, config: Mapping[str, Any]) -> dict[str, Any]:
        """The same settings, in a spelling that the library's modules read."""
        ...

    def unquantized(self, config: Mapping[str, Any], weights: Weights) -> nn.Module:
        """The modules that loading `weights`, some of them packed, fills, without packed layers.

        Raises:
            ValueError: The class's own complaint, or another of `MODEL_CODE_ERRORS`.
        """
        ...

    def sanitized(self, config: Mapping[str, Any], weights: Weights) -> Weights:
        """`weights`, names and arrays as stored, as the model's class takes them.

        Raises:
            ValueError: The class's own complaint, or another of `MODEL_CODE_ERRORS`.
        """
        ...

    def is_language(self, path: str) -> bool:
        """Whether the parameter or module at `path` belongs to the language model, not a tower."""
        ...
