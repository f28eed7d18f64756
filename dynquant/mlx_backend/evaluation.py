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
from dynquant.mlx_backend.loading import scalar
from dynquant.mlx_backend.streaming import BlockModel, BlockWeights, Forward

__all__ = ["compare", "kl_divergences"]


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
    scores = {name: _Scores() for name in ("original", *others)}
    streams = {name: forward.logits() for name, forward in others.items()}
    for batch, logits in zip(batches, original.logits(), strict=True):
        log_p = _log_probabilities(logits, "the original model")
        scores["original"].add(log_p, log_p, batch)
        for name, stream in streams.items():
            scores[name].add(log_p, _log_probabilities(next(stream), f"the {name} model"), batch)
        mx.clear_cache()
    results = {name: score.summary() for name, score in scores.items()}
    return results.pop("original"), results


def kl_divergences(original: Forward, others: Mapping[str, Forward]) -> dict[str, float]:
    """Mean KL(original ‖ other) per token in nats, of forwards that are through their blocks."""
    sums = dict.fromkeys(others, 0.0)
    streams = {name: forward.logits() for name, forward in others.items()}
    num_tokens = 0
    for logits in original.logits():
        log_p = _log_probabilities(logits, "the original model")
        num_tokens += log_p[..., 0].size
        for name, stream in streams.items():
            log_q = _log_probabilities(next(stream), f"the model with {name} quantized")
            sums[name] += scalar(_kl(log_p, log_q).sum())
        mx.clear_cache()
    return {name: total / num_tokens for name, total in sums.items()}


def _kl(log_p: mx.array, log_q: mx.array) -> mx.array:
    """KL(p ‖ q) over the last axis; tokens that the model masks out (-inf) count for nothing."""
    return mx.where(log_p == -math.inf, 0.0, mx.exp(log_p) * (log_p - log_q)).sum(-1)


class _Scores:
    """Per-token scores of one model, gathered batch by batch."""

    def __init__(self) -> None:
        self._nll: list[np.ndarray] = []
        self._kl: list[np.ndarray] = []
        self._agree: list[np.ndarray] = []

    def add(self, log_p: mx.array, log_q: mx.array, batch: mx.array) -> None:
        """Score one batch; `log_p` and `log_q` are (batch, seq - 1, vocab), float32."""
        targets = batch[:, 1:, None]
        nll = -mx.take_along_axis(log_q, targets, axis=-1).squeeze(-1)
        if log_q is log_p:
            kl, agree = mx.zeros_like(nll), mx.ones_like(nll)
        else:
            kl = _kl(log_p, log_q)
            agree = (mx.argmax(log_p, axis=-1) == mx.argmax(log_q, axis=-1)).astype(mx.float32)
        mx.eval(nll, kl, agree)
        self._nll.append(np.asarray(nll))
        self._kl.append(np.asarray(kl))
        self._agree.append(np.asarray(agree))

    def summary(self) -> Quality:
        return summarize(
            np.concatenate(self._nll), np.concatenate(self._kl), np.concatenate(self._agree)
        )


def _log_probabilities(logits: mx.array, whose: str) -> mx.array:
    logits = logits[:, :-1].astype(mx.float32)
    log_p = logits - mx.logsumexp(logits, axis=-1, keepdims=True)
    # Some models mask tokens with -inf; anything else that is not finite is damage.
    if mx.any(mx.isnan(log_p)).item():
        raise NonFiniteError(
            f"NaN or infinity in the logits of {whose}, so its figures would be worthless.",
            layer="logits",
        )
    return log_p
