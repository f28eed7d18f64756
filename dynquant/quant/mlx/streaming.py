"""Run a model block by block: one block's weights in memory, all inputs advancing together.

The model's own `__call__` runs, unchanged, once per batch, each in a greenlet that is
suspended whenever it calls a block of `model.layers`. When every batch stands before
the same block, that block's weights are read, all batches go through it, and the weights
are freed; an embedding and a head are freed too, once they are used. The state between blocks
(masks, residual streams, shared keys and values) stays in the suspended frames, so no architecture
needs code of its own.

The backward pass over the recorded calls is in `backward`.
"""

from __future__ import annotations

import copy
from collections import deque
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import greenlet
import mlx.core as mx
import mlx.nn as nn

from dynquant.quant.mlx.arrays import Weights, for_compute
from dynquant.quant.mlx.block_calls import Call, Recorder, Tape
from dynquant.quant.mlx.lanes import LARGE, evaluate_in_turn, side_by_side
from dynquant.quant.mlx.model_inputs import Batch, run_model
from dynquant.quant.mlx.parameters import clear_parameters, set_parameter

__all__ = ["BlockModel", "BlockWeights", "Forward"]


class BlockModel:
    """A skeleton whose blocks can be intercepted.

    The blocks are the modules of `model.layers`. A model without them is one block:
    it then runs as a whole, with all weights in memory.

    Args:
        model: The skeleton.
        read_ahead: Called with the path of a block that will be needed soon.

    Attributes:
        model: The skeleton.
        blocks: Path → block.
        num_calls: Path → calls of the block in one pass, as `survey` counted them.
        read_ahead: As given.
    """

    def __init__(
        self, model: nn.Module, read_ahead: Callable[[str], None] = lambda _path: None
    ) -> None:
        self.model = model
        self.read_ahead = read_ahead
        paths = {id(module): path for path, module in model.named_modules()}
        layers = getattr(model, "layers", None)
        blocks = [b for b in layers if isinstance(b, nn.Module)] if isinstance(layers, list) else []
        self.blocks = {paths[id(b)]: b for b in blocks if paths.get(id(b))} or {"": model}
        self.num_calls = dict.fromkeys(self.blocks, 1)
        self.interceptor: Callable[[str, tuple[Any, ...], dict[str, Any]], Any] | None = None
        self._original_calls = {path: type(b).__call__ for path, b in self.blocks.items()}
        for path, block in self.blocks.items():
            _intercept(block, path, self)

    @property
    def is_whole(self) -> bool:
        """Whether the model runs as one block."""
        return "" in self.blocks

    def survey(self, weights: Weights) -> bool:
        """Count in `num_calls` how often the model calls its blocks; nothing is read.

        Args:
            weights: Lazily loaded.

        Returns:
            Whether the model gives logits for each token, and the weights of a block are needed in
            its calls only; some models call the
            parts of their blocks themselves.
        """
        outer, inner = self.split(for_compute(weights))
        self.num_calls = dict.fromkeys(self.blocks, 0)

        def call(path: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
            self.num_calls[path] += 1
            self.install(inner[path])
            result = self.call_block(path, args, kwargs)
            clear_parameters(self.blocks[path])
            return result

        self.install(outer)
        try:
            with self.intercepted(call):
                logits = self.model(mx.zeros((1, 2), mx.int32))
        except (ValueError, TypeError, IndexError, RuntimeError):
            return False
        finally:
            clear_parameters(self.model)
        is_next_token = isinstance(logits, mx.array) and logits.shape[:2] == (1, 2)
        return is_next_token and any(self.num_calls.values())

    def treat_as_whole(self) -> BlockModel:
        """The same model as one block, for models whose blocks are not called one by one."""
        for block in self.blocks.values():
            block.__class__ = type(block).__mro__[1]
        whole = copy.copy(self)
        whole.blocks = {"": self.model}
        whole.num_calls = {"": 1}
        whole._original_calls = {"": type(self.model).__call__}
        _intercept(self.model, "", whole)
        return whole

    def block_of(self, path: str) -> str | None:
        """Path of the block that the parameter or module at `path` lies in, if any."""
        parts = path.split(".")
        prefixes = (".".join(parts[:end]) for end in range(len(parts), -1, -1))
        return next((prefix for prefix in prefixes if prefix in self.blocks), None)

    def call_block(self, path: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Run a block itself, not intercepted."""
        return self._original_calls[path](self.blocks[path], *args, **kwargs)

    @contextmanager
    def intercepted(self, interceptor: Callable[..., Any]) -> Iterator[None]:
        """Send every call of a block to `interceptor(path, args, kwargs)`."""
        outer, self.interceptor = self.interceptor, interceptor
        try:
            yield
        finally:
            self.interceptor = outer

    def split(self, weights: Weights) -> tuple[Weights, dict[str, Weights]]:
        """`weights` outside all blocks, and those of each block."""
        inner: dict[str, Weights] = {path: {} for path in self.blocks}
        outer: Weights = {}
        for path, array in weights.items():
            block = self.block_of(path)
            (outer if block is None else inner[block])[path] = array
        return outer, inner

    def install(self, weights: Weights) -> None:
        """Put `weights` at their paths."""
        for path, array in weights.items():
            set_parameter(self.model, path, array)


class BlockWeights:
    """One set of weights for a `BlockModel`, put in place block by block.

    Args:
        blocks: The model.
        load: Gives a fresh set of lazily loaded weights, path → array.
        transform: Replaces some of the weights of a block before they are put in place.
    """

    def __init__(
        self,
        blocks: BlockModel,
        load: Callable[[], Weights],
        transform: Callable[[Weights], Weights] = lambda weights: weights,
    ) -> None:
        self._blocks = blocks
        self._load = load
        self._transform = transform
        weights = load()
        self.stored_dtypes = {path: array.dtype for path, array in weights.items()}
        outer, self._inner = blocks.split(for_compute(weights))
        self.outer = transform(outer)

    @contextmanager
    def holding(self, path: str) -> Iterator[Weights]:
        """The block at `path` with its weights read and in place, within the context."""
        if path not in self._inner:  # looped models call a block again
            self._inner = self._blocks.split(for_compute(self._load()))[1]
        unread = list(self._inner)
        # The next block; in the backward pass, where no later block is unread, the block before.
        upcoming = unread[unread.index(path) + 1 :] or unread[-2:-1]
        weights = self._inner.pop(path)
        try:
            weights = self._transform(weights)
            self._blocks.install(weights)
            evaluate_in_turn(weights.values())
            if upcoming:
                self._blocks.read_ahead(upcoming[0])
            yield weights
        finally:
            weights.clear()
            clear_parameters(self._blocks.blocks[path])
            mx.clear_cache()

    def as_stored(self, weights: Weights) -> Weights:
        """`weights` in the dtype that they are stored in; the way back is exact.

        Each is freed once it is cast, so the model cannot run with them any more.
        """
        stored: Weights = {}
        for path in list(weights):
            set_parameter(self._blocks.model, path, mx.array([]))
            stored[path] = weights.pop(path).astype(self.stored_dtypes[path])
            mx.eval(stored[path])
        return stored

    def release_outer(self) -> None:
        """Free the weights outside all blocks; they are read again when needed."""
        if self.outer:
            outer, _ = self._blocks.split(for_compute(self._load()))
            self.outer = self._transform(outer)

    @contextmanager
    def holding_outer(self) -> Iterator[None]:
        """The weights outside all blocks in place; each is read at its first use."""
        self._blocks.install(self.outer)
        try:
            yield
        finally:
            for path in self.outer:
                set_parameter(self._blocks.model, path, mx.array([]))


class Forward:
    """Forward passes of all `batches` that advance block by block together.

    Args:
        blocks: The model; several `Forward`s may share it, each with its own weights.
        weights: One set of weights, used up by the pass.
        batches: Token batches, each (batch, seq), int32, or what else the model takes.
        record: Indices of the batches whose calls are kept for the backward pass, in `tapes`.

    Source: the lockstep is this project's own; see docs/method.md.
    """

    def __init__(
        self,
        blocks: BlockModel,
        weights: BlockWeights,
        batches: Sequence[Batch],
        *,
        record: Collection[int] = (),
    ) -> None:
        self.blocks = blocks
        self.weights = weights
        self.batches = batches
        self.tapes: dict[int, Tape] = {index: [] for index in record}
        # Not a method of this object: suspended frames would then keep the object alive for ever.
        self._greenlets = [greenlet.greenlet(partial(run_model, blocks.model)) for _ in batches]
        self._waiting: list[Call | None] = [None] * len(batches)
        self._results: list[Any] = [None] * len(batches)
        self._recorders = [Recorder() for _ in batches]
        self._logits = deque[mx.array]()
        self._calls_left = dict(blocks.num_calls)
        self._started = False

    @property
    def next_block(self) -> str | None:
        """Path of the block that comes next for all batches; None behind the last block."""
        if not self._started:
            self._started = True
            with self._glue():
                for index, batch in enumerate(self.batches):
                    self._resume(index, batch)
            mx.eval([call.inputs() for call in self.last_calls])
            self.weights.release_outer()
        paths = {call.path if call else None for call in self._waiting}
        if len(paths) != 1:
            raise RuntimeError("the batches went through the model's blocks in different orders")
        return paths.pop()

    def step(
        self,
        observe: Callable[[], list[mx.array]] = list,
        while_held: Callable[[str, Weights], None] = lambda _path, _weights: None,
    ) -> None:
        """Take every batch through the next block.

        Args:
            observe: Called after the block was run on some batches, and behind the last block
                after each batch has its logits; returns more arrays to evaluate.
            while_held: Called with the block's path and weights once all batches are
                through its last call, before the weights are let go.
        """
        path = self.next_block
        if path is None:
            raise RuntimeError("all batches are through")
        waiting = list[mx.array]()

        def evaluate(outputs: list[mx.array]) -> None:
            arrays = observe()
            if any(array.size >= LARGE for array in arrays):
                waiting.extend(arrays)
                arrays = []
            mx.eval(outputs, arrays)

        def evaluate_waiting() -> None:
            evaluate_in_turn(waiting)
            waiting.clear()

        with self.weights.holding(path) as held:
            side_by_side(range(len(self.batches)), self._through_block, evaluate, evaluate_waiting)
            self._calls_left[path] -= 1
            if not self._calls_left[path]:
                while_held(path, held)
        through = not any(self._calls_left.values())
        for index in range(len(self.batches)):
            result, self._results[index] = self._results[index], None
            with self._glue():
                self._resume(index, result)
            if through:  # the head is read for each batch of logits, and freed with them
                self.weights.release_outer()
                evaluate_in_turn(
                    observe()
                )  # its inputs; logits are evaluated when `logits` yields them

    @property
    def last_calls(self) -> list[Call]:
        """The calls of the latest `step`, one per batch; valid while its weights are held."""
        return [call for call in self._waiting if call is not None]

    def logits(self) -> Iterator[mx.array]:
        """Logits of each batch, (batch, seq, vocab), computed one batch at a time.

        They are not kept here: in a comparison of many models each would keep a batch of them.
        """
        assert self.next_block is None
        while self._logits:
            yield self._logits.popleft()

    def run(self) -> Iterator[mx.array]:
        """All blocks, then the logits."""
        while self.next_block is not None:
            self.step()
        yield from self.logits()

    def _through_block(self, index: int) -> list[mx.array]:
        """Take one batch through the block that it waits for; its outputs, not yet evaluated."""
        call = self._waiting[index]
        assert call is not None
        recorder = self._recorders[index] if index in self.tapes else Recorder()
        recorded = call.copied(recorder)
        self._results[index] = call.run(self.blocks.call_block, recorder)
        recorded.result, recorded.left = call.result, call.left
        self._waiting[index] = recorded
        if index in self.tapes:
            self.tapes[index].append(recorded)
        return recorded.outputs()

    @contextmanager
    def _glue(self) -> Iterator[None]:
        with self.weights.holding_outer(), self.blocks.intercepted(_suspend):
            yield

    def _resume(self, index: int, value: Any) -> None:
        waiting = self._greenlets[index].switch(value)
        if isinstance(waiting, Call):
            self._waiting[index] = waiting
        else:
            self._waiting[index] = None
            self._logits.append(waiting)


def _suspend(path: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    return greenlet.getcurrent().parent.switch(Call(path, args, kwargs))


def _intercept(block: nn.Module, path: str, owner: BlockModel) -> None:
    """Give `block` a class of its own whose `__call__` asks `owner.interceptor` first."""
    original = type(block)

    def call(self: nn.Module, *args: Any, **kwargs: Any) -> Any:
        if owner.interceptor is None:
            return original.__call__(self, *args, **kwargs)
        return owner.interceptor(path, args, kwargs)

    block.__class__ = type(original.__name__, (original,), {"__call__": call})
