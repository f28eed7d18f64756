"""Stock mlx-lm's own lazy and strict load, with settings that it reads; its errors in our words."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.nn as nn
from mlx_lm import utils as mlx_lm_utils

from dynquant.errors import InvalidModelError, Reason, UnsupportedModelError
from dynquant.quant.mlx.folder import as_loaded

__all__ = ["MODEL_CODE_ERRORS", "Weights", "build", "classes_of", "load", "one_line"]

Weights = dict[str, mx.array]
Sanitized = Callable[[Weights, Weights], None]

MODEL_CODE_ERRORS = (
    ArithmeticError,
    AssertionError,
    AttributeError,
    LookupError,
    RuntimeError,
    TypeError,
    ValueError,
)
"""What the constructors of models raise when a config makes no sense to them."""


def classes_of(config: Mapping[str, Any]) -> tuple[Any, Any]:
    """The classes of the model and of its arguments.

    Raises:
        UnsupportedModelError: mlx-lm has no such architecture, or its module ends the process
            because a package is missing.
        ValueError: mlx-lm's own complaint.
    """
    said = io.StringIO()
    try:
        with contextlib.redirect_stdout(said):  # such a module prints before it ends the process
            model_class, args_class = mlx_lm_utils._get_classes(dict(config))
    except SystemExit as error:
        name = str(config.get("model_type"))[:100]
        raise UnsupportedModelError(
            f"mlx-lm runs a '{name}' model only with a package that is not installed here "
            f"({one_line(said.getvalue() or str(error))}), and dynquant does not use it. Look for "
            "the model in the layout of transformers.",
            reason=Reason.UNKNOWN_ARCHITECTURE,
        ) from error
    return model_class, args_class


def build(config: Mapping[str, Any]) -> nn.Module:
    """The model's modules with lazily made parameters."""
    model_class, args_class = classes_of(config)
    model: nn.Module = model_class(args_class.from_dict(config))
    return model


def load(
    folder: Path,
    settings: Mapping[str, Any],
    *,
    decode: Callable[[Weights], Weights] = lambda weights: weights,
    on_sanitized: Sanitized = lambda _read, _kept: None,
) -> nn.Module:
    """The model in `folder`, its weights not yet read.

    Args:
        folder: A model's folder.
        settings: What counts in place of what its config says.
        decode: Gets the weights as they are stored, before the model's class sees them.
        on_sanitized: Gets the weights before and after the model's class renamed, joined and
            dropped some.
    """

    def classes(config: dict[str, Any]) -> tuple[Any, Any]:
        model_class, args_class = classes_of(config)

        class Loaded(model_class):  # type: ignore[misc, valid-type]
            def sanitize(self, weights: Weights) -> Weights:
                read = decode(weights)
                before = dict(read)
                own = getattr(super(), "sanitize", None)
                kept: Weights = read if own is None else own(read)
                on_sanitized(before, kept)
                return kept

        Loaded.__module__ = model_class.__module__
        return Loaded, args_class

    with as_loaded(folder) as files:
        model, _ = mlx_lm_utils.load_model(
            files, lazy=True, strict=True, model_config=dict(settings), get_model_classes=classes
        )
    loaded: nn.Module = model
    return loaded


@contextmanager
def load_errors_in_our_words(family: str, form: str | None) -> Iterator[None]:
    """Say why stock mlx-lm does not load a model.

    Args:
        family: `model_type`.
        form: What the weights are quantized as, in words; None for plain ones.

    Raises:
        UnsupportedModelError: mlx-lm has no such architecture, or does not read this form.
        InvalidModelError: Config and weights do not fit together.
    """
    try:
        yield
    except MODEL_CODE_ERRORS as error:
        reason, name = str(error), family[:100]
        if reason.startswith("Model type") and "not supported" in reason:
            raise UnsupportedModelError(
                f"mlx-lm has no architecture for model_type '{name}'. A newer mlx-lm may "
                "have it; dynquant takes every model that mlx-lm takes.",
                reason=Reason.UNKNOWN_ARCHITECTURE,
            ) from error
        if form is not None and form != "MLX":
            raise UnsupportedModelError(
                f"This model is quantized in a form that mlx-lm does not read here ({form}): "
                f"{one_line(reason)}. Use the original that it was made from.",
                reason=Reason.ALREADY_QUANTIZED,
            ) from error
        raise InvalidModelError(
            f"The weights or the config of this '{name}' model do not fit together: "
            f"{one_line(reason)}. Take both from one version of the model, or ask "
            "its author."
        ) from error


def one_line(text: str) -> str:
    """`text` without breaks, and not too long."""
    return " ".join(text.split())[:300].rstrip(".: ") or "no details"
