"""The reverse pass over recorded block calls: one VJP per block, its weights read again.

An array that a block took is either another block's output (then its cotangent goes
straight there) or came from between the blocks; for the latter the model's own `__call__`
runs again with every block replaced by its recorded result, and is differentiated with
respect to those results. That makes the chain exact for every architecture, also where
blocks share keys and values or a residual stream is mixed between them. What reaches the
layers outside all blocks is gathered first and goes to them at once, since the gradient's
square is not the sum of its parts' squares.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, suppress
from functools import partial
from typing import Any, Protocol

import mlx.core as mx

from dynquant.quant.mlx.block_calls import Call, Tape
from dynquant.quant.mlx.loading import Weights
from dynquant.quant.mlx.streaming import BlockModel, BlockWeights, Forward, side_by_side

__all__ = ["GradientObserver", "NoGradientError", "backward"]


_SPEAKS_OF_GRADIENTS = re.compile("vjp|gradient|differentia|implement", re.IGNORECASE)


class NoGradientError(RuntimeError):
    """The model has an operation without a VJP."""


class GradientObserver(Protocol):
    """What to differentiate with respect to, besides the blocks' inputs."""

    def primals(self, block: str | None) -> dict[str, mx.array]:
        """Name → value of what belongs to `block` (None: to what lies outside all blocks)."""
        ...

    def applied(self, primals: dict[str, mx.array]) -> AbstractContextManager[None]:
        """Make the layers depend on traced `primals` for the duration of the context."""
        ...

    def take(self, gradients: dict[str, mx.array]) -> list[mx.array]:
        """Gets the gradients of one VJP; they add up over calls and batches.

        Returns:
            What is to be evaluated with them.
        """
        ...


Loss = Callable[[int, mx.array], mx.array]
"""(index of the batch, logits (batch, seq, vocab)) → scalar."""


def backward(
    forward: Forward,
    weights: BlockWeights,
    *,
    loss: Loss,
    gauge: GradientObserver,
    on_block: Callable[[str | None, Weights], None] = lambda _path, _weights: None,
) -> None:
    """Differentiate the summed `loss` of the recorded batches; gradients go to `gauge`.

    Args:
        forward: A finished forward pass that recorded calls.
        weights: A fresh set of the same weights.
        loss: Loss of one batch.
        gauge: What to differentiate with respect to.
        on_block: Called with a block's path and weights when its gradients are complete;
            at the end with None and the weights outside all blocks.

    Raises:
        NoGradientError: The model has an operation without a VJP.
    """
    blocks = forward.blocks
    reversals = {
        index: _Reversal(blocks, tape, forward.batches[index])
        for index, tape in forward.tapes.items()
    }
    batches = list(reversals.values())
    tape = batches[0].tape
    # Fused kernels without a VJP are used for inference only.
    blocks.model.train()
    try:
        with weights.holding_outer():
            for index, reversal in reversals.items():  # in turn: logits are large
                _evaluate(reversal.start(partial(loss, index), gauge))
        weights.release_outer()
        for position in reversed(range(len(tape))):
            path = tape[position].path
            with weights.holding(path) as held:
                through = partial(_Reversal.through_block, position=position, gauge=gauge)
                side_by_side(batches, through, _evaluate)
                if all(call.path != path for call in tape[:position]):
                    on_block(path, held)
            with weights.holding_outer():
                for batch in batches:
                    _evaluate(batch.between_blocks(position, gauge))
        with weights.holding_outer():
            for batch in batches:
                _evaluate(batch.finish(gauge))
            on_block(None, weights.outer)
    finally:
        blocks.model.eval()


class _Reached(Exception):  # noqa: N818  control flow, not an error
    """The replay came to the call that it was to stop at."""


class _Reversal:
    """The way back of one batch: cotangents by the identity of the arrays they belong to.

    Each step returns what is to be evaluated before the next.
    """

    def __init__(self, blocks: BlockModel, tape: Tape, batch: mx.array) -> None:
        self.tape = tape
        self._blocks = blocks
        self._batch = batch
        self._cotangents: dict[int, mx.array] = {}
        # Per call, which inputs came from between the blocks, and in the end their cotangents.
        self._derived: list[list[int]] = []
        self._arrived: dict[int, list[mx.array]] = {}
        known: set[int] = set()
        for call in tape:
            inputs = [id(array) for array in call.inputs()]
            self._derived.append([i for i, key in enumerate(inputs) if key not in known])
            known.update(inputs, map(id, call.outputs()))

    def start(
        self, loss: Callable[[mx.array], mx.array], gauge: GradientObserver
    ) -> list[mx.array]:
        """From the loss to the blocks' outputs."""
        results = self._results(len(self.tape))

        def run(arrays: Sequence[mx.array]) -> list[mx.array]:
            return [loss(self._replay(arrays, lambda _position, _call: None))]

        gradients, taken = _vjp(run, results, gauge.primals(None), [mx.array(1.0)], gauge)
        return taken + self._add(self._that_count(len(self.tape), gradients))

    def through_block(self, position: int, gauge: GradientObserver) -> list[mx.array]:
        """From the outputs of the call at `position` to its inputs."""
        call = self.tape[position]
        inputs = call.inputs()
        cotangents = [self._pop(array) for array in call.outputs()]

        def run(arrays: Sequence[mx.array]) -> list[mx.array]:
            traced = call.with_inputs(arrays)
            traced.run(self._blocks.call_block)
            return traced.outputs()

        gradients, taken = _vjp(run, inputs, gauge.primals(call.path), cotangents, gauge)
        return taken + self._add(zip(inputs, gradients, strict=True))

    def between_blocks(self, position: int, gauge: GradientObserver) -> list[mx.array]:
        """From inputs of the call at `position` that no block made, to what they came from."""
        inputs = self.tape[position].inputs()
        derived = [i for i in self._derived[position] if id(inputs[i]) in self._cotangents]
        self._derived[position] = derived
        self._arrived[position] = [self._pop(inputs[i]) for i in derived]
        results = self._results(position)
        if not derived or not results:
            return []

        def run(arrays: Sequence[mx.array]) -> list[mx.array]:
            found: list[mx.array] = []

            def note(at: int, call: Call) -> None:
                if at == position:
                    found.extend(self._chosen(at, call))
                    raise _Reached

            with suppress(_Reached):
                self._replay(arrays, note)
            return found

        gradients, taken = _vjp(run, results, {}, self._arrived[position], gauge)
        return taken + self._add(self._that_count(position, gradients))

    def finish(self, gauge: GradientObserver) -> list[mx.array]:
        """To the layers outside all blocks; all that comes from the blocks meets in them."""
        if not (primals := gauge.primals(None)):
            return []
        results = self._results(len(self.tape))

        cotangents = [c for at in range(len(self.tape)) for c in self._arrived[at]]

        def run(_arrays: Sequence[mx.array]) -> list[mx.array]:
            found: list[mx.array] = []

            def note(at: int, call: Call) -> None:
                found.extend(self._chosen(at, call))
                if len(found) == len(cotangents):
                    raise _Reached

            with suppress(_Reached):  # the model may change what it gets in place
                self._replay([copy.copy(array) for array in results], note)
            return found

        return _vjp(run, [], primals, cotangents, gauge)[1] if cotangents else []

    def _results(self, stop: int) -> list[mx.array]:
        return [array for call in self.tape[:stop] for array in call.outputs()]

    def _that_count(
        self, stop: int, gradients: Sequence[mx.array]
    ) -> Iterator[tuple[mx.array, mx.array]]:
        """Results of the calls before `stop` with their gradients, zeros left out.

        What lies between blocks mostly looks at the last result only; the gradients of all the
        others would take as much memory as the results do.
        """
        last = {id(array) for array in self.tape[stop - 1].outputs()}
        for array, gradient in zip(self._results(stop), gradients, strict=True):
            if id(array) in last or _is_not_zero(gradient):
                yield array, gradient

    def _chosen(self, position: int, call: Call) -> list[mx.array]:
        inputs = call.inputs()
        return [inputs[i] for i in self._derived[position]]

    def _replay(self, arrays: Sequence[mx.array], note: Callable[[int, Call], None]) -> mx.array:
        """Run the model with its blocks replaced by what they gave, with `arrays` in its place.

        `note` gets the position and the arguments of each call, and may end the run.
        """
        pool, positions = iter(arrays), iter(range(len(self.tape)))

        def give_recorded(path: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
            position, reached = next(positions), Call(path, args, kwargs)
            note(position, reached)
            call = self.tape[position]
            return call.leave(reached, [next(pool) for _ in call.outputs()])

        with self._blocks.intercepted(give_recorded):
            logits: mx.array = self._blocks.model(self._batch)
        return logits

    def _add(self, pairs: Iterable[tuple[mx.array, mx.array]]) -> list[mx.array]:
        for array, cotangent in pairs:
            present = self._cotangents.get(id(array))
            self._cotangents[id(array)] = cotangent if present is None else present + cotangent
        return list(self._cotangents.values())

    def _pop(self, array: mx.array) -> mx.array:
        cotangent = self._cotangents.pop(id(array), None)
        return mx.zeros_like(array) if cotangent is None else cotangent.astype(array.dtype)


def _vjp(
    run: Callable[[Sequence[mx.array]], list[mx.array]],
    inputs: list[mx.array],
    primals: dict[str, mx.array],
    cotangents: list[mx.array],
    gauge: GradientObserver,
) -> tuple[list[mx.array], list[mx.array]]:
    """Gradients of `run` with respect to `inputs`; those of `primals` go to the gauge.

    Returns:
        The gradients, and what the gauge made of its own.
    """
    names = list(primals)

    def traced(*arrays: mx.array) -> list[mx.array]:
        with gauge.applied(dict(zip(names, arrays[len(inputs) :], strict=True))):
            return run(arrays[: len(inputs)])

    everything = [*inputs, *primals.values()]
    if not everything:
        return [], []
    with _no_gradient():
        _, gradients = mx.vjp(traced, everything, cotangents)
    taken = gauge.take(dict(zip(names, gradients[len(inputs) :], strict=True)))
    return list(gradients[: len(inputs)]), taken


def _is_not_zero(array: mx.array) -> bool:
    found = mx.any(array)
    _evaluate([found])
    return bool(found.item())


def _evaluate(arrays: list[mx.array]) -> None:
    with _no_gradient():
        mx.eval(arrays)


@contextmanager
def _no_gradient() -> Iterator[None]:
    """Some operations tell when they are traced that they have no VJP, some when they run."""
    try:
        yield
    except ValueError as error:
        raise NoGradientError(str(error)) from error
    except RuntimeError as error:
        if not _SPEAKS_OF_GRADIENTS.search(str(error)):  # but of memory, or a file
            raise
        raise NoGradientError(str(error)) from error
