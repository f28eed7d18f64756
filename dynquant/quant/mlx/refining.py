"""Distil the original into the scales and biases of a quantized model; its codes stay.

Each round is one streamed pass forward and one backward of KL(original ‖ quantized) over
the calibration windows, with gradients of scales and biases alone, and one step of Adam.
Steps are counted in quantization steps of each group, so that one rate serves all formats.
What is kept is the round with the least KL on windows that no gradient saw, and nothing
if none is better than the start. Every fourth round is looked at, and the last, whichever ended
the rounds: their number, the time budget, or a gradient that could not be taken.

Besides what a pass takes, scales and biases are held with the two moments of Adam: 24 bytes
per group. The idea is that of `mlx_lm.quant.dwq`, which holds both models at once.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager

import mlx.core as mx

from dynquant.quant.formats import QuantFormat
from dynquant.quant.mlx.backward import Loss, NoGradientError, backward
from dynquant.quant.mlx.encoding import Encoded, decode
from dynquant.quant.mlx.evaluation import kl_divergences
from dynquant.quant.mlx.loading import Weights, compute_dtype
from dynquant.quant.mlx.parameters import set_parameter
from dynquant.quant.mlx.streaming import BlockModel, BlockWeights, Forward

__all__ = ["refined"]

logger = logging.getLogger(__name__)

_RATE = 0.003  # of Adam, in quantization steps; 0.02 made the held-out KL worse
_DECAYS = (0.8, 0.95)  # of its moments; shorter than usual, as there are few rounds
_TINY = 1e-30
_STEPS_BETWEEN_LOOKS = 4


class Pairs:
    """Scales and biases of all layers while they move, and the codes of the block at hand.

    A group's scale moves by its `scale shift` over half the range of its codes, so that both
    shifts are in steps of the quantizer.

    Args:
        blocks: The model.
        stored: Gives the stored arrays of the quantized model lazily, by name.
        formats: Path → format of every layer with scales and biases.
    """

    def __init__(
        self,
        blocks: BlockModel,
        stored: Callable[[], Weights],
        formats: Mapping[str, QuantFormat],
    ) -> None:
        self._blocks = blocks
        self._formats = formats
        self._codes: dict[str, mx.array] = {}
        self._held: Weights = {}
        self._moments: dict[str, tuple[mx.array, mx.array]] = {}
        arrays = stored()
        self._dtypes = {path: arrays[f"{path}.scales"].dtype for path in formats}
        self._first = {
            path: (
                arrays[f"{path}.scales"].astype(mx.float32),
                arrays[f"{path}.biases"].astype(mx.float32),
            )
            for path in formats
        }
        self.shifts = {path: mx.zeros((2, *first[0].shape)) for path, first in self._first.items()}
        self._gradients: dict[str, mx.array] = {}
        self._num_steps = 0
        mx.eval(self._first)

    def pair(self, path: str, shift: mx.array) -> tuple[mx.array, mx.array]:
        """Scale and bias after a shift (2, ..., groups), float32, not yet rounded."""
        scale, bias = self._first[path]
        middle = (2 ** self._formats[path].bits - 1) / 2
        moved = scale * (1 + shift[0] / middle)
        # The scale turns about the middle of the range, so that both shifts are independent.
        return moved, bias + scale * shift[1] - (moved - scale) * middle

    def stored_pair(self, path: str) -> tuple[mx.array, mx.array]:
        """Scale and bias as they are, rounded as they will be stored."""
        scale, bias = self.pair(path, self.shifts[path])
        dtype = self._dtypes[path]
        return scale.astype(dtype), bias.astype(dtype)

    def decode(self, codes: Weights) -> Weights:
        """`codes` as weights, for `BlockWeights(amend=…)`; notes the codes for the way back."""
        weights = dict(codes)
        mine = [path for path in self._formats if f"{path}.weight" in codes]
        for path in list(self._codes):
            if self._blocks.block_of(path) is not None:  # of the block before
                del self._codes[path], self._held[path]
        for path in mine:
            self._codes[path] = codes[f"{path}.weight"]
            scale, bias = (p.astype(mx.float32) for p in self.stored_pair(path))
            decoded = _decoded(self._codes[path], scale, bias)
            self._held[path] = decoded.astype(compute_dtype(self._dtypes[path]))
            weights[f"{path}.weight"] = self._held[path]
        return weights

    # What follows is a `reverse.GradientObserver`.

    def primals(self, block: str | None) -> dict[str, mx.array]:
        """The shifts of a block's layers."""
        return {p: s for p, s in self.shifts.items() if self._blocks.block_of(p) == block}

    @contextmanager
    def applied(self, primals: dict[str, mx.array]) -> Iterator[None]:
        """The layers' weights made from traced shifts."""
        model = self._blocks.model
        for path, shift in primals.items():
            weight = _decoded(self._codes[path], *self.pair(path, shift))
            set_parameter(model, f"{path}.weight", weight.astype(self._held[path].dtype))
        try:
            yield
        finally:
            for path in primals:
                set_parameter(model, f"{path}.weight", self._held[path])

    def take(self, gradients: dict[str, mx.array]) -> list[mx.array]:
        """Add up over calls and batches."""
        for path, gradient in gradients.items():
            self._gradients[path] = self._gradients.get(path, 0.0) + gradient
        return [self._gradients[path] for path in gradients]

    def begin_step(self) -> None:
        """Gradients from here on belong to one step of Adam."""
        self._gradients.clear()
        self._num_steps += 1

    def finish_block(self, block: str | None, _weights: Weights) -> None:
        """Move the shifts of a block whose gradients are complete."""
        fast, slow = _DECAYS
        for path in self.primals(block):
            gradient = self._gradients.pop(path)
            first, second = self._moments.get(path, (mx.zeros(1), mx.zeros(1)))
            first = fast * first + (1 - fast) * gradient
            second = slow * second + (1 - slow) * mx.square(gradient)
            self._moments[path] = first, second
            first = first / (1 - fast**self._num_steps)
            second = second / (1 - slow**self._num_steps)
            self.shifts[path] = self.shifts[path] - _RATE * first / (mx.sqrt(second) + _TINY)
            mx.eval(self.shifts[path], *self._moments[path])


def refined(
    blocks: BlockModel,
    original: Callable[[], Weights],
    stored: Callable[[], Weights],
    formats: Mapping[str, QuantFormat],
    *,
    batches: Sequence[mx.array],
    held_out: Sequence[mx.array],
    num_steps: int,
    keep_going: Callable[[], bool] = lambda: True,
    on_step: Callable[[], None] = lambda: None,
) -> Weights:
    """Better scales and biases of a quantized model; empty where none were found.

    Args:
        blocks: The model.
        original: Gives the original's weights lazily.
        stored: Gives the stored arrays of the quantized model lazily.
        formats: Path → format of every quantized layer; those without biases stay as they are.
        batches: Calibration windows, each (batch, seq), int32; one step takes one.
        held_out: Other windows, for the choice.
        num_steps: Steps of Adam.
        keep_going: Asked before each step. Once it says no, the steps that were made are still
            looked at, which takes two passes forward over `held_out`.
        on_step: Called after each step.

    Returns:
        Name → array, scales and biases of every layer that has both.
    """
    affine = {path: fmt for path, fmt in formats.items() if fmt.mode == "affine"}
    pairs = Pairs(blocks, stored, affine)

    def quantized() -> BlockWeights:
        return BlockWeights(blocks, lambda: _codes(stored(), formats), pairs.decode)

    def held_out_kl() -> float:
        teacher = Forward(blocks, BlockWeights(blocks, original), held_out)
        student = Forward(blocks, quantized(), held_out)
        _advance(teacher, student)
        return kl_divergences(teacher, {"refined": student})["refined"]

    first = best = held_out_kl()
    kept = dict(pairs.shifts)

    def look() -> None:
        nonlocal best, kept
        found = held_out_kl()
        logger.info("refining, step %d: held-out KL %.4g, at first %.4g", num_done, found, first)
        if found < best:
            best, kept = found, dict(pairs.shifts)

    def step(batch: mx.array) -> None:
        teacher = Forward(blocks, BlockWeights(blocks, original), [batch])
        student = Forward(blocks, quantized(), [batch], record=(0,))
        _advance(teacher, student)
        pairs.begin_step()
        backward(
            student,
            quantized(),
            loss=_divergence_from(teacher.logits()),
            gauge=pairs,
            on_block=pairs.finish_block,
        )

    num_done = 0
    for num_done in _made(step, batches, num_steps=num_steps, keep_going=keep_going):
        on_step()
        if num_done % _STEPS_BETWEEN_LOOKS == 0:
            look()
    if num_done % _STEPS_BETWEEN_LOOKS:
        look()
    pairs.shifts = kept
    if best >= first:
        return {}
    return {
        f"{path}.{name}": array
        for path in affine
        for name, array in zip(("scales", "biases"), pairs.stored_pair(path), strict=True)
    }


def _made(
    step: Callable[[mx.array], None],
    batches: Sequence[mx.array],
    *,
    num_steps: int,
    keep_going: Callable[[], bool],
) -> Iterator[int]:
    """Make steps; the number of those that were made, after each."""
    for index in range(num_steps):
        if not keep_going():
            return
        try:
            step(batches[index % len(batches)])
        except NoGradientError as error:
            logger.warning("This model cannot be refined: %s", str(error).splitlines()[0][:200])
            return
        yield index + 1


def _divergence_from(targets: Iterator[mx.array]) -> Loss:
    """Mean KL(target ‖ logits) over all positions; each batch takes the next of `targets`."""

    def loss(_index: int, logits: mx.array) -> mx.array:
        a, b = (x.astype(mx.float32) for x in (next(targets), logits))
        a = a - mx.logsumexp(a, axis=-1, keepdims=True)
        b = b - mx.logsumexp(b, axis=-1, keepdims=True)
        difference = mx.where(mx.isfinite(a), a - b, 0.0)  # tokens masked out count for nothing
        return (mx.exp(a) * difference).sum(-1).mean()

    return loss


def _advance(*forwards: Forward) -> None:
    while forwards[0].next_block is not None:
        for forward in forwards:
            forward.step()


def _codes(stored: Weights, formats: Mapping[str, QuantFormat]) -> Weights:
    """`stored` with codes, as numbers, in the place of weights with scales and biases."""
    weights = dict(stored)
    for path, fmt in formats.items():
        names = {name: f"{path}.{name}" for name in ("weight", "scales", "biases")}
        arrays = {name: weights.pop(full) for name, full in names.items() if full in weights}
        if fmt.mode == "affine":
            one = mx.ones(arrays["scales"].shape)
            weights[names["weight"]] = decode(
                Encoded(arrays | {"scales": one, "biases": mx.zeros_like(one)}, fmt)
            )
        else:
            weights[names["weight"]] = decode(Encoded(arrays, fmt), compute_dtype(mx.bfloat16))
    return weights


def _decoded(codes: mx.array, scale: mx.array, bias: mx.array) -> mx.array:
    grouped = codes.reshape(*scale.shape, -1)
    return (grouped * scale[..., None] + bias[..., None]).reshape(codes.shape)
