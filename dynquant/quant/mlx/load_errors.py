"""Why a runtime does not load a model, in our words."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from dynquant.errors import InvalidModelError, Reason, UnsupportedModelError
from dynquant.quant.mlx.runtimes.ports import MODEL_CODE_ERRORS

__all__ = ["load_errors_in_our_words", "one_line"]


@contextmanager
def load_errors_in_our_words(family: str, form: str | None) -> Iterator[None]:
    """Say why stock mlx-lm does not load a model.

    Args:
        family: `model_type`.
        form: The form that the weights are quantized in, in words; None for plain ones.

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
