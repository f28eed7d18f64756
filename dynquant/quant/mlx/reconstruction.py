"""Block reconstruction: fit the codes, scales and biases of one block after the other.

    original:   x ─> [block, W] ───────────────> y            (its own inputs)
    quantized:  x̂ ─> [block, Ŵ = s·round(p) + b] ─> ŷ         (inputs of the blocks fitted so far)

GPTQ stores one layer at a time and sees no other. Here all affine layers of a block move together,
so that ŷ comes near y: the later layers of the block make up for the errors of the earlier ones,
and each block for those of the blocks before it. The loss of a batch is ‖ŷ - y‖² / ‖y‖².

With G = ∂L/∂Ŵ, one VJP of the block, a step is:

- Positions p, which stand at a code q plus an offset: ∂L/∂p = s·G, as if rounding had the
  derivative 1 (straight-through). A code changes as soon as its position crosses to the next.
- Scales and biases of each group: as in `distillation`, the scale turns about the middle of the
  codes' range, and both moves are in steps of the quantizer.

All move by the sign of their derivative, so that one rate serves all formats and layers; rates fall
linearly to zero. The sum of the moves, the path, is a fixed number of quantizer steps whatever the
number of steps taken. A block keeps its first codes where the loss on held-out windows has not
fallen.

Beside the two forward passes, one block is held with its codes (1 byte per weight), offsets (2) and
the gradient of its weights.

Sources: reconstruction by blocks on the quantized model's inputs is BRECQ (Li et al. 2021,
arXiv:2102.05426) and EfficientQAT's block stage (Chen et al. 2024, arXiv:2407.11062); steps by sign
with falling rates are SignRound (Cheng et al. 2023, arXiv:2309.05516).
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence

import mlx.core as mx

from dynquant.quant.formats import QuantFormat
from dynquant.quant.mlx.arrays import Weights, scalar
from dynquant.quant.mlx.backward import NoGradientError, gradient_errors_translated
from dynquant.quant.mlx.block_calls import Call
from dynquant.quant.mlx.encoding import affine, from_codes, shifted, unpacked
from dynquant.quant.mlx.model_inputs import Batch
from dynquant.quant.mlx.streaming import BlockModel, BlockWeights, Forward

__all__ = ["reconstruct"]

logger = logging.getLogger(__name__)

_POSITION_PATH, _SHIFT_PATH = 1.0, 0.1  # in quantizer steps
_FULL_PATH_STEPS = 100  # with fewer steps the paths are shorter, or each step would be too long
_EDGE = 0.49  # an offset begins within the bin of its code


def reconstruct(
    blocks: BlockModel,
    original: Callable[[], Weights],
    quantized: Callable[[], Weights],
    stored: Callable[[], Weights],
    formats: Mapping[str, QuantFormat],
    *,
    batches: Sequence[Batch],
    held_out: Sequence[Batch],
    num_epochs: int,
    write: Callable[[Weights], None],
    on_block: Callable[[], None] = lambda: None,
) -> None:
    """Fit each block of a quantized model to the original's, and `write` what became better.

    Blocks that the model calls several times in a pass, and models that run as a whole, stay as
    they are.

    Args:
        blocks: The model.
        original: Gives the original's weights lazily.
        quantized: Gives the quantized model's weights lazily, decoded.
        stored: Gives its arrays as they are stored, lazily.
        formats: Path → format of every quantized layer; those without biases stay as they are.
        batches: Windows to fit on; one step takes one.
        held_out: Other windows, for the choice.
        num_epochs: How often a block sees each batch.
        write: Gets the stored arrays of a block's layers, name → array.
        on_block: Called after each block.
    """
    if blocks.is_whole:
        return
    affine_layers = {path: fmt for path, fmt in formats.items() if fmt.mode == "affine"}
    packed = stored()
    teacher = Forward(blocks, BlockWeights(blocks, original), [*batches, *held_out])
    weights, wanted = Weights(), list[list[mx.array]]()

    def keep(_block: str, held: Weights) -> None:
        """The original's outputs of its latest block, and the weights that made them."""
        weights.update({path: held[f"{path}.weight"] for path in layers})
        wanted.extend(call.outputs() for call in teacher.last_calls)

    def fitted(held: Weights) -> Weights:
        """The quantized weights of the block that comes next, fitted."""
        if not weights:  # of no block, or of one that stays
            return held
        fit = _Fit(blocks, held, layers, weights, packed)
        weights.clear()
        try:
            is_better = fit.run(
                student.last_calls, wanted, num_fitted=len(batches), num_epochs=num_epochs
            )
        except NoGradientError as error:
            logger.info("block %s cannot be fitted: %s", block, str(error).splitlines()[0][:200])
            return held
        if not is_better:
            return held
        write(fit.stored())
        return held | fit.weights()

    student = Forward(blocks, BlockWeights(blocks, quantized, fitted), [*batches, *held_out])
    while (block := teacher.next_block) is not None:
        is_called_once = blocks.num_calls[block] == 1
        layers = {
            path: fmt
            for path, fmt in affine_layers.items()
            if blocks.block_of(path) == block and is_called_once
        }
        _ = student.next_block  # all batches stand before the block
        teacher.step(while_held=keep)
        student.step()
        wanted.clear()
        on_block()


class _Fit:
    """The layers of one block while they are fitted.

    Args:
        blocks: The model.
        held: The block's quantized weights, by name.
        formats: Path → format of the layers to fit.
        original: Path → weight of the original.
        stored: The model's arrays as they are stored, by name; those of the block are taken out.
    """

    def __init__(
        self,
        blocks: BlockModel,
        held: Weights,
        formats: Mapping[str, QuantFormat],
        original: Weights,
        stored: Weights,
    ) -> None:
        self._blocks = blocks
        self._held = held
        self._layers = {
            path: _Layer(
                original[path],
                {name: stored.pop(f"{path}.{name}") for name in ("weight", "scales", "biases")},
                fmt,
            )
            for path, fmt in formats.items()
        }
        for layer in self._layers.values():
            layer.evaluate()

    def run(
        self,
        calls: Sequence[Call],
        wanted: Sequence[list[mx.array]],
        *,
        num_fitted: int,
        num_epochs: int,
    ) -> bool:
        """Take all steps; whether the loss on held-out windows fell.

        Args:
            calls: The block's calls, with the inputs of the quantized model.
            wanted: The original's outputs for each.
            num_fitted: How many of them to fit on; the others are held out.
            num_epochs: How often to go over them.

        Raises:
            NoGradientError: The block has an operation without a VJP.
        """
        held_out = list(zip(calls, wanted, strict=True))[num_fitted:]
        self._blocks.install(self._held)
        num_steps = num_fitted * num_epochs
        path = min(1.0, num_steps / _FULL_PATH_STEPS)
        first = self._loss(held_out)
        for index in range(num_steps):
            # 2 (n - i) / (n (n + 1)), added up over all n steps i, is 1.
            share = path * 2 * (num_steps - index) / (num_steps * (num_steps + 1))
            at = index % num_fitted
            self._step(calls[at], wanted[at], share)
        last = self._loss(held_out)
        logger.info(
            "fitted block %s: held-out error %.4g, at first %.4g", calls[0].path, last, first
        )
        return last < first

    def weights(self) -> Weights:
        """The weights that the layers stand for, by name."""
        return {
            name: layer.weight().astype(self._held[name].dtype)
            for path, layer in self._layers.items()
            for name in [f"{path}.weight"]
        }

    def stored(self) -> Weights:
        """The layers' arrays as they are stored, by name."""
        return {
            f"{path}.{name}": array
            for path, layer in self._layers.items()
            for name, array in layer.stored().items()
        }

    def _loss(self, pairs: Sequence[tuple[Call, list[mx.array]]]) -> float:
        """Mean loss of the layers as they are."""
        weights = self.weights()
        mx.eval(weights)
        losses = []
        for call, wanted in pairs:
            losses.append(self._distance(weights, call, wanted))
            mx.eval(losses[-1])
        return sum(map(scalar, losses)) / len(losses)

    def _step(self, call: Call, wanted: list[mx.array], share: float) -> None:
        with gradient_errors_translated():
            gradients = mx.grad(self._distance)(self.weights(), call, wanted)
            for path, layer in self._layers.items():
                layer.move(gradients[f"{path}.weight"], share)
            mx.eval([layer.state for layer in self._layers.values()])

    def _distance(self, weights: Weights, call: Call, wanted: list[mx.array]) -> mx.array:
        """‖ŷ - y‖² / ‖y‖², summed over the outputs of a call."""
        self._blocks.install(weights)
        again = call.copied()
        again.run(self._blocks.call_block)
        loss = mx.array(0.0)
        for found, right in zip(again.outputs(), wanted, strict=True):
            y = right.astype(mx.float32)
            loss = loss + mx.square(found.astype(mx.float32) - y).sum() / (
                mx.square(y).sum() + _TINY
            )
        return loss


_TINY = 1e-30


class _Layer:
    """Codes q, offsets p - q, and shifts of the scales and biases of one layer.

    The offsets stay within half a step of the codes, so that float16 holds them to 1/4096 step.

    Args:
        weight: W of the original, (..., out, in).
        arrays: `weight`, `scales`, `biases` as they are stored.
        fmt: Their format.
    """

    def __init__(self, weight: mx.array, arrays: Mapping[str, mx.array], fmt: QuantFormat) -> None:
        self._fmt = fmt
        self._top = 2**fmt.bits - 1
        self._dtype = arrays["scales"].dtype
        self._scale, self._bias = (arrays[name].astype(mx.float32) for name in ("scales", "biases"))
        grouped = (*arrays["scales"].shape, fmt.group_size)
        self._codes = unpacked(arrays["weight"], fmt).reshape(grouped)
        scale, bias = self._scale[..., None], self._bias[..., None]
        exact = (weight.astype(mx.float32).reshape(grouped) - bias) / scale
        self._offsets = mx.clip(exact - self._codes, -_EDGE, _EDGE).astype(mx.float16)
        self._shifts = mx.zeros((2, *self._scale.shape))
        self._shape = weight.shape

    @property
    def state(self) -> list[mx.array]:
        """The arrays that a step changes."""
        return [self._codes, self._offsets, self._shifts]

    def evaluate(self) -> None:
        """Read and unpack the arrays."""
        mx.eval(self._scale, self._bias, self.state)

    def weight(self) -> mx.array:
        """s·q + b with the scale and bias as they will be stored, (..., out, in), float32."""
        return from_codes(self._codes, *self._pair()).reshape(self._shape)

    def stored(self) -> Mapping[str, mx.array]:
        """The stock arrays."""
        scale, bias = self._pair()
        return affine(self._codes.reshape(self._shape), scale, bias, self._fmt).arrays

    def move(self, gradient: mx.array, share: float) -> None:
        """One step, over `share` of the path."""
        g = gradient.astype(mx.float32).reshape(self._codes.shape)
        # By `shifted`, ∂L/∂t₀ = s₀ Σ g (q / m - 1) and ∂L/∂t₁ = s₀ Σ g.
        sums = mx.stack([(g * (self._codes / (self._top / 2) - 1)).sum(-1), g.sum(-1)])
        offsets = self._offsets - share * _POSITION_PATH * mx.sign(g * self._scale[..., None])
        codes = mx.clip(self._codes + mx.round(offsets), 0, self._top)
        self._offsets = mx.clip(offsets - (codes - self._codes), -0.5, 0.5).astype(mx.float16)
        self._codes = codes.astype(mx.uint8)
        self._shifts = self._shifts - share * _SHIFT_PATH * mx.sign(sums * self._scale)

    def _pair(self) -> tuple[mx.array, mx.array]:
        """Scale and bias in the dtype that they are stored in, (..., groups)."""
        return shifted(self._scale, self._bias, self._shifts, self._fmt.bits, self._dtype)
