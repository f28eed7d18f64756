"""Measure what a quantized cache of keys and values costs a model, in stock mlx-lm."""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence
from typing import Any

import mlx.core as mx
import numpy as np
from mlx_lm.generate import maybe_quantize_kv_cache
from mlx_lm.models.cache import make_prompt_cache

from dynquant.quant.cache_bits import CACHE_BITS, GROUP_SIZES, CacheLoss
from dynquant.quant.mlx.runtimes.ports import MODEL_CODE_ERRORS

__all__ = ["cache_losses"]

logger = logging.getLogger(__name__)

_STRETCH_TOKENS = 64
_MIN_STRETCHES = 4


def cache_losses(model: Any, tokens: Sequence[int]) -> list[CacheLoss]:
    """KL divergence that caches of fewer bits bring on one long window.

    Both caches read the window stretch by stretch; behind each one the quantized cache is stored
    again in its own bits, as stock mlx-lm does with `--quantized-kv-start 0`. Tokens of the first
    stretch read no quantized cache and do not count.

    Args:
        model: A loaded model of mlx-lm.
        tokens: Token ids of the window.

    Returns:
        One entry for each width that the model's cache takes; none for caches of other kinds, such
        as of sliding windows or states, and for short windows.
    """
    if len(tokens) < _MIN_STRETCHES * _STRETCH_TOKENS:
        return []
    found = []
    for bits in CACHE_BITS:
        for group_size in GROUP_SIZES:
            try:
                kl_nats = _kl_nats(model, tokens, bits=bits, group_size=group_size)
            except MODEL_CODE_ERRORS as error:
                logger.info("no cache of %d bits, group %d: %s", bits, group_size, error)
                continue
            if kl_nats is not None and np.isfinite(kl_nats).all():
                found.append(_loss(kl_nats, bits=bits, group_size=group_size))
            break
    return found


def _loss(kl_nats: np.ndarray, *, bits: int, group_size: int) -> CacheLoss:
    """Of the means of stretches, (stretches,)."""
    error = kl_nats.std(ddof=1) / math.sqrt(len(kl_nats))
    return CacheLoss(
        bits=bits,
        group_size=group_size,
        mean_kl_nats=float(kl_nats.mean()),
        mean_kl_se_nats=float(error),
        num_tokens=len(kl_nats) * _STRETCH_TOKENS,
    )


def _kl_nats(model: Any, tokens: Sequence[int], *, bits: int, group_size: int) -> np.ndarray | None:
    """Mean KL of each stretch but the first, (stretches - 1,); None if no cache was quantized."""
    full, fewer = make_prompt_cache(model), make_prompt_cache(model)
    means = []
    for start in range(0, len(tokens) - _STRETCH_TOKENS + 1, _STRETCH_TOKENS):
        stretch = mx.array([list(tokens[start : start + _STRETCH_TOKENS])])
        log_p, log_q = (_log_probabilities(model, stretch, cache) for cache in (full, fewer))
        means.append((mx.exp(log_p) * (log_p - log_q)).sum(-1).mean().item())
        kept = list(fewer)
        maybe_quantize_kv_cache(fewer, 0, group_size, bits)
        if not start and all(was is now for was, now in zip(kept, fewer, strict=True)):
            return None
        mx.eval([cache.state for cache in fewer if cache.state is not None])
    return np.array(means[1:])


def _log_probabilities(model: Any, stretch: mx.array, cache: list[Any]) -> mx.array:
    """(tokens, vocab) in float32."""
    logits = model(stretch, cache=cache)[0].astype(mx.float32)
    return logits - mx.logsumexp(logits, axis=-1, keepdims=True)
