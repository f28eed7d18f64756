"""mlx-lm: language models, by its own lazy and strict load."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import mlx.nn as nn
from mlx_lm import utils as mlx_lm_utils

from dynquant.errors import Reason, UnsupportedModelError
from dynquant.model.config import as_mlx_lm_reads
from dynquant.quant.mlx.arrays import Weights
from dynquant.quant.mlx.folder import as_loaded
from dynquant.quant.mlx.runtimes.ports import OnSanitized

__all__ = ["MlxLm", "classes_of"]


class MlxLm:
    """Implements `Runtime`."""

    name = "mlx-lm"

    def build(self, config: Mapping[str, Any]) -> nn.Module:
        """See `Runtime.build`."""
        model_class, args_class = classes_of(config)
        model: nn.Module = model_class(args_class.from_dict(config))
        return model

    def load(
        self,
        folder: Path,
        settings: Mapping[str, Any],
        *,
        decode: Callable[[Weights], Weights] = lambda weights: weights,
        on_sanitized: OnSanitized = lambda _read, _kept: None,
    ) -> nn.Module:
        """See `Runtime.load`."""

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
                files,
                lazy=True,
                strict=True,
                model_config=dict(settings),
                get_model_classes=classes,
            )
        loaded: nn.Module = model
        return loaded

    def spelled(self, config: Mapping[str, Any]) -> dict[str, Any]:
        """See `Runtime.spelled`."""
        return as_mlx_lm_reads(config)

    def unquantized(self, config: Mapping[str, Any], weights: Weights) -> nn.Module:
        """See `Runtime.unquantized`."""
        model: Any = self.build(config)
        if hasattr(model, "sanitize"):  # it may take modules away, such as a tied head
            model.sanitize(dict(weights))
        built: nn.Module = model
        return built

    def sanitized(self, config: Mapping[str, Any], weights: Weights) -> Weights:
        """See `Runtime.sanitized`."""
        model: Any = self.build(config)
        return model.sanitize(dict(weights)) if hasattr(model, "sanitize") else weights

    def is_language(self, _path: str) -> bool:
        """See `Runtime.is_language`: mlx-lm has no towers."""
        return True


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
        reason = " ".join((said.getvalue() or str(error)).split())[:300]
        raise UnsupportedModelError(
            f"mlx-lm runs a '{name}' model only with a package that is not installed here "
            f"({reason}), and dynquant does not use it. Look for the model in the layout of "
            "transformers.",
            reason=Reason.UNKNOWN_ARCHITECTURE,
        ) from error
    return model_class, args_class
