"""Judge quantized models against their original on held-out text, all in one streamed pass.

The hidden states of the original and of every candidate advance together, block by
block; the logits of one batch are compared and dropped, so none touch the disk.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence

import mlx.core as mx
import numpy as np

from dynquant.core.quality import Quality, summarize
from dynquant.errors import NonFiniteError
from dynquant.mlx_backend.streaming import BlockModel, BlockWeights, Forward

__all__ = ["compare", "kl_divergences"]

_ORIGINAL = "original"
_CHUNK_LOGITS = 1 << 21  # scored at a time: 8 MiB in float32 stay in a processor's cache


def compare(
    blocks: BlockModel,
    reference: BlockWeights,
    candidates: Mapping[str, BlockWeights],
    batches: Sequence[mx.array],
    *,
    on_step: Callable[[], None] = lambda: None,
) -> tuple[Quality, dict[str, Quality]]:
    """Perplexity of the original, and perplexity, KL and top-1 agreement of each candidate.

    Args:
        blocks: The architecture that all of them share.
        reference: The original's weights.
        candidates: Name → weights.
        batches: Token windows, each (batch, seq), int32; the logits at every position
            but the last of a window predict a token and are scored.
        on_step: Called after each block.

    Raises:
        NonFiniteError: Logits are NaN or infinite; names the model.
    """
    original = Forward(blocks, reference, batches)
    others = {name: Forward(blocks, weights, batches) for name, weights in candidates.items()}
    while original.next_block is not None:
        original.step()
        for forward in others.values():
            forward.step()
        on_step()
    scores = _scored(original, others)
    results = {name: score.summary() for name, score in scores.items()}
    return results.pop(_ORIGINAL), results


def kl_divergences(original: Forward, others: Mapping[str, Forward]) -> dict[str, float]:
    """Mean KL(original ‖ other) per token in nats, of forwards that are through their blocks."""
    scores = _scored(original, others)
    return {name: scores[name].summary().mean_kl_nats for name in others}


def _scored(original: Forward, others: Mapping[str, Forward]) -> dict[str, _Scores]:
    """Scores of all models, one batch of logits at a time."""
    scores = {name: _Scores(name) for name in (_ORIGINAL, *others)}
    streams = {name: forward.logits() for name, forward in others.items()}
    for batch, logits in zip(original.batches, original.logits(), strict=True):
        scores[_ORIGINAL].add(logits, None, batch)
        for name, stream in streams.items():
            scores[name].add(next(stream), logits, batch)
        mx.clear_cache()
    return scores


class _Scores:
    """Per-token scores of one model, gathered batch by batch."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._windows: list[np.ndarray] = []

    def add(self, logits: mx.array, reference: mx.array | None, batch: mx.array) -> None:
        """Score one batch.

        Args:
            logits: Of this model, (batch, seq, vocab).
            reference: Of the original, the same shape; None for the original itself.
            batch: Tokens, (batch, seq).

        Raises:
            NonFiniteError: The logits hold NaN.
        """
        vocab = logits.shape[-1]
        rows = logits[:, :-1].reshape(-1, vocab)
        originals = rows if reference is None else reference[:, :-1].reshape(-1, vocab)
        targets = batch[:, 1:].reshape(-1, 1)
        step = max(1, _CHUNK_LOGITS // vocab)
        parts = []
        for start in range(0, rows.shape[0], step):
            chunk = slice(start, start + step)
            part = _row_scores(rows[chunk], originals[chunk], targets[chunk])
            mx.eval(part)
            parts.append(np.asarray(part))
        scores = np.concatenate(parts, axis=1)
        if np.isnan(scores).any():
            raise NonFiniteError(
                f"NaN or infinity in the logits of the {self._name} model, so its figures would "
                "be worthless.",
                layer="logits",
            )
        self._windows.append(scores.reshape(3, batch.shape[0], -1))

    def summary(self) -> Quality:
        nll, kl, agree = np.concatenate(self._windows, axis=1)
        return summarize(nll, kl, agree)


def _row_scores(logits: mx.array, originals: mx.array, targets: mx.array) -> mx.array:
    """Negative log-likelihood, KL(original ‖ model) and agreement of each row, (3, rows), float32.

    With p the original's probabilities and d the difference of the logits, centred under p,
    KL = log Σ p exp(−d) = log1p(Σ p expm1(−d)): exact also where the models hardly differ,
    and no array of log-probabilities is needed. Tokens masked out (-inf) count for nothing.
    """
    a, b = originals.astype(mx.float32), logits.astype(mx.float32)
    nll = mx.logsumexp(b, axis=-1) - mx.take_along_axis(b, targets, axis=-1).squeeze(-1)
    p = mx.softmax(a, axis=-1)
    difference = mx.where(a == -math.inf, 0.0, a - b)
    centre = (p * difference).sum(-1, keepdims=True)
    kl = mx.maximum(mx.log1p((p * mx.expm1(centre - difference)).sum(-1)), 0.0)
    agree = mx.argmax(a, axis=-1) == mx.argmax(b, axis=-1)
    return mx.stack([nll, kl, agree.astype(mx.float32)])
