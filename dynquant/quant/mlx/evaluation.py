"""Judge quantized models against their original on held-out text, all in one streamed pass.

The hidden states of the original and of every candidate advance together, block by
block; the logits of one batch are compared and dropped, so none touch the disk.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import mlx.core as mx
import numpy as np

from dynquant.errors import NonFiniteError
from dynquant.quant.mlx.arrays import scalar
from dynquant.quant.mlx.calibration import CHUNK_LOGITS
from dynquant.quant.mlx.model_inputs import Batch, ModelInputs, tokens_of
from dynquant.quant.mlx.streaming import BlockModel, BlockWeights, Forward
from dynquant.quant.quality import Quality, summarize

__all__ = ["compare", "kl_divergences"]

_ORIGINAL = "original"
_MAX_NATS = 80.0  # what float32 can take the exponential of, with a vocabulary to add up


def compare(
    blocks: BlockModel,
    reference: BlockWeights,
    candidates: Mapping[str, BlockWeights],
    batches: Sequence[Batch],
    *,
    on_step: Callable[[], None] = lambda: None,
) -> tuple[Quality, dict[str, Quality]]:
    """Perplexity of the original, and perplexity, KL and top-1 agreement of each candidate.

    Args:
        blocks: The architecture that all of them share.
        reference: The original's weights.
        candidates: Name → weights.
        batches: Token windows, each (batch, seq), int32; the logits at every position
            but the last of a window predict a token and are scored. Of a question about an image
            those behind the image are.
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
    own, streams = original.logits(), {name: each.logits() for name, each in others.items()}
    for batch in original.batches:
        first, targets = _scored_positions(batch)
        reference = _Reference.chunks(next(own)[:, first:], targets)
        scores[_ORIGINAL].add([part.own_scores() for part in reference], batch)
        for name, stream in streams.items():
            logits, parts = next(stream)[:, first:], list[mx.array]()
            for part in reference:
                parts.append(part.scores_of(logits))
                mx.eval(parts[-1])
            scores[name].add(parts, batch)
        reference.clear()  # or it would be there beside that of the next batch
        mx.clear_cache()
    return scores


def _scored_positions(batch: Batch) -> tuple[int, mx.array]:
    """The first position that is scored, and the tokens that come next, (batch, positions).

    Of a text every position that predicts a token of it; all positions behind an image, the last
    too, which predicts what the reply goes on with: a KL divergence needs no target, so that one
    is made up. These are counted from the end, since some models put the image in later.
    """
    tokens = tokens_of(batch)
    if not isinstance(batch, ModelInputs):
        return 0, tokens[:, 1:]
    first = -batch.num_text
    return first, mx.concatenate([tokens[:, first:][:, 1:], mx.zeros_like(tokens[:, :1])], axis=1)


class _Scores:
    """Per-token scores of one model, gathered batch by batch."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._windows: list[np.ndarray] = []
        self._images: list[np.ndarray] = []

    def add(self, parts: Sequence[mx.array], batch: Batch) -> None:
        """Note the scores of one batch.

        Args:
            parts: Scores of its rows in order, each (3, rows).
            batch: The batch.

        Raises:
            NonFiniteError: A score is NaN.
        """
        scores = np.concatenate([np.asarray(part) for part in parts], axis=1)
        if np.isnan(scores).any():
            raise NonFiniteError(
                f"NaN or infinity in the logits of the {self._name} model, so its figures would "
                "be worthless.",
                layer="logits",
            )
        if isinstance(batch, ModelInputs):
            self._images.append(scores)
        else:
            self._windows.append(scores.reshape(3, len(batch), -1))

    def summary(self) -> Quality:
        nll, kl, agree = np.concatenate(self._windows, axis=1)
        return summarize(nll, kl, agree, image_kl=[each[1] for each in self._images])


@dataclass(frozen=True)
class _Reference:
    """Some rows of the original's logits, with what the scores of all other models share.

    Attributes:
        where: Windows and positions of a batch that the rows are of.
        logits: (rows, vocab), float32.
        probabilities: Their softmax, (rows, vocab), float32.
        targets: The tokens that came next, (rows, 1).
        nll: Negative log-likelihood of the targets, (rows,), float32.
        top: The likeliest tokens, (rows,).
        is_masked: Whether some logits are -inf; choosing takes as long as all the rest.
    """

    where: tuple[slice, slice]
    logits: mx.array
    probabilities: mx.array
    targets: mx.array
    nll: mx.array
    top: mx.array
    is_masked: bool

    @classmethod
    def chunks(cls, logits: mx.array, targets: mx.array) -> list[_Reference]:
        """A batch's logits in parts that fit a processor's cache.

        Args:
            logits: (batch, seq, vocab).
            targets: The tokens that come next, (batch, scored); later positions are not scored.
        """
        (num_windows, num_scored), vocab = targets.shape, logits.shape[-1]
        found = []
        for where in scored_parts(num_windows, num_scored, max(1, CHUNK_LOGITS // vocab)):
            a, following = _rows(logits, where), targets[where].reshape(-1, 1)
            highest = a.max(-1, keepdims=True)
            exponentials = mx.exp(a - highest)
            total = exponentials.sum(-1, keepdims=True)
            nll = mx.log(total) + highest - mx.take_along_axis(a, following, axis=-1)
            top, is_masked = mx.argmax(a, axis=-1), scalar(a.min()) == -math.inf
            part = cls(where, a, exponentials / total, following, nll.squeeze(-1), top, is_masked)
            mx.eval(part.logits, part.probabilities, part.nll, part.top)
            found.append(part)
        return found

    def own_scores(self) -> mx.array:
        """Scores of the original itself."""
        return mx.stack([self.nll, mx.zeros_like(self.nll), mx.ones_like(self.nll)])

    def scores_of(self, logits: mx.array) -> mx.array:
        """Negative log-likelihood, KL(original ‖ model) and agreement, (3, rows), float32.

        With p the original's probabilities and d the difference of the logits, centred under p,
        KL = log Σ p exp(−d) = log1p(Σ p expm1(−d)): exact also where the models hardly differ.
        The same sum turns the original's log-likelihood into the model's, so that a logit takes
        one exponential. Tokens masked out (-inf) count for nothing.

        Args:
            logits: Of the model for the whole batch, (batch, seq, vocab).
        """
        a, b, p = self.logits, _rows(logits, self.where), self.probabilities
        difference = a - b
        if self.is_masked:
            difference = mx.where(a == -math.inf, 0.0, difference)
        centre = (p * difference).sum(-1, keepdims=True)
        gains = p * mx.expm1(centre - difference)
        gap = mx.log1p(gains.sum(-1, keepdims=True))
        if not mx.all(mx.isfinite(gap)).item():  # something all but impossible became likely
            log_q = a - mx.logsumexp(a, axis=-1, keepdims=True) + centre - difference
            gains = mx.where(mx.isfinite(gains), gains, mx.exp(mx.minimum(log_q, _MAX_NATS)))
            gap = mx.log1p(gains.sum(-1, keepdims=True))
        nll = self.nll + (
            mx.take_along_axis(difference, self.targets, axis=-1) - centre + gap
        ).squeeze(-1)
        agree = self.top == mx.argmax(b, axis=-1)
        return mx.stack([nll, mx.maximum(gap.squeeze(-1), 0.0), agree.astype(mx.float32)])


def scored_parts(num_windows: int, num_scored: int, max_rows: int) -> Iterator[tuple[slice, slice]]:
    """Windows and positions that are scored together: some windows, or a part of one."""
    together = max(1, max_rows // num_scored)
    for first in range(0, num_windows, together):
        for start in range(0, num_scored, max_rows):
            yield slice(first, first + together), slice(start, min(start + max_rows, num_scored))


def _rows(logits: mx.array, where: tuple[slice, slice]) -> mx.array:
    """Some of a batch's logits, (rows, vocab), float32; of a single window no copy is made."""
    return logits[where].reshape(-1, logits.shape[-1]).astype(mx.float32)
