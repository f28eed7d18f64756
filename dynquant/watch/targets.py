"""What a rule of the watcher makes of a model: bits per weight, bytes to publish, hours of work."""

from __future__ import annotations

import math
from dataclasses import dataclass

from dynquant.errors import InfeasibleTargetError
from dynquant.quant.formats import DEFAULT_MENU
from dynquant.quant.plan import LayerProfile, ModelInventory
from dynquant.report.forecast import fitting_bpw
from dynquant.watch.rules import Rule

__all__ = [
    "MAX_SERVED_BPW",
    "MIN_SERVED_BPW",
    "MemoryFootprint",
    "num_published_bytes",
    "shape_of",
    "targets_of",
]

MIN_SERVED_BPW = 3.0
"""A memory size that leaves less is better served by a smaller model."""
MAX_SERVED_BPW = 8.0
"""More would serve nobody: at 8 bits a quant is hardly distinguishable from the original."""
_STEPS_PER_BIT = 10
"""Targets are rounded down to tenths, for names that people can read."""

_CONTEXT_TOKENS = 4_096
_GROUP = 128
_DTYPE_BITS = 16
_CACHE_SHARE = 1 / 32
"""Cache at 4,096 tokens over the size of the original: 1/32 for 8 B with grouped queries
(0.5 GB), 1/100 for 70 B; the larger share is the cautious one."""


@dataclass(frozen=True, slots=True, kw_only=True)
class MemoryFootprint:
    """What running a model takes, from its config and the headers of its weights."""

    inventory: ModelInventory
    cache_bytes: int


def shape_of(inventory: ModelInventory, *, cache_bytes_per_token: int | None) -> MemoryFootprint:
    """What running a model takes at 4,096 tokens.

    Args:
        inventory: Its layers.
        cache_bytes_per_token: Of the key-value cache; None takes a cautious share of the weights.
    """
    if cache_bytes_per_token is not None:
        return MemoryFootprint(
            inventory=inventory, cache_bytes=_CONTEXT_TOKENS * cache_bytes_per_token
        )
    num_bytes = inventory.num_parameters * _DTYPE_BITS / 8
    return MemoryFootprint(inventory=inventory, cache_bytes=math.ceil(num_bytes * _CACHE_SHARE))


def targets_of(
    rule: Rule, *, num_parameters: int, shape: MemoryFootprint | None
) -> tuple[float, ...]:
    """The bits per weight that `rule` asks for, ascending; none if no memory size fits.

    Args:
        rule: Names them, or memory sizes.
        num_parameters: What is known of the model's size in any case.
        shape: None estimates from the number of parameters.
    """
    if not rule.memory_bytes:
        return tuple(sorted(rule.bpw))
    known = shape or _estimated(num_parameters)
    fitting = {
        target
        for memory_bytes in rule.memory_bytes
        if (target := _served_bpw(known, memory_bytes)) is not None
    }
    return tuple(sorted(fitting))


def num_published_bytes(targets_bpw: tuple[float, ...], num_parameters: int) -> int:
    """What the weights of all targets take together."""
    return math.ceil(sum(targets_bpw) * num_parameters / 8)


def _served_bpw(shape: MemoryFootprint, memory_bytes: int) -> float | None:
    try:
        bpw = fitting_bpw(shape.inventory, memory_bytes=memory_bytes, cache_bytes=shape.cache_bytes)
    except InfeasibleTargetError:
        return None
    steps = math.floor(min(bpw, MAX_SERVED_BPW) * _STEPS_PER_BIT + 1e-6)
    return steps / _STEPS_PER_BIT if steps >= MIN_SERVED_BPW * _STEPS_PER_BIT else None


def _estimated(num_parameters: int) -> MemoryFootprint:
    """As if all weights were those of one layer."""
    num_rows, rest = divmod(num_parameters, _GROUP)
    layer = LayerProfile(
        path="all", shape=(num_rows, _GROUP), dtype_bits=_DTYPE_BITS, formats=DEFAULT_MENU
    )
    inventory = ModelInventory(
        model_type="",
        layers=(layer,),
        num_parameters=num_parameters,
        fixed_bits=rest * _DTYPE_BITS,
        dtype="bfloat16",
    )
    return shape_of(inventory, cache_bytes_per_token=None)
