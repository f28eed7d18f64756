"""Logits of a few token windows, computed block by block, and the KL divergence of two sets."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import mlx.core as mx
import numpy as np

from dynquant.quant.mlx.arrays import Weights
from dynquant.quant.mlx.model_inputs import ModelInputs, last_positions
from dynquant.quant.mlx.streaming import BlockModel, BlockWeights, Forward

__all__ = ["are_finite", "mean_kl_nats", "streamed_logits"]


def streamed_logits(
    blocks: BlockModel, load: Callable[[], Weights], windows: Sequence[Sequence[int] | ModelInputs]
) -> list[np.ndarray]:
    """Logits of each window, (seq, vocab), float32, with one block in memory at a time.

    Args:
        blocks: The model.
        load: Gives a fresh set of lazily loaded weights.
        windows: Token ids of each, or what else the model takes; of any length.
    """
    batches = [ModelInputs.of(window) for window in windows]
    forward = Forward(blocks, BlockWeights(blocks, load), batches)
    return [
        np.asarray(last_positions(inputs, logits[0]).astype(mx.float32))
        for inputs, logits in zip(batches, forward.run(), strict=True)
    ]


def are_finite(logits: Sequence[np.ndarray]) -> bool:
    """Whether every position has a most likely token: a model may mask some, but never all."""
    return all(
        not np.isnan(each).any() and bool(np.isfinite(each.max(-1)).all()) for each in logits
    )


def mean_kl_nats(expected: Sequence[np.ndarray], found: Sequence[np.ndarray]) -> float:
    """Mean KL(expected ‖ found) in nats over all positions of all windows.

    With log-softmax p and q: KL = Σ exp(p) (p − q). Tokens that `expected` masks do not
    count.

    Raises:
        ValueError: The shapes differ.
    """
    divergences = []
    for a, b in zip(expected, found, strict=True):
        if a.shape != b.shape:
            raise ValueError(f"logits of shape {b.shape} in place of {a.shape}")
        p, q = _log_softmax(a), _log_softmax(b)
        with np.errstate(invalid="ignore"):
            terms = np.where(np.isneginf(p), 0.0, np.exp(p) * (p - q))
        divergences.append(terms.sum(-1))
    return float(np.concatenate(divergences).mean())


def _log_softmax(logits: np.ndarray) -> np.ndarray:
    wide = logits.astype(np.float64)
    wide -= wide.max(-1, keepdims=True)
    shifted: np.ndarray = wide - np.log(np.exp(wide).sum(-1, keepdims=True))
    return shifted
