"""The seed's own sensitivities, for comparison: gradient times quantization error.

Source: `mlx_lm/quant/dynamic_quant.py`. Every layer stands at the low format; the
sensitivity of a layer is Σ ∂KL/∂W · (W_low − W_high), per million weights: how much the
loss falls, to first order, when the layer moves to the high format. The seed forms every
weight gradient of the whole model; here a scalar α per layer is differentiated instead,
at W = W_low + α (W_low − W_high), block by block.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

import mlx.core as mx

from dynquant.errors import NonFiniteError, UnsupportedModelError
from dynquant.quant.formats import UNQUANTIZED, QuantFormat
from dynquant.quant.mlx.backward import NoGradientError, backward
from dynquant.quant.mlx.encoding import decode, encode_min_max
from dynquant.quant.mlx.loading import Weights, scalar
from dynquant.quant.mlx.sensitivity import Measurement
from dynquant.quant.mlx.streaming import BlockModel, BlockWeights, Forward
from dynquant.quant.plan import LayerProfile

__all__ = ["measure_alignment"]


@dataclass
class AlignmentGauge:
    """Differentiates with respect to one scalar per layer that moves it away from `high`."""

    blocks: BlockModel
    low: Weights = field(default_factory=dict)
    steps: Weights = field(default_factory=dict)
    sums: dict[str, mx.array] = field(default_factory=dict)

    def primals(self, block: str | None) -> dict[str, mx.array]:
        """One zero per layer."""
        return {name: mx.array(0.0) for name in self.steps if self.blocks.block_of(name) == block}

    @contextmanager
    def applied(self, primals: dict[str, mx.array]) -> Iterator[None]:
        """Put the moved weights in place."""
        for name, alpha in primals.items():
            moved = self.low[name] + alpha.astype(self.low[name].dtype) * self.steps[name]
            self.blocks.install({name: moved})
        try:
            yield
        finally:
            self.blocks.install({name: self.low[name] for name in primals})

    def forget(self, block: str | None) -> None:
        """Let the weights of `block` go."""
        for name in [name for name in self.low if self.blocks.block_of(name) == block]:
            del self.low[name], self.steps[name]

    def take(self, gradients: dict[str, mx.array]) -> list[mx.array]:
        """Add up over batches."""
        for name, gradient in gradients.items():
            self.sums[name] = self.sums[name] + gradient if name in self.sums else gradient
        return [self.sums[name] for name in gradients]


def measure_alignment(
    measurement: Measurement,
    profiles: Sequence[LayerProfile],
    *,
    low: QuantFormat,
    high: QuantFormat,
    on_step: Callable[[], None],
) -> dict[str, float]:
    """Path → sensitivity of every layer that `low` and `high` fit.

    Raises:
        NonFiniteError: A sensitivity is NaN or infinite; names the layer.
        UnsupportedModelError: The model has an operation without a gradient.
    """
    blocks = measurement.blocks
    sizes = {
        f"{p.path}.weight": p.num_weights
        for p in profiles
        if low.fits(p.shape) and high.fits(p.shape)
    }
    gauge = AlignmentGauge(blocks)

    def lowered(weights: Weights) -> Weights:
        """The low-format weights; the gauge learns which way the high format lies."""
        amended = dict(weights)
        for name in sizes:
            if name in weights:
                stored = weights[name].astype(measurement.dtypes[name])
                at_low, at_high = (_quantized(stored, fmt) for fmt in (low, high))
                dtype = weights[name].dtype
                amended[name] = gauge.low[name] = at_low.astype(dtype)
                gauge.steps[name] = (at_low - at_high).astype(dtype)
        return amended

    original = Forward(blocks, BlockWeights(blocks, measurement.load), measurement.batches)
    quantized = Forward(
        blocks,
        BlockWeights(blocks, measurement.load, lowered),
        measurement.batches,
        record=range(len(measurement.batches)),
    )
    while original.next_block is not None:
        original.step()
        quantized.step()
        gauge.low.clear()
        gauge.steps.clear()
        on_step()
    stream, targets = original.logits(), dict[int, mx.array]()

    def divergence(index: int, logits: mx.array) -> mx.array:
        if index not in targets:  # one batch's probabilities at a time
            targets.clear()
            targets[index] = mx.softmax(next(stream).astype(mx.float32), axis=-1)
        log_q = logits.astype(mx.float32) - mx.logsumexp(
            logits.astype(mx.float32), axis=-1, keepdims=True
        )
        p = targets[index]
        return (p * (mx.log(mx.maximum(p, 1e-30)) - log_q)).sum() / measurement.num_tokens

    def finish(block: str | None, _held: Weights) -> None:
        gauge.forget(block)
        on_step()

    try:
        backward(
            quantized,
            BlockWeights(blocks, measurement.load, lowered),
            loss=divergence,
            gauge=gauge,
            on_block=finish,
        )
    except NoGradientError as error:
        raise UnsupportedModelError(
            "This model has an operation without a gradient, which the alignment method needs. "
            "Use --method fisher: it falls back to a method that needs none."
        ) from error
    return _per_million_weights({name: scalar(s) for name, s in gauge.sums.items()}, sizes)


def _per_million_weights(sums: Mapping[str, float], sizes: Mapping[str, int]) -> dict[str, float]:
    found = {}
    for name, size in sizes.items():
        path, value = name.removesuffix(".weight"), sums.get(name, 0.0)
        if not math.isfinite(value):
            raise NonFiniteError(f"The sensitivity of layer '{path}' is not finite.", layer=path)
        found[path] = 1e6 * value / size
    return found


def _quantized(weight: mx.array, fmt: QuantFormat) -> mx.array:
    return weight if fmt == UNQUANTIZED else decode(encode_min_max(weight, fmt))
