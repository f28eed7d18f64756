"""How much each weight matters: one streamed pass forward, one backward for some of the text.

For a layer y = Wx the KL divergence per token that an error ΔW brings is, to second
order and with diagonal factors, ½ Σ_oi row_o · col_i · ΔW²_oi, with row the mean squared
gradient of the log-likelihood at y (labels sampled from the model itself, the true
Fisher) and col the mean squared input. Every role that a weight plays adds one such term.
With an encoder that feeds errors back, col is the part of the input that the inputs
encoded later cannot make up for.

Source: K-FAC (arXiv 1503.05671) for the factors, HAWQ-V2 (arXiv 1911.03852) for the use,
the linearity theorem of HIGGS (arXiv 2411.17525) for adding layers up.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from typing import cast

import mlx.core as mx
import mlx.nn as nn

from dynquant.errors import NonFiniteError
from dynquant.quant.mlx.backward import backward
from dynquant.quant.mlx.calibration import CHUNK_LOGITS
from dynquant.quant.mlx.hessians import HessianObserver, takes_feedback, towards_mean_expert
from dynquant.quant.mlx.importance import Importance, Term
from dynquant.quant.mlx.inverse_hessian import conditional_variances
from dynquant.quant.mlx.loading import Weights, check_finite, scalar
from dynquant.quant.mlx.observing import Observation, Role, observed, squares
from dynquant.quant.mlx.parameters import quantizable
from dynquant.quant.mlx.streaming import BlockModel, BlockWeights, Forward

__all__ = ["GRADIENT_TOKENS", "Measurement", "draw_labels", "measure_importance"]

_UNSEEN_TOKENS = 0.5  # Jeffreys prior: a token that the text lacks still turns up in use
GRADIENT_TOKENS = 4096  # that the reverse pass takes at least, where the text has as many
_ORDER_GROUP_SIZE = 32  # the finest group, for the order in which feedback takes columns


@dataclass
class FisherGauge:
    """Sums the squared gradient at every layer's output, by a VJP that needs no weight gradient.

    Each output passes through an identity whose VJP hands `Σ g²` to an accumulator, and behind
    it the number of vectors g.
    """

    blocks: BlockModel
    layers: Mapping[str, nn.Module]
    shapes: Mapping[str, Sequence[int]]
    roles: Sequence[tuple[str, Role]]
    sums: dict[str, mx.array] = field(default_factory=dict)

    def primals(self, block: str | None) -> dict[str, mx.array]:
        """One zero accumulator per layer and role, (*lead, out + 1)."""
        return {
            _key(path, role): mx.zeros(_accumulator_shape(self.shapes[path], role))
            for path, role in self.roles
            if self.blocks.block_of(path) == block
        }

    @contextmanager
    def applied(self, primals: dict[str, mx.array]) -> Iterator[None]:
        """Route the outputs through the accumulators."""

        def observer(seen: Observation) -> mx.array:
            accumulator = primals.get(_key(seen.path, seen.role))
            return seen.y if accumulator is None else _gauged(seen, accumulator)

        paths = {key.rpartition("|")[0] for key in primals}
        with observed({path: self.layers[path] for path in paths}, observer):
            yield

    def take(self, gradients: dict[str, mx.array]) -> list[mx.array]:
        """Add up over calls and batches."""
        for key, gradient in gradients.items():
            self.sums[key] = self.sums[key] + gradient if key in self.sums else gradient
        return [self.sums[key] for key in gradients]

    def means(self, path: str, role: Role) -> tuple[mx.array, mx.array] | None:
        """Mean of g² per vector, (*lead, out), and how many vectors there were, (*lead, 1)."""
        if (sums := self.sums.get(_key(path, role))) is None:
            return None
        counts = sums[..., -1:]
        return sums[..., :-1] / mx.maximum(counts, 1.0), counts


@dataclass(frozen=True)
class Measurement:
    """What a measuring pass starts from.

    Attributes:
        blocks: The model.
        load: Gives a fresh set of lazily loaded weights.
        batches: Calibration windows, each (batch, seq), int32.
        shapes: Path of each quantizable layer → shape of its weight.
        feedback: Whether the encoder will feed errors back.
        seed: Seed of the labels that are sampled from the model.
    """

    blocks: BlockModel
    load: Callable[[], Weights]
    batches: Sequence[mx.array]
    shapes: Mapping[str, Sequence[int]]
    feedback: bool
    seed: int

    @cached_property
    def dtypes(self) -> dict[str, mx.Dtype]:
        """Parameter path → dtype that it is stored in."""
        return {path: array.dtype for path, array in self.load().items()}

    @property
    def num_tokens(self) -> int:
        """Calibration tokens in all."""
        return sum(batch.size for batch in self.batches)

    @property
    def layers(self) -> dict[str, nn.Module]:
        """The quantizable layers."""
        found = quantizable(self.blocks.model)
        return {path: layer for path, layer in found.items() if path in self.shapes}

    def paths_in(self, block: str | None) -> list[str]:
        """The layers of a block; with None those outside all blocks."""
        return [path for path in self.shapes if self.blocks.block_of(path) == block]

    def observer(self) -> HessianObserver:
        """Gathers the layers' inputs; products too, where the encoder feeds errors back.

        Products must go with their block, so a block that is called again keeps squares.
        """
        calls = self.blocks.num_calls
        again = {p for p in self.shapes if calls.get(self.blocks.block_of(p) or "", 1) > 1}
        return HessianObserver(self.shapes, covariance=self.feedback, squares_only=again)


def measure_importance(
    measurement: Measurement,
    *,
    on_layers: Callable[[Mapping[str, Importance], Weights], None],
    on_step: Callable[[], None] = lambda: None,
) -> HessianObserver:
    """One streamed pass forward over the calibration windows, one backward over some of them.

    Means of squared gradients settle with far fewer tokens than the products of inputs, which
    are matrices; only the batches that go backward are kept.

    Args:
        measurement: What to measure.
        on_layers: Gets the importance of a block's layers, and the block's weights.
        on_step: Called after each block, both ways.

    Returns:
        The second moments, with covariances only of the layers outside all blocks.

    Raises:
        NonFiniteError: A weight or a layer's input is NaN or infinite; names the layer.
        FloatingPointError: A gradient is, though the forward pass was sound.
        NoGradientError: The model has an operation without a VJP.
    """
    blocks = measurement.blocks
    watcher, columns = measurement.observer(), dict[str, mx.array]()
    weights = BlockWeights(blocks, measurement.load)
    record = _evenly_spaced(measurement.batches, GRADIENT_TOKENS)
    forward = Forward(blocks, weights, measurement.batches, record=record)

    def settle(block: str | None) -> None:
        """Take from the covariances what the costs need, once for layers that share one."""
        settled: dict[int, mx.array] = {}
        for path, role in watcher.roles():
            if blocks.block_of(path) != block:
                continue
            _check_inputs(watcher, path, role)
            if takes_feedback(watcher, path):
                shared = id(watcher.of(path, role))
                if shared not in settled:
                    covariance = watcher.covariance(path, role)
                    settled[shared] = conditional_variances(covariance, _ORDER_GROUP_SIZE)
                    mx.eval(settled[shared])
                columns[path] = settled[shared]
        if block is not None:  # not of the head: it was reached with the last block
            watcher.drop_covariances(measurement.paths_in(block))

    check_finite(weights.outer)
    with observed(measurement.layers, watcher):
        while (path := forward.next_block) is not None:
            forward.step(watcher.pending, lambda _path, held: check_finite(held))
            settle(path)
            on_step()
    settle(None)
    gauge = FisherGauge(blocks, measurement.layers, measurement.shapes, watcher.roles())

    def finish(block: str | None, held: Weights) -> None:
        mine = measurement.paths_in(block)
        on_layers(
            {path: _importance(measurement, path, watcher, gauge, columns) for path in mine}, held
        )
        on_step()

    backward(
        forward,
        BlockWeights(blocks, measurement.load),
        loss=lambda index, logits: _sampled_log_likelihood(logits, measurement.seed + index),
        gauge=gauge,
        on_block=finish,
    )
    return watcher


def _evenly_spaced(batches: Sequence[mx.array], num_tokens: int) -> list[int]:
    """Indices of batches that together hold about `num_tokens`; of all, where there are fewer."""
    total = sum(batch.size for batch in batches)
    count = min(len(batches), math.ceil(len(batches) * num_tokens / total)) if total else 0
    return [(2 * i + 1) * len(batches) // (2 * count) for i in range(count)]


def draw_labels(probabilities: mx.array, drawn: mx.array) -> mx.array:
    """One index per distribution (..., n), (...), by where a uniform number falls in its sums.

    `mx.random.categorical` takes two logarithms and a random number for every index instead.

    Args:
        probabilities: (..., n), float32.
        drawn: Uniform numbers, (..., 1).
    """
    running = mx.cumsum(probabilities, axis=-1)
    labels = mx.sum(running <= drawn * running[..., -1:], axis=-1)
    return mx.minimum(labels, running.shape[-1] - 1)


def _sampled_log_likelihood(logits: mx.array, seed: int) -> mx.array:
    """A function whose gradient is that of the log-likelihood of labels drawn from the model.

    That is one at the label less the probabilities. Written out, some rows at a time, it takes one
    softmax and hardly memory beside the logits and itself, the largest arrays of a pass. The value
    is of no use.
    """

    @mx.custom_function
    def nothing(_logits: mx.array) -> mx.array:
        return mx.array(0.0)

    @nothing.vjp
    def nothing_vjp(given: mx.array, cotangent: mx.array, _output: mx.array) -> mx.array:
        rows = given.reshape(-1, given.shape[-1])
        drawn = mx.random.uniform(shape=(rows.shape[0], 1), key=mx.random.key(seed))
        step, parts = max(1, CHUNK_LOGITS // rows.shape[-1]), list[mx.array]()
        for start in range(0, rows.shape[0], step):
            chunk = slice(start, start + step)
            probabilities = mx.softmax(rows[chunk].astype(mx.float32), axis=-1)
            labels = draw_labels(probabilities, drawn[chunk])[..., None]
            at_labels = mx.take_along_axis(probabilities, labels, axis=-1)
            gradient = mx.put_along_axis(-probabilities, labels, 1.0 - at_labels, axis=-1)
            parts.append((cotangent * gradient).astype(given.dtype))
        return mx.concatenate(parts).reshape(given.shape)

    return cast("mx.array", nothing(logits))


def _check_inputs(watcher: HessianObserver, path: str, role: Role) -> None:
    moments = watcher.of(path, role)
    assert moments is not None
    if not mx.isfinite(moments.inputs.sum()).item():
        raise NonFiniteError(
            f"NaN or infinity went into layer '{path}' in the calibration pass, though the "
            "weights before it are finite. The model needs a wider dtype than it is stored in.",
            layer=path,
        )


def _importance(
    measurement: Measurement,
    path: str,
    watcher: HessianObserver,
    gauge: FisherGauge,
    columns: Mapping[str, mx.array],
) -> Importance:
    terms = []
    for role in Role:
        moments = watcher.of(path, role)
        found = gauge.means(path, role)
        if moments is None or found is None:
            continue
        gradients, counts = found
        inputs = columns.get(path, moments.smoothed().inputs) / measurement.num_tokens
        if role is Role.LOOKUP:
            unseen = _UNSEEN_TOKENS * inputs.size
            inputs = (moments.inputs + _UNSEEN_TOKENS) / (measurement.num_tokens + unseen)
        if role is Role.SWITCH:
            gradients = towards_mean_expert(gradients, counts)
        mass = scalar(inputs.sum() * gradients.sum())
        if not mass < float("inf"):
            raise FloatingPointError(f"the gradient at layer '{path}' is not finite")
        if mass > 0:  # a layer without a gradient (a sparse index) tells nothing of its cost
            as_output = role not in (Role.LOOKUP, Role.TRANSPOSED)
            terms.append(Term(gradients, inputs) if as_output else Term(inputs, gradients))
    return Importance(tuple(terms))


def _gauged(seen: Observation, accumulator: mx.array) -> mx.array:
    lead = accumulator.shape[:-1]

    @mx.custom_function
    def identity(y: mx.array, _accumulator: mx.array) -> mx.array:
        return y

    @identity.vjp
    def identity_vjp(
        _primals: list[mx.array], cotangent: mx.array, _output: mx.array
    ) -> tuple[mx.array, mx.array]:
        ones = mx.ones((*cotangent.shape[:-1], 1))
        sums = (squares(array, seen.role, seen.experts, lead) for array in (cotangent, ones))
        return cotangent, mx.concatenate(list(sums), axis=-1)

    return cast("mx.array", identity(seen.y, accumulator))


def _accumulator_shape(shape: Sequence[int], role: Role) -> tuple[int, ...]:
    *lead, outputs, inputs = shape
    width = inputs if role in (Role.LOOKUP, Role.TRANSPOSED) else outputs
    return (*lead, width + 1)


def _key(path: str, role: Role) -> str:
    return f"{path}|{role}"
