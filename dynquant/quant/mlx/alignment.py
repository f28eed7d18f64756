"""Sensitivities as `mlx_lm.quant.dynamic_quant` measures them: gradient times quantization error.

All layers are stored in the low format. The sensitivity of a layer is Σ ∂KL/∂W · (W_low - W_high),
per million weights: by how much the KL divergence falls, to first order, when the layer alone is
stored in the high format. mlx-lm forms the gradients of all weights of the model; here a scalar α
for each layer is differentiated, at W = W_low + α (W_low - W_high), block by block.

Source: `estimate_sensitivities` in `mlx_lm/quant/dynamic_quant.py`, mlx-lm 0.32.2.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

import mlx.core as mx

from dynquant.errors import NonFiniteError, UnsupportedModelError
from dynquant.quant.formats import UNQUANTIZED, QuantFormat
from dynquant.quant.mlx.arrays import Weights, scalar
from dynquant.quant.mlx.backward import Loss, NoGradientError, backward
from dynquant.quant.mlx.encoding import decode, encode_min_max
from dynquant.quant.mlx.sensitivity import Measurement
from dynquant.quant.mlx.streaming import BlockModel, BlockWeights, Forward
from dynquant.quant.plan import LayerProfile

__all__ = ["measure_alignment"]


@dataclass
class AlignmentScalars:
    """Gradient targets: one scalar α for each layer, whose weight is W_low + α (W_low - W_high).

    Attributes:
        blocks: The model.
        dtypes: Parameter path → dtype that it is stored in.
        formats: The low and the high format.
        names: Weights of the layers that both fit.
        low: Name → W_low of the weights that are in memory.
        steps: Name → W_low - W_high of the same.
        sums: Name → ∂KL/∂α, summed over the batches so far.
    """

    blocks: BlockModel
    dtypes: Mapping[str, mx.Dtype]
    formats: tuple[QuantFormat, QuantFormat]
    names: Collection[str]
    low: Weights = field(default_factory=dict)
    steps: Weights = field(default_factory=dict)
    sums: dict[str, mx.array] = field(default_factory=dict)

    def lowered(self, weights: Weights) -> Weights:
        """`weights` at the low format, for `BlockWeights`; keeps their steps."""
        lowered = dict(weights)
        for name in (name for name in self.names if name in weights):
            stored = weights[name].astype(self.dtypes[name])
            at_low, at_high = (_quantized(stored, fmt) for fmt in self.formats)
            dtype = weights[name].dtype
            lowered[name] = self.low[name] = at_low.astype(dtype)
            self.steps[name] = (at_low - at_high).astype(dtype)
        return lowered

    def primals(self, block: str | None) -> dict[str, mx.array]:
        """α = 0 for each layer of `block`."""
        return {name: mx.array(0.0) for name in self.steps if self.blocks.block_of(name) == block}

    @contextmanager
    def applied(self, primals: dict[str, mx.array]) -> Iterator[None]:
        """The model with W_low + α (W_low - W_high) for weights."""
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
    blocks, batches = measurement.blocks, measurement.batches
    sizes = {
        f"{p.path}.weight": p.num_weights
        for p in profiles
        if low.fits(p.shape) and high.fits(p.shape)
    }
    targets = AlignmentScalars(blocks, measurement.dtypes, (low, high), sizes)

    def quantized() -> BlockWeights:
        return BlockWeights(blocks, measurement.load, targets.lowered)

    teacher = Forward(blocks, BlockWeights(blocks, measurement.load), batches)
    student = Forward(blocks, quantized(), batches, record=range(len(batches)))
    while teacher.next_block is not None:
        teacher.step()
        student.step()
        targets.low.clear()
        targets.steps.clear()
        on_step()

    def finish(block: str | None, _held: Weights) -> None:
        targets.forget(block)
        on_step()

    loss = _divergence_from(teacher.logits(), measurement.num_tokens)
    try:
        backward(student, quantized(), loss=loss, targets=targets, on_block=finish)
    except NoGradientError as error:
        raise UnsupportedModelError(
            "This model has an operation without a gradient, which the alignment method needs. "
            "Use --method fisher: it falls back to a method that needs none."
        ) from error
    return _per_million_weights({name: scalar(s) for name, s in targets.sums.items()}, sizes)


def _divergence_from(teacher: Iterator[mx.array], num_tokens: int) -> Loss:
    """Σ p · (log p - log q) / num_tokens; each batch takes the next logits of `teacher` for p."""

    def loss(_index: int, logits: mx.array) -> mx.array:
        p = mx.softmax(next(teacher).astype(mx.float32), axis=-1)
        log_q = logits.astype(mx.float32) - mx.logsumexp(
            logits.astype(mx.float32), axis=-1, keepdims=True
        )
        return (p * (mx.log(mx.maximum(p, 1e-30)) - log_q)).sum() / num_tokens

    return loss


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
