"""Evaluate arrays: as many items in parallel as keep the device busy, large arrays in turn."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from functools import cache
from typing import TypeVar

import mlx.core as mx

from dynquant.quant.mlx import blas_shared_by

__all__ = ["LARGE", "evaluate_in_turn", "side_by_side"]

LARGE = 1 << 22
"""An array of at least so many numbers is evaluated by itself."""

T = TypeVar("T")
Lane = mx.DeviceType | mx.ThreadLocalStream


def side_by_side(
    items: Sequence[T],
    build: Callable[[T], list[mx.array]],
    evaluate: Callable[[list[mx.array]], None] = mx.eval,
    then: Callable[[], None] = lambda: None,
) -> None:
    """Evaluate the arrays that `build` makes of each item, as many items at once as keep it busy.

    `then` is called after each batch of items, when all threads are free again.

    On a CPU MLX runs the operations of a stream in one thread, so two items go side by side
    there; a GPU is kept busy by one.
    """
    lanes = _cpu_lanes() if mx.default_device() == mx.cpu else (mx.gpu,)
    for start in range(0, len(items), len(lanes)):
        together = items[start : start + len(lanes)]
        with blas_shared_by(len(together)):
            made = list[mx.array]()
            for item, lane in zip(together, lanes, strict=False):
                with mx.stream(lane):
                    made += build(item)
            evaluate(made)
        then()


@cache
def _cpu_lanes() -> tuple[Lane, ...]:
    return mx.cpu, mx.new_thread_local_stream(mx.cpu)


def evaluate_in_turn(arrays: Collection[mx.array]) -> None:
    """Evaluate `arrays`, the large ones one by one: their inputs take memory too."""
    for array in arrays:
        if array.size >= LARGE:
            mx.eval(array)
    mx.eval(list(arrays))  # last, since some are small parts of large ones
