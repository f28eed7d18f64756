"""Quality figures, and their computation from per-token scores."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from dynquant.errors import NonFiniteError

__all__ = ["IMAGE_FIGURES", "Quality", "summarize"]

IMAGE_FIGURES = (
    "image_mean_kl_nats",
    "image_mean_kl_se_nats",
    "num_images",
    "num_image_positions",
)
"""Fields of `Quality` on images."""

_MAX_MEAN_NLL = 700.0  # the exponential of a larger number overflows


@dataclass(frozen=True, slots=True, kw_only=True)
class Quality:
    """Quality of a model on held-out text, compared with the original.

    `kl` is KL(original ‖ model) per token in nats. Standard errors are over windows,
    since the tokens of one window depend on each other. Figures on images are over the positions
    behind each image, their standard error over images; None where no images were asked about.
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
    image_mean_kl_nats: float | None = None
    image_mean_kl_se_nats: float | None = None
    num_images: int = 0
    num_image_positions: int = 0

    def to_json(self) -> dict[str, Any]:
        """The figures as JSON types; those on images only where images were asked about."""
        left_out = () if self.num_images else IMAGE_FIGURES
        return {name: value for name, value in asdict(self).items() if name not in left_out}


def summarize(
    nll: np.ndarray, kl: np.ndarray, agree: np.ndarray, *, image_kl: Sequence[np.ndarray] = ()
) -> Quality:
    """Figures of per-token scores.

    Args:
        nll: Negative log-likelihood of each token in nats, (windows, tokens).
        kl: KL(original ‖ model) at each token in nats, (windows, tokens).
        agree: 1 where both models' most likely token is the same, (windows, tokens).
        image_kl: The same as `kl` at the tokens behind each image, (tokens,) each.

    Raises:
        NonFiniteError: A score is NaN or infinite, or the perplexity overflows.
    """
    mean_nll = float(nll.mean(dtype=np.float64))
    num_damaged = int(nll.size - (np.isfinite(nll) & np.isfinite(kl)).sum())
    num_damaged += sum(int((~np.isfinite(each)).sum()) for each in image_kl)
    num_tokens = nll.size + sum(each.size for each in image_kl)
    if num_damaged or mean_nll > _MAX_MEAN_NLL:
        raise NonFiniteError(
            f"The scores of {num_damaged or num_tokens:,} of {num_tokens:,} tokens are no finite "
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
        **_image_figures(image_kl),
    )


def _image_figures(kl: Sequence[np.ndarray]) -> dict[str, Any]:
    """Mean over all tokens of images with unlike numbers of them, and its error over images.

    The mean is a ratio of two sums over images, m = Σ s_i / Σ n_i, with the error
    √(k/(k−1) · Σ (s_i − m n_i)²) / Σ n_i.

    Source: Cochran, Sampling Techniques (1977), section 9A.1, clusters of unequal sizes.
    """
    if len(kl) < 2:  # noqa: PLR2004
        return {}
    sums = np.array([each.sum(dtype=np.float64) for each in kl])
    counts = np.array([each.size for each in kl])
    mean = sums.sum() / counts.sum()
    squares = float(((sums - mean * counts) ** 2).sum())
    return {
        "image_mean_kl_nats": float(mean),
        "image_mean_kl_se_nats": math.sqrt(squares * len(kl) / (len(kl) - 1)) / int(counts.sum()),
        "num_images": len(kl),
        "num_image_positions": int(counts.sum()),
    }


def _standard_error(scores: np.ndarray) -> float:
    """Standard error of the mean over windows, (windows, tokens) → nats."""
    means = scores.mean(axis=1, dtype=np.float64)
    return float(means.std(ddof=1) / math.sqrt(len(means))) if len(means) > 1 else math.nan
