"""Distil the original into the scales, biases and norms of a quantized model; its codes stay.

Each step is one streamed pass forward and one backward of KL(original ‖ quantized) over a batch of
windows, and one update by Adam. All that moves does so in units of its own, so that one rate serves
all formats: scales and biases in steps of the quantizer, and vectors that are stored unquantized
(the weights of norms, the biases of linear layers) in their root mean square. The rate rises over
the first steps and falls to zero along a cosine.

The KL divergence on held-out windows is measured eight times on the way and after the last step,
whether the steps ended by their number, by the time budget or by a missing gradient. The values
with the least held-out KL are kept; the original ones where no step lowers it.

Beside the memory of a pass, scales and biases are held with the two moments of Adam: 24 bytes per
group.

Source: the idea is that of `mlx_lm.quant.dwq`, which holds both models at once and moves no norms.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager

import mlx.core as mx

from dynquant.quant.formats import QuantFormat
from dynquant.quant.mlx.arrays import Weights, compute_dtype, is_floating
from dynquant.quant.mlx.backward import Loss, NoGradientError, backward
from dynquant.quant.mlx.encoding import Encoded, decode, from_codes, shifted, unpacked
from dynquant.quant.mlx.evaluation import kl_divergences
from dynquant.quant.mlx.parameters import set_parameter
from dynquant.quant.mlx.streaming import BlockModel, BlockWeights, Forward

__all__ = ["distilled"]

logger = logging.getLogger(__name__)

_PAIR_RATE = 0.003  # of Adam, in steps of the quantizer
_VECTOR_RATE = 0.001  # in root mean squares
_WARM_UP = 0.05  # share of the steps
_DECAYS = (0.9, 0.95)  # of Adam's moments
_TINY = 1e-30
_NUM_EVALUATIONS = 8


class Student:
    """Gradient targets: all that distillation moves, each as a shift from its first value.

    The codes are held for one block at a time.

    Args:
        blocks: The model.
        stored: Gives the stored arrays of the quantized model lazily, by name.
        formats: Path → format of every layer with scales and biases.
        num_steps: Steps of Adam to come.

    Attributes:
        shifts: Path of a layer → (2, ..., groups); name of a vector → (n,).
    """

    def __init__(
        self,
        blocks: BlockModel,
        stored: Callable[[], Weights],
        formats: Mapping[str, QuantFormat],
        *,
        num_steps: int,
    ) -> None:
        self._blocks = blocks
        self._formats = formats
        self._num_steps = num_steps
        self._codes: dict[str, mx.array] = {}
        self._held: Weights = {}
        self._moments: dict[str, tuple[mx.array, mx.array]] = {}
        self._gradients: dict[str, mx.array] = {}
        self._num_done = 0
        arrays = stored()
        self._pairs = {p: (arrays[f"{p}.scales"], arrays[f"{p}.biases"]) for p in formats}
        taken = {f"{path}.{name}" for path in formats for name in ("weight", "scales", "biases")}
        self._vectors = {
            name: array
            for name, array in arrays.items()
            if name not in taken and array.ndim == 1 and is_floating(array)
        }
        mx.eval(self._pairs, self._vectors)
        self._rms = {
            name: mx.sqrt(mx.square(array.astype(mx.float32)).mean())
            for name, array in self._vectors.items()
        }
        self.shifts = {p: mx.zeros((2, *scale.shape)) for p, (scale, _) in self._pairs.items()}
        self.shifts |= {name: mx.zeros(array.shape) for name, array in self._vectors.items()}

    def stored(self) -> Weights:
        """Name → array of all that moved, rounded as it will be stored."""
        arrays = {name: self._vector(name, self.shifts[name]) for name in self._vectors}
        for path in self._formats:
            scales, biases = self._pair(path, self.shifts[path])
            arrays |= {f"{path}.scales": scales, f"{path}.biases": biases}
        return arrays

    def _pair(self, path: str, shift: mx.array) -> tuple[mx.array, mx.array]:
        """Scale and bias of the layer at `path` after a shift, rounded as they are stored."""
        dtype = self._pairs[path][0].dtype
        scale, bias = (each.astype(mx.float32) for each in self._pairs[path])
        return shifted(scale, bias, shift, self._formats[path].bits, dtype)

    def _vector(self, name: str, shift: mx.array) -> mx.array:
        first = self._vectors[name]
        return (first.astype(mx.float32) + self._rms[name] * shift).astype(first.dtype)

    def _weight(self, name: str, shift: mx.array) -> tuple[str, mx.array]:
        """Name of the parameter that `shift` belongs to, and its value to compute with."""
        if name in self._vectors:
            value = self._vector(name, shift)
            return name, value.astype(compute_dtype(value.dtype))
        scale, bias = self._pair(name, shift)
        weight = from_codes(self._codes[name], scale, bias)
        return f"{name}.weight", weight.astype(compute_dtype(scale.dtype))

    def decode(self, codes: Weights) -> Weights:
        """`codes` as weights, for `BlockWeights`; keeps the codes for the backward pass."""
        weights = dict(codes)
        for path in list(self._codes):
            if self._blocks.block_of(path) is not None:  # of the block before
                del self._codes[path], self._held[f"{path}.weight"]
        for path in self._formats:
            if f"{path}.weight" in codes:
                self._codes[path] = codes[f"{path}.weight"]
        for name, shift in self.shifts.items():
            if f"{name}.weight" in codes or name in codes:
                full, value = self._weight(name, shift)
                weights[full] = self._held[full] = value
        return weights

    # The three methods of `backward.GradientTargets`.

    def primals(self, block: str | None) -> dict[str, mx.array]:
        """The shifts of a block."""
        return {p: s for p, s in self.shifts.items() if self._blocks.block_of(p) == block}

    @contextmanager
    def applied(self, primals: dict[str, mx.array]) -> Iterator[None]:
        """The model with weights that depend on traced shifts."""
        model = self._blocks.model
        names = []
        for name, shift in primals.items():
            full, value = self._weight(name, shift)
            set_parameter(model, full, value)
            names.append(full)
        try:
            yield
        finally:
            for full in names:
                set_parameter(model, full, self._held[full])

    def take(self, gradients: dict[str, mx.array]) -> list[mx.array]:
        """Add up over calls and batches."""
        for name, gradient in gradients.items():
            self._gradients[name] = self._gradients.get(name, 0.0) + gradient
        return [self._gradients[name] for name in gradients]

    def begin_step(self) -> None:
        """Gradients from here on belong to one step of Adam."""
        self._gradients.clear()
        self._num_done += 1

    def finish_block(self, block: str | None, _weights: Weights) -> None:
        """Move the shifts of a block whose gradients are complete."""
        fast, slow = _DECAYS
        share = _share_of_rate(self._num_done, self._num_steps)
        for name in self.primals(block):
            gradient = self._gradients.pop(name)
            first, second = self._moments.get(name, (mx.zeros(1), mx.zeros(1)))
            first = fast * first + (1 - fast) * gradient
            second = slow * second + (1 - slow) * mx.square(gradient)
            self._moments[name] = first, second
            first = first / (1 - fast**self._num_done)
            second = second / (1 - slow**self._num_done)
            rate = share * (_VECTOR_RATE if name in self._vectors else _PAIR_RATE)
            self.shifts[name] = self.shifts[name] - rate * first / (mx.sqrt(second) + _TINY)
            mx.eval(self.shifts[name], *self._moments[name])


def _share_of_rate(step: int, num_steps: int) -> float:
    """The share of the full rate at `step`, which counts from 1."""
    warm_up = max(1.0, _WARM_UP * num_steps)
    if step < warm_up:
        return step / warm_up
    progress = (step - warm_up) / max(1.0, num_steps - warm_up + 1)
    return (1 + math.cos(math.pi * progress)) / 2


def distilled(
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
    """Better scales, biases and norms; empty where no step lowered the held-out KL.

    Args:
        blocks: The model.
        original: Gives the original's weights lazily.
        stored: Gives the stored arrays of the quantized model lazily.
        formats: Path → format of every quantized layer; those without biases stay as they are.
        batches: Windows to distil on, each (batch, seq), int32; one step takes one.
        held_out: Other windows, for the choice.
        num_steps: Steps of Adam.
        keep_going: Called before each step. Once it returns False, the held-out KL of the steps so
            far is still measured, which takes two passes forward over `held_out`.
        on_step: Called after each step.

    Returns:
        Name → array of all that moved.
    """
    models = _Models(blocks, original, stored, formats, num_steps=num_steps)
    student = models.student
    first = best = models.kl(held_out)
    kept = dict(student.shifts)
    steps = _steps(models, batches, num_steps=num_steps, keep_going=keep_going, on_step=on_step)
    for num_done in _evaluated(steps, every=max(1, num_steps // _NUM_EVALUATIONS)):
        found = models.kl(held_out)
        logger.info("distilling, step %d: held-out KL %.4g, at first %.4g", num_done, found, first)
        if found < best:
            best, kept = found, dict(student.shifts)
    student.shifts = kept
    return student.stored() if best < first else {}


class _Models:
    """The original, and the quantized model as it is so far."""

    def __init__(
        self,
        blocks: BlockModel,
        original: Callable[[], Weights],
        stored: Callable[[], Weights],
        formats: Mapping[str, QuantFormat],
        *,
        num_steps: int,
    ) -> None:
        affine = {path: fmt for path, fmt in formats.items() if fmt.mode == "affine"}
        self.student = Student(blocks, stored, affine, num_steps=num_steps)
        self._blocks = blocks
        self._original = original
        self._load = lambda: _codes(stored(), formats)

    def kl(self, windows: Sequence[mx.array]) -> float:
        """Mean KL(original ‖ quantized) on `windows`."""
        teacher, student = self._forward(windows)
        return kl_divergences(teacher, {"distilled": student})["distilled"]

    def step(self, batch: mx.array) -> None:
        """One step of Adam, by the gradient on one batch."""
        teacher, student = self._forward([batch], record=(0,))
        self.student.begin_step()
        backward(
            student,
            self._quantized(),
            loss=_divergence_from(teacher.logits()),
            targets=self.student,
            on_block=self.student.finish_block,
        )

    def _forward(
        self, windows: Sequence[mx.array], *, record: Collection[int] = ()
    ) -> tuple[Forward, Forward]:
        """Both models through all blocks; the calls of the quantized one are recorded."""
        teacher = Forward(self._blocks, BlockWeights(self._blocks, self._original), windows)
        student = Forward(self._blocks, self._quantized(), windows, record=record)
        while teacher.next_block is not None:
            teacher.step()
            student.step()
        return teacher, student

    def _quantized(self) -> BlockWeights:
        return BlockWeights(self._blocks, self._load, self.student.decode)


def _steps(
    models: _Models,
    batches: Sequence[mx.array],
    *,
    num_steps: int,
    keep_going: Callable[[], bool],
    on_step: Callable[[], None],
) -> Iterator[int]:
    """Make steps; after each, their number so far."""
    for index in range(num_steps):
        if not keep_going():
            return
        try:
            models.step(batches[index % len(batches)])
        except NoGradientError as error:
            logger.warning("This model cannot be distilled: %s", str(error).splitlines()[0][:200])
            return
        on_step()
        yield index + 1


def _evaluated(steps: Iterator[int], *, every: int) -> Iterator[int]:
    """The steps after which the held-out KL is measured: each `every`-th and the last."""
    num_done = 0
    for num_done in steps:
        if num_done % every == 0:
            yield num_done
    if num_done % every:
        yield num_done


def _divergence_from(targets: Iterator[mx.array]) -> Loss:
    """Mean KL(target ‖ logits) over all positions; each batch takes the next of `targets`."""

    def loss(_index: int, logits: mx.array) -> mx.array:
        a, b = (x.astype(mx.float32) for x in (next(targets), logits))
        a = a - mx.logsumexp(a, axis=-1, keepdims=True)
        b = b - mx.logsumexp(b, axis=-1, keepdims=True)
        difference = mx.where(
            mx.isfinite(a), a - b, 0.0
        )  # tokens that the original masks do not count
        return (mx.exp(a) * difference).sum(-1).mean()

    return loss


def _codes(stored: Weights, formats: Mapping[str, QuantFormat]) -> Weights:
    """`stored` with codes, as numbers, in the place of weights with scales and biases."""
    weights = dict(stored)
    for path, fmt in formats.items():
        names = {name: f"{path}.{name}" for name in ("weight", "scales", "biases")}
        arrays = {name: weights.pop(full) for name, full in names.items() if full in weights}
        if fmt.mode == "affine":
            weights[names["weight"]] = unpacked(arrays["weight"], fmt)
        else:
            weights[names["weight"]] = decode(Encoded(arrays, fmt), compute_dtype(mx.bfloat16))
    return weights
