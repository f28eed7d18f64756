"""Importance of each weight: a streamed pass forward, and one backward for some of the text.

For a layer y = Wx the KL divergence per token that an error ΔW brings is, to second order and
with diagonal factors, ½ Σ_oi row_o · col_i · ΔW_oi². Here row is the mean squared gradient of the
log-likelihood at y, with labels sampled from the model itself (the true Fisher information), and
col the mean squared input, the diagonal of H. For GPTQ col is the variance of an input given the
inputs encoded later, which compensate for the rest. Every role of a weight adds one such term.

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
from dynquant.quant.mlx.arrays import Weights, check_finite, scalar
from dynquant.quant.mlx.backward import backward
from dynquant.quant.mlx.calibration import CHUNK_LOGITS
from dynquant.quant.mlx.hessians import HessianObserver, takes_gptq, towards_mean_expert
from dynquant.quant.mlx.importance import Importance, Term
from dynquant.quant.mlx.inverse_hessian import conditional_variances
from dynquant.quant.mlx.model_inputs import Batch, tokens_of
from dynquant.quant.mlx.observing import Observation, Role, observed, squares
from dynquant.quant.mlx.parameters import quantizable
from dynquant.quant.mlx.streaming import BlockModel, BlockWeights, Forward

__all__ = ["GRADIENT_TOKENS", "Measurement", "draw_labels", "measure_importance"]

_UNSEEN_TOKENS = 0.5  # Jeffreys prior: tokens that the text lacks occur in use
GRADIENT_TOKENS = 4096  # at least, of the backward pass, where the text has as many
_ORDER_GROUP_SIZE = 32  # the smallest group size, for the order of columns in GPTQ


@dataclass
class FisherDiagonal:
    """Gradient targets: one sum Σ g² over the gradients g at each output of each layer.

    Each output passes through an identity function whose VJP adds `Σ g²` and the number of vectors
    g to an accumulator, so that no gradient of a weight is formed.
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
        """The layers with outputs that pass through the accumulators."""

        def observer(seen: Observation) -> mx.array:
            accumulator = primals.get(_key(seen.path, seen.role))
            return seen.y if accumulator is None else _accumulated(seen, accumulator)

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
    """A model and the windows to measure it on.

    Attributes:
        blocks: The model.
        load: Gives a fresh set of lazily loaded weights.
        batches: Calibration windows, each (batch, seq), int32, and questions about images.
        shapes: Path of each quantizable layer → shape of its weight.
        gptq: Whether the encoder is `gptq`, which needs Gram matrices.
        seed: Seed of the labels that are sampled from the model.
        is_language: Whether a parameter belongs to the language model.
    """

    blocks: BlockModel
    load: Callable[[], Weights]
    batches: Sequence[Batch]
    shapes: Mapping[str, Sequence[int]]
    gptq: bool
    seed: int
    is_language: Callable[[str], bool] = lambda _path: True

    def language(self, weights: Weights) -> Weights:
        """Those of `weights` that text goes through; a tower is not even read for them."""
        return {path: array for path, array in weights.items() if self.is_language(path)}

    @cached_property
    def dtypes(self) -> dict[str, mx.Dtype]:
        """Parameter path → dtype that it is stored in."""
        return {path: array.dtype for path, array in self.load().items()}

    @property
    def num_tokens(self) -> int:
        """Calibration tokens in all."""
        return sum(tokens_of(batch).size for batch in self.batches)

    @property
    def layers(self) -> dict[str, nn.Module]:
        """The quantizable layers."""
        found = quantizable(self.blocks.model)
        return {path: layer for path, layer in found.items() if path in self.shapes}

    def paths_in(self, block: str | None) -> list[str]:
        """The layers of a block; with None those outside all blocks."""
        return [path for path in self.shapes if self.blocks.block_of(path) == block]

    def observer(self) -> HessianObserver:
        """Sums up the layers' inputs; their Gram matrices too, where GPTQ needs them.

        Gram matrices are freed with their block, so a block that is called again has only squares.
        """
        calls = self.blocks.num_calls
        again = {p for p in self.shapes if calls.get(self.blocks.block_of(p) or "", 1) > 1}
        return HessianObserver(self.shapes, gram=self.gptq, squares_only=again)


def measure_importance(
    measurement: Measurement,
    *,
    on_layers: Callable[[Mapping[str, Importance], Weights], None],
    on_step: Callable[[], None] = lambda: None,
) -> HessianObserver:
    """One streamed pass forward over the calibration windows, one backward over some of them.

    Mean squared gradients need far fewer tokens than Gram matrices; only the batches that go
    backward are kept.

    Args:
        measurement: The model and the windows.
        on_layers: Gets the importance of a block's layers, and the block's weights.
        on_step: Called after each block, both ways.

    Returns:
        The second moments, with Gram matrices only of the layers outside all blocks.

    Raises:
        NonFiniteError: A weight or a layer's input is NaN or infinite; names the layer.
        FloatingPointError: A gradient is NaN or infinite, though the forward pass was finite.
        NoGradientError: The model has an operation without a VJP.
    """
    blocks = measurement.blocks
    record = _evenly_spaced(measurement.batches, GRADIENT_TOKENS)
    forward = Forward(
        blocks, BlockWeights(blocks, measurement.load), measurement.batches, record=record
    )
    hessians, columns = _forward_pass(measurement, forward, on_step)
    targets = FisherDiagonal(blocks, measurement.layers, measurement.shapes, hessians.roles())

    def finish(block: str | None, held: Weights) -> None:
        mine = measurement.paths_in(block)
        on_layers(
            {path: _importance(measurement, path, hessians, targets, columns) for path in mine},
            held,
        )
        on_step()

    backward(
        forward,
        BlockWeights(blocks, measurement.load),
        loss=lambda index, logits: _sampled_log_likelihood(logits, measurement.seed + index),
        targets=targets,
        on_block=finish,
    )
    return hessians


def _forward_pass(
    measurement: Measurement, forward: Forward, on_step: Callable[[], None]
) -> tuple[HessianObserver, dict[str, mx.array]]:
    """Gather H of every layer, and reduce it to one number per column as soon as it is complete.

    Returns:
        The second moments, and path → conditional variance of each input of the layers that GPTQ
        encodes, (..., in).
    """
    hessians, columns = measurement.observer(), dict[str, mx.array]()
    check_finite(measurement.language(forward.weights.outer))
    with observed(measurement.layers, hessians):
        while (block := forward.next_block) is not None:
            forward.step(hessians.pending, lambda _path, held: check_finite(held))
            columns |= _conditional_variances(measurement, hessians, block)
            hessians.drop_grams(measurement.paths_in(block))
            on_step()
    # The head gets its inputs behind the last block.
    return hessians, columns | _conditional_variances(measurement, hessians, None)


def _conditional_variances(
    measurement: Measurement, hessians: HessianObserver, block: str | None
) -> dict[str, mx.array]:
    """Path → `conditional_variances` of its H, made once for the layers of a block that share H."""
    by_path, by_hessian = dict[str, mx.array](), dict[int, mx.array]()
    for path, role in hessians.roles():
        if measurement.blocks.block_of(path) != block:
            continue
        _check_inputs(hessians, path, role)
        if takes_gptq(hessians, path):
            shared = id(hessians.of(path, role))
            if shared not in by_hessian:
                hessian = hessians.matrix(path, role)
                by_hessian[shared] = conditional_variances(hessian, _ORDER_GROUP_SIZE)
                mx.eval(by_hessian[shared])
            by_path[path] = by_hessian[shared]
    return by_path


def _evenly_spaced(batches: Sequence[Batch], num_tokens: int) -> list[int]:
    """Indices of batches that together hold about `num_tokens`; of all, where there are fewer."""
    total = sum(tokens_of(batch).size for batch in batches)
    count = min(len(batches), math.ceil(len(batches) * num_tokens / total)) if total else 0
    return [(2 * i + 1) * len(batches) // (2 * count) for i in range(count)]


def draw_labels(probabilities: mx.array, drawn: mx.array) -> mx.array:
    """One index per distribution (..., n), (...): where its running sum exceeds a uniform number.

    `mx.random.categorical` takes two logarithms and a random number for every index instead.

    Args:
        probabilities: (..., n), float32.
        drawn: Uniform numbers, (..., 1).
    """
    running = mx.cumsum(probabilities, axis=-1)
    labels = mx.sum(running <= drawn * running[..., -1:], axis=-1)
    return mx.minimum(labels, running.shape[-1] - 1)


def _sampled_log_likelihood(logits: mx.array, seed: int) -> mx.array:
    """A function with the gradient of the log-likelihood of labels drawn from the model.

    With p = softmax(logits) the gradient is 1 - p at the label and -p elsewhere. Written out, some
    rows at a time, it takes one softmax and little memory beside the logits and itself, the largest
    arrays of a pass. The function's value is not used.
    """

    @mx.custom_function
    def constant(_logits: mx.array) -> mx.array:
        return mx.array(0.0)

    @constant.vjp
    def constant_vjp(given: mx.array, cotangent: mx.array, _output: mx.array) -> mx.array:
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

    return cast("mx.array", constant(logits))


def _check_inputs(hessians: HessianObserver, path: str, role: Role) -> None:
    hessian = hessians.of(path, role)
    assert hessian is not None
    if not mx.isfinite(hessian.inputs.sum()).item():
        raise NonFiniteError(
            f"NaN or infinity went into layer '{path}' in the calibration pass, though the "
            "weights before it are finite. The model needs a wider dtype than it is stored in.",
            layer=path,
        )


def _importance(
    measurement: Measurement,
    path: str,
    hessians: HessianObserver,
    targets: FisherDiagonal,
    columns: Mapping[str, mx.array],
) -> Importance:
    terms = []
    for role in Role:
        hessian = hessians.of(path, role)
        found = targets.means(path, role)
        if hessian is None or found is None:
            continue
        gradients, counts = found
        inputs = columns.get(path, hessian.smoothed().inputs) / measurement.num_tokens
        if role is Role.LOOKUP:
            unseen = _UNSEEN_TOKENS * inputs.size
            inputs = (hessian.inputs + _UNSEEN_TOKENS) / (measurement.num_tokens + unseen)
        if role is Role.SWITCH:
            gradients = towards_mean_expert(gradients, counts)
        mass = scalar(inputs.sum() * gradients.sum())
        if not mass < float("inf"):
            raise FloatingPointError(f"the gradient at layer '{path}' is not finite")
        if mass > 0:  # no gradient reaches some layers, such as a sparse index
            as_output = role not in (Role.LOOKUP, Role.TRANSPOSED)
            terms.append(Term(gradients, inputs) if as_output else Term(inputs, gradients))
    return Importance(tuple(terms))


def _accumulated(seen: Observation, accumulator: mx.array) -> mx.array:
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
