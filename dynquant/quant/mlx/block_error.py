"""Costs without gradients: the relative error at a block's output for an error in one layer.

For models with an operation that has no VJP. Each layer of a block is disturbed alone
and the relative error of the block's output is measured; the probes convert it into nats.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import mlx.core as mx

from dynquant.quant.formats import QuantFormat
from dynquant.quant.mlx.arrays import Weights, check_finite, scalar
from dynquant.quant.mlx.block_calls import Call
from dynquant.quant.mlx.encoding import decode, encode_min_max
from dynquant.quant.mlx.hessians import HessianObserver
from dynquant.quant.mlx.importance import Importance, Term
from dynquant.quant.mlx.observing import Role, observed
from dynquant.quant.mlx.sensitivity import Measurement
from dynquant.quant.mlx.streaming import BlockWeights, Forward

__all__ = ["measure_block_outputs"]

_DISTURBANCE = QuantFormat(4, 32)


def measure_block_outputs(
    measurement: Measurement,
    *,
    on_layers: Callable[[Mapping[str, Importance], Weights], None],
    on_step: Callable[[], None] = lambda: None,
) -> HessianObserver:
    """One streamed pass forward, in which each layer is disturbed alone.

    Args:
        measurement: The model and the windows.
        on_layers: Gets the importance of a block's layers, and the block's weights.
            Costs that follow from it are relative errors, not nats.
        on_step: Called after each block.

    Returns:
        The second moments, with Gram matrices only of the layers outside all blocks.

    Raises:
        NonFiniteError: A weight is NaN or infinite; names the layer.
    """
    blocks = measurement.blocks
    hessians = measurement.observer()
    weights = BlockWeights(blocks, measurement.load)
    forward = Forward(blocks, weights, measurement.batches)

    def measure_block(block: str, held: Weights) -> None:
        check_finite(held)
        call = forward.last_calls[0]
        found = {}
        for path in measurement.shapes:
            if blocks.block_of(path) == block:
                found[path] = _inside(measurement, path, held, call, hessians)
        on_layers(found, held)
        hessians.drop_grams(measurement.paths_in(block))
        on_step()

    check_finite(measurement.language(weights.outer))
    with observed(measurement.layers, hessians):
        while forward.next_block is not None:
            forward.step(hessians.pending, measure_block)
    outside = [path for path in measurement.shapes if blocks.block_of(path) is None]
    on_layers(
        {p: _outside(measurement, p, weights.outer, hessians) for p in outside}, weights.outer
    )
    return hessians


def _inside(
    measurement: Measurement, path: str, held: Weights, call: Call, hessians: HessianObserver
) -> Importance:
    """Importance of a layer by the relative error at its block's output."""
    name = f"{path}.weight"
    weight, inputs = held[name], _inputs(measurement, path, hessians)
    if inputs is None or not _DISTURBANCE.fits(weight.shape):
        return Importance(())
    disturbed = decode(encode_min_max(weight.astype(mx.float32), _DISTURBANCE))
    blocks = measurement.blocks
    blocks.install({name: disturbed.astype(weight.dtype)})
    try:
        again = call.copied()
        with hessians.paused():
            again.run(blocks.call_block)
        error = _distance(again, call)
    finally:
        blocks.install({name: weight})
    raw = scalar((inputs[..., None, :] * mx.square(disturbed - weight.astype(mx.float32))).sum())
    return _uniform_rows(inputs, weight.shape, error / raw if raw > 0 else 0.0)


def _outside(
    measurement: Measurement, path: str, outer: Weights, hessians: HessianObserver
) -> Importance:
    """Importance of a layer outside all blocks by the relative error at its own output."""
    weight = outer[f"{path}.weight"].astype(mx.float32)
    terms = list[Term]()
    inputs = _inputs(measurement, path, hessians)
    if inputs is not None:  # first, in the order of the terms that gradients give
        size = scalar((inputs[..., None, :] * mx.square(weight)).sum())
        terms += _uniform_rows(inputs, weight.shape, 1 / size if size else 0.0).terms
    if hessian := hessians.of(path, Role.LOOKUP):
        seen = (hessian.inputs + 0.5) / (hessian.num_vectors + 0.5 * hessian.inputs.size)
        size = scalar((seen[:, None] * mx.square(weight)).sum())
        terms += [Term(2 / size * seen, mx.ones(weight.shape[-1]))] if size else []
    return Importance(tuple(terms))


def _inputs(measurement: Measurement, path: str, hessians: HessianObserver) -> mx.array | None:
    """Mean squared input per token, (*lead, in)."""
    for role in (Role.LINEAR, Role.SWITCH, Role.HEADS):
        if hessian := hessians.of(path, role):
            return hessian.smoothed().inputs / measurement.num_tokens
    return None


def _uniform_rows(inputs: mx.array, shape: tuple[int, ...], gain: float) -> Importance:
    if not 0 < gain < float("inf"):
        return Importance(())
    return Importance((Term(mx.full(shape[:-1], 2 * gain), inputs),))


def _distance(disturbed: Call, original: Call) -> float:
    """Relative square error of all outputs of the block."""
    error = size = 0.0
    for a, b in zip(disturbed.outputs(), original.outputs(), strict=True):
        error += scalar(mx.square((a - b).astype(mx.float32)).sum())
        size += scalar(mx.square(b.astype(mx.float32)).sum())
    return error / size if size > 0 else 0.0
