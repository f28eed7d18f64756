"""Whether a model predicts the next token of a text, which all figures rest on.

mlx-lm has such models alone. mlx-vlm has others too: encoders with decoders, models that fill a
canvas, and models that read a whole prompt at once.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import mlx.core as mx
import numpy as np

from dynquant.errors import Reason, UnsupportedModelError
from dynquant.quant.mlx.arrays import Weights
from dynquant.quant.mlx.comparing import mean_kl_nats
from dynquant.quant.mlx.parameters import filled
from dynquant.quant.mlx.runtimes.ports import MODEL_CODE_ERRORS

__all__ = ["require_causal", "require_logits"]

_NUM_TOKENS = 12
_SAME_KL_NATS = {mx.cpu: 1e-3, mx.gpu: 1e-2}
"""Arithmetic of another length of text brings less."""


def require_logits(model: object, weights: Weights, *, family: str) -> None:
    """Refuse a model that does not give logits for each token of a text; nothing is evaluated.

    Args:
        model: Its modules; they keep no parameters afterwards.
        weights: Path → array, not yet read.
        family: For the message.

    Raises:
        UnsupportedModelError: It needs more than text, or returns something else.
    """
    with filled(model, weights):  # type: ignore[arg-type]
        try:
            logits = model(mx.zeros((1, 2), mx.int32))  # type: ignore[operator]
            is_sound = isinstance(logits, mx.array) and logits.ndim == 3
            is_sound = is_sound and logits.shape[:2] == (1, 2)
        except MODEL_CODE_ERRORS:
            is_sound = False
    if not is_sound:
        raise _no_language_model(family)


def require_causal(
    engine: Callable[[Sequence[Sequence[int]]], list[np.ndarray]],
    tokens: Sequence[int],
    *,
    family: str,
) -> None:
    """Refuse a model whose prediction for a token changes with later tokens.

    Args:
        engine: Logits of windows of token ids.
        tokens: Some text.
        family: For the message.

    Raises:
        UnsupportedModelError: Its predictions change.
    """
    text = list(tokens[:_NUM_TOKENS])
    short, whole = engine([text[: len(text) // 2], text])
    if not mean_kl_nats([short], [whole[: len(short)]]) <= _SAME_KL_NATS[mx.default_device().type]:
        raise _no_language_model(family)


def _no_language_model(family: str) -> UnsupportedModelError:
    return UnsupportedModelError(
        f"A '{family[:60]}' model does not continue a text token by token, so perplexity and KL "
        "divergence are not defined for it. Take a model that generates text.",
        reason=Reason.UNKNOWN_ARCHITECTURE,
    )
