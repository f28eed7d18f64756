"""The backward pass over recorded block calls: one VJP per block, its weights read again.

    tokens ─ embed ─> [block 0] ─ glue ─> [block 1] ─ glue ─> ... ─ head ─> loss
                  <── between ── through ── between ── through ──  start

`start` goes from the loss to the blocks' outputs, `through_block` from a block's outputs to its
inputs, `between_blocks` from inputs that the model's code made (the glue) to earlier outputs,
`finish` to the layers outside all blocks. Cotangents are kept by the identity of their array.

An input of a block is either another block's output, which then gets its cotangent directly, or
was made between the blocks. For the latter the model's own `__call__` runs again with every block
replaced by its recorded result, and is differentiated with respect to those results. That makes
the chain exact for every architecture, also where blocks share keys and values or a residual
stream is mixed between them. The cotangents for the layers outside all blocks are gathered first
and go back in one VJP, since the square of a gradient is not the sum of its parts' squares.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, suppress
from functools import partial
from typing import Any, Protocol

import mlx.core as mx

from dynquant.quant.mlx.arrays import Weights
from dynquant.quant.mlx.block_calls import Call, Tape
from dynquant.quant.mlx.lanes import side_by_side
from dynquant.quant.mlx.model_inputs import Batch, run_model
from dynquant.quant.mlx.streaming import BlockModel, BlockWeights, Forward

__all__ = [
    "GradientTargets",
    "NoGradientError",
    "backward",
    "gradient_errors_translated",
]


_ABOUT_GRADIENTS = re.compile("vjp|gradient|differentia|implement", re.IGNORECASE)


class NoGradientError(RuntimeError):
    """The model has an operation without a VJP."""


class GradientTargets(Protocol):
    """The scalars or arrays to differentiate with respect to, besides the blocks' inputs.

    They are `sensitivity.FisherDiagonal`, `alignment.AlignmentScalars` and
    `distillation.Student`.
    """

    def primals(self, block: str | None) -> dict[str, mx.array]:
        """Name → value of the targets of `block`; with None, of the layers outside all blocks."""
        ...

    def applied(self, primals: dict[str, mx.array]) -> AbstractContextManager[None]:
        """Within the context the layers depend on `primals`, which are traced."""
        ...

    def take(self, gradients: dict[str, mx.array]) -> list[mx.array]:
        """Add the gradients of one VJP to those of other calls and batches.

        Returns:
            The sums, to be evaluated.
        """
        ...


Loss = Callable[[int, mx.array], mx.array]
"""(index of the batch, logits (batch, seq, vocab)) → scalar."""


def backward(
    forward: Forward,
    weights: BlockWeights,
    *,
    loss: Loss,
    targets: GradientTargets,
    on_block: Callable[[str | None, Weights], None] = lambda _path, _weights: None,
) -> None:
    """Differentiate the summed `loss` of the recorded batches; gradients go to `targets`.

    Args:
        forward: A finished forward pass that recorded calls.
        weights: A fresh set of the same weights.
        loss: Loss of one batch.
        targets: Get the gradients.
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
            for index, reversal in reversals.items():  # one by one, since logits are large
                _evaluate(reversal.start(partial(loss, index), targets))
        weights.release_outer()
        for position in reversed(range(len(tape))):
            path = tape[position].path
            with weights.holding(path) as held:
                through = partial(_Reversal.through_block, position=position, targets=targets)
                side_by_side(batches, through, _evaluate)
                if all(call.path != path for call in tape[:position]):
                    on_block(path, held)
            with weights.holding_outer():
                for batch in batches:
                    _evaluate(batch.between_blocks(position, targets))
        with weights.holding_outer():
            for batch in batches:
                _evaluate(batch.finish(targets))
            on_block(None, weights.outer)
    finally:
        blocks.model.eval()


class _Reached(Exception):  # noqa: N818  control flow, not an error
    """The replay has come to the call at which it is to stop."""


class _Reversal:
    """The backward pass of one batch, with cotangents by the identity of their arrays.

    Each step returns the arrays to evaluate before the next.
    """

    def __init__(self, blocks: BlockModel, tape: Tape, batch: Batch) -> None:
        self.tape = tape
        self._blocks = blocks
        self._batch = batch
        self._cotangents: dict[int, mx.array] = {}
        # Per call, the inputs that were made between the blocks, and in the end their cotangents.
        self._derived: list[list[int]] = []
        self._arrived: dict[int, list[mx.array]] = {}
        known: set[int] = set()
        for call in tape:
            inputs = [id(array) for array in call.inputs()]
            self._derived.append([i for i, key in enumerate(inputs) if key not in known])
            known.update(inputs, map(id, call.outputs()))

    def start(
        self, loss: Callable[[mx.array], mx.array], targets: GradientTargets
    ) -> list[mx.array]:
        """From the loss to the blocks' outputs."""
        results = self._results(len(self.tape))

        def run(arrays: Sequence[mx.array]) -> list[mx.array]:
            return [loss(self._replay(arrays, lambda _position, _call: None))]

        gradients, taken = _vjp(run, results, targets.primals(None), [mx.array(1.0)], targets)
        return taken + self._add(self._nonzero(len(self.tape), gradients))

    def through_block(self, position: int, targets: GradientTargets) -> list[mx.array]:
        """From the outputs of the call at `position` to its inputs."""
        call = self.tape[position]
        inputs = call.inputs()
        cotangents = [self._pop(array) for array in call.outputs()]

        def run(arrays: Sequence[mx.array]) -> list[mx.array]:
            traced = call.with_inputs(arrays)
            traced.run(self._blocks.call_block)
            return traced.outputs()

        gradients, taken = _vjp(run, inputs, targets.primals(call.path), cotangents, targets)
        return taken + self._add(zip(inputs, gradients, strict=True))

    def between_blocks(self, position: int, targets: GradientTargets) -> list[mx.array]:
        """From inputs of the call at `position` that no block made, to the outputs behind them."""
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

        gradients, taken = _vjp(run, results, {}, self._arrived[position], targets)
        return taken + self._add(self._nonzero(position, gradients))

    def finish(self, targets: GradientTargets) -> list[mx.array]:
        """To the layers outside all blocks, with the cotangents of all blocks at once."""
        if not (primals := targets.primals(None)):
            return []
        results = self._results(len(self.tape))

        cotangents = [c for at in range(len(self.tape)) for c in self._arrived[at]]

        def run(_arrays: Sequence[mx.array]) -> list[mx.array]:
            found: list[mx.array] = []

            def note(at: int, call: Call) -> None:
                found.extend(self._chosen(at, call))
                if len(found) == len(cotangents):
                    raise _Reached

            with suppress(_Reached):  # the model may change its inputs in place
                self._replay([copy.copy(array) for array in results], note)
            return found

        return _vjp(run, [], primals, cotangents, targets)[1] if cotangents else []

    def _results(self, stop: int) -> list[mx.array]:
        return [array for call in self.tape[:stop] for array in call.outputs()]

    def _nonzero(
        self, stop: int, gradients: Sequence[mx.array]
    ) -> Iterator[tuple[mx.array, mx.array]]:
        """Results of the calls before `stop` with their gradients, zeros left out.

        The code between blocks mostly uses the last result only; gradients of zero for all others
        would take as much memory as the results do.
        """
        last = {id(array) for array in self.tape[stop - 1].outputs()}
        for array, gradient in zip(self._results(stop), gradients, strict=True):
            if id(array) in last or _is_not_zero(gradient):
                yield array, gradient

    def _chosen(self, position: int, call: Call) -> list[mx.array]:
        inputs = call.inputs()
        return [inputs[i] for i in self._derived[position]]

    def _replay(self, arrays: Sequence[mx.array], note: Callable[[int, Call], None]) -> mx.array:
        """Run the model with its blocks replaced by their recorded results, made of `arrays`.

        `note` gets the position and the arguments of each call, and may end the run.
        """
        pool, positions = iter(arrays), iter(range(len(self.tape)))

        def give_recorded(path: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
            position, reached = next(positions), Call(path, args, kwargs)
            note(position, reached)
            call = self.tape[position]
            return call.leave(reached, [next(pool) for _ in call.outputs()])

        with self._blocks.intercepted(give_recorded):
            logits: mx.array = run_model(self._blocks.model, self._batch)
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
    targets: GradientTargets,
) -> tuple[list[mx.array], list[mx.array]]:
    """Gradients of `run` with respect to `inputs`; the gradients of `primals` go to `targets`.

    Returns:
        The gradients, and the arrays that `targets.take` returned.
    """
    names = list(primals)

    def traced(*arrays: mx.array) -> list[mx.array]:
        with targets.applied(dict(zip(names, arrays[len(inputs) :], strict=True))):
            return run(arrays[: len(inputs)])

    everything = [*inputs, *primals.values()]
    if not everything:
        return [], []
    with gradient_errors_translated():
        _, gradients = mx.vjp(traced, everything, cotangents)
    taken = targets.take(dict(zip(names, gradients[len(inputs) :], strict=True)))
    return list(gradients[: len(inputs)]), taken


def _is_not_zero(array: mx.array) -> bool:
    found = mx.any(array)
    _evaluate([found])
    return bool(found.item())


def _evaluate(arrays: list[mx.array]) -> None:
    with gradient_errors_translated():
        mx.eval(arrays)


@contextmanager
def gradient_errors_translated() -> Iterator[None]:
    """Turn the error of an operation without a VJP into our own.

    Some operations raise it when they are traced, some when they run.

    Raises:
        NoGradientError: An operation has no VJP.
    """
    try:
        yield
    except ValueError as error:
        raise NoGradientError(str(error)) from error
    except RuntimeError as error:
        if not _ABOUT_GRADIENTS.search(str(error)):  # an error of memory, or of a file
            raise
        raise NoGradientError(str(error)) from error
