"""Recorded calls of blocks, which can be repeated and differentiated."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import mlx.core as mx

from dynquant.quant.mlx.arrays import is_floating

__all__ = ["Call", "Recorder", "Tape"]


@dataclass
class Call:
    """One call of a block: its arguments, its result, and its changes to the arguments.

    Blocks pass things on in three ways: by their result, in a cache or another object among
    their arguments, and in a list or dict that they share.
    """

    path: str
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    result: Any = None
    left: list[Any] = field(default_factory=list)

    def copied(self, keep: Callable[[Any], Any] = copy.copy) -> Call:
        """The same call, not yet run, with arguments of its own that no other code changes.

        Args:
            keep: Array → array that stays as it is.
        """
        return Call(self.path, *_map_arrays(keep, (self.args, self.kwargs)))

    def run(self, block: Callable[..., Any], keep: Callable[[Any], Any] = copy.copy) -> Any:
        """Call `block`; record its result and the arguments as it left them."""
        result = block(self.path, self.args, self.kwargs)
        self.result, self.left = _map_arrays(keep, (result, self._shared()))
        return result

    def inputs(self) -> list[mx.array]:
        """Floating-point arrays among the arguments."""
        return [leaf for leaf in _leaves((self.args, self.kwargs)) if _is_floating_array(leaf)]

    def outputs(self) -> list[mx.array]:
        """Floating-point arrays that the block returned or left in its arguments."""
        return [leaf for leaf in _leaves((self.result, self.left)) if _is_floating_array(leaf)]

    def with_inputs(self, arrays: Sequence[mx.array]) -> Call:
        """The same call with `arrays` in place of `inputs()`, not yet run."""
        return Call(self.path, *_replace((self.args, self.kwargs), iter(arrays)))

    def leave(self, other: Call, arrays: Sequence[mx.array]) -> Any:
        """Change `other`'s arguments as this call changed its own, with `arrays` as `outputs()`.

        Returns:
            The result.
        """
        result, left = _replace((self.result, self.left), iter(arrays))
        for shared, contents in zip(other._shared(), left, strict=True):
            if isinstance(shared, list):
                shared[:] = contents
            else:
                there, new = (vars(x) if _is_record(x) else x for x in (shared, contents))
                there.clear()
                there.update(new)
        return result

    def _shared(self) -> list[Any]:
        """The arguments that a block may change in place; of nested arguments the outermost."""
        return _changeable((self.args, tuple(self.kwargs.values())))


Tape = list[Call]


class Recorder:
    """Copies array objects for a recording, since the model's `h += y` changes the object `h`.

    For an array that has not changed since its last recording, the same copy is returned again:
    cotangents are kept by the identity of arrays.
    """

    def __init__(self) -> None:
        self._pairs: dict[int, tuple[mx.array, mx.array]] = {}

    def __call__(self, live: mx.array) -> mx.array:
        """The recorded array of `live`."""
        _, kept = self._pairs.get(id(live), (live, None))
        if kept is None or not mx.array_equal(live, kept, equal_nan=True).item():
            kept = copy.copy(live)  # another name for the same memory
            self._pairs[id(live)] = live, kept
        return kept


def _is_floating_array(leaf: Any) -> bool:
    return isinstance(leaf, mx.array) and is_floating(leaf)


def _is_record(node: Any) -> bool:
    """Whether `node` is an object that carries arrays, such as a cache or residual streams."""
    return hasattr(node, "__dict__") and not callable(node)


def _changeable(tree: Any) -> list[Any]:
    if isinstance(tree, list | dict) or _is_record(tree):
        return [tree]
    return [node for item in tree for node in _changeable(item)] if isinstance(tree, tuple) else []


def _map_arrays(function: Callable[[mx.array], Any], tree: Any) -> Any:
    return _map_leaves(lambda leaf: function(leaf) if isinstance(leaf, mx.array) else leaf, tree)


def _leaves(tree: Any) -> list[Any]:
    leaves: list[Any] = []
    _map_leaves(leaves.append, tree)
    return leaves


def _map_leaves(function: Callable[[Any], Any], tree: Any) -> Any:
    """`tree` with its leaves replaced; lists, dicts and objects that carry arrays are copied."""
    if isinstance(tree, tuple) and hasattr(tree, "_fields"):
        return type(tree)(*(_map_leaves(function, item) for item in tree))
    if isinstance(tree, list | tuple):
        return type(tree)(_map_leaves(function, item) for item in tree)
    if isinstance(tree, dict):
        return {key: _map_leaves(function, value) for key, value in tree.items()}
    if _is_record(tree):
        copied = copy.copy(tree)
        vars(copied).update(_map_leaves(function, vars(tree)))
        return copied
    return function(tree)


def _replace(tree: Any, arrays: Iterator[mx.array]) -> Any:
    """`tree` with its floating arrays replaced by `arrays`, in order."""
    return _map_leaves(lambda leaf: next(arrays) if _is_floating_array(leaf) else leaf, tree)
