"""Quality figures: what they are and how they come from per-token scores."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from dynquant.errors import NonFiniteError

__all__ = ["Quality", "summarize"]

_MAX_MEAN_NLL = 700.0  # the exponential of more overflows


@dataclass(frozen=True, slots=True, kw_only=True)
class Quality:
    """How a model does on held-out text, beside the original.

    `kl` is KL(original ‖ model) per token in nats. Standard errors are over windows,
    since the tokens of one window depend on each other.
    """

    perplexity: float
    perplexity_se: float
    mean_kl_nats: float
    mean_kl_se_nats: float
    median_kl_nats: float
    p99_kl_nats: float
    p999_kl_nats: float
    top1_agreement: float
    num_tokens: int
    num_windows: int


def summarize(nll: np.ndarray, kl: np.ndarray, agree: np.ndarray) -> Quality:
    """Figures of per-token scores.

    Args:
        nll: Negative log-likelihood of each token in nats, (windows, tokens).
        kl: KL(original ‖ model) at each token in nats, (windows, tokens).
        agree: 1 where both models' most likely token is the same, (windows, tokens).

    Raises:
        NonFiniteError: A score is NaN or infinite, or the perplexity is beyond all numbers.
    """
    mean_nll = float(nll.mean(dtype=np.float64))
    num_damaged = int(nll.size - (np.isfinite(nll) & np.isfinite(kl)).sum())
    if num_damaged or mean_nll > _MAX_MEAN_NLL:
        raise NonFiniteError(
            f"The scores of {num_damaged or nll.size:,} of {nll.size:,} tokens are no finite "
            "numbers, so the figures would be worthless.",
            layer="logits",
        )
    perplexity = math.exp(mean_nll)
    median, p99, p999 = (float(q) for q in np.quantile(kl, (0.5, 0.99, 0.999)))
    return Quality(
        perplexity=perplexity,
        perplexity_se=perplexity * _standard_error(nll),
        mean_kl_nats=float(kl.mean(dtype=np.float64)),
        mean_kl_se_nats=_standard_error(kl),
        median_kl_nats=median,
        p99_kl_nats=p99,
        p999_kl_nats=p999,
        top1_agreement=float(agree.mean(dtype=np.float64)),
        num_tokens=int(nll.size),
        num_windows=int(nll.shape[0]),
    )


def _standard_error(scores: np.ndarray) -> float:
    """Standard error of the mean over windows, (windows, tokens) → nats."""
    means = scores.mean(axis=1, dtype=np.float64)
    return float(means.std(ddof=1) / math.sqrt(len(means))) if len(means) > 1 else math.nan
