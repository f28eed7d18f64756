"""The targets that a rule of the watcher asks for, and the size of their quants."""

from __future__ import annotations

import math
from dataclasses import dataclass

from dynquant.errors import InfeasibleTargetError
from dynquant.quant.plan import ModelInventory
from dynquant.report.forecast import fitting_tenths, one_layer_inventory, weight_bytes
from dynquant.watch.config import Rule

__all__ = [
    "MAX_FITTED_BPW",
    "MIN_FITTED_BPW",
    "MemoryFootprint",
    "footprint_of",
    "num_published_bytes",
    "targets_of",
]

MIN_FITTED_BPW = 3.0
"""Below this a smaller model serves the memory size better."""
MAX_FITTED_BPW = 8.0
"""At 8 bits a quant is hardly distinguishable from the original."""

_CONTEXT_TOKENS = 4_096
_DTYPE_BITS = 16
_CACHE_SHARE = 1 / 32
"""Cache at 4,096 tokens over the size of the original: 1/32 for 8 B with grouped queries
(0.5 GB), 1/100 for 70 B; the larger share is the cautious one."""


@dataclass(frozen=True, slots=True, kw_only=True)
class MemoryFootprint:
    """A model's layers and its key-value cache, which decide the memory to run it."""

    inventory: ModelInventory
    cache_bytes: int


def footprint_of(
    inventory: ModelInventory, *, cache_bytes_per_token: int | None
) -> MemoryFootprint:
    """The footprint at 4,096 tokens of context.

    Args:
        inventory: The model's layers.
        cache_bytes_per_token: Of the key-value cache; None takes a cautious share of the weights.
    """
    if cache_bytes_per_token is None:
        original_bytes = weight_bytes(_DTYPE_BITS, inventory.num_parameters)
        cache_bytes = math.ceil(original_bytes * _CACHE_SHARE)
    else:
        cache_bytes = _CONTEXT_TOKENS * cache_bytes_per_token
    return MemoryFootprint(inventory=inventory, cache_bytes=cache_bytes)


def targets_of(
    rule: Rule, *, num_parameters: int, footprint: MemoryFootprint | None
) -> tuple[float, ...]:
    """The bits per weight that `rule` asks for, ascending; empty if no memory size fits.

    Args:
        rule: Names targets or memory sizes.
        num_parameters: Of the model.
        footprint: None estimates it from the number of parameters.
    """
    if not rule.memory_bytes:
        return tuple(sorted(rule.bpw))
    known = footprint or footprint_of(
        one_layer_inventory(num_parameters), cache_bytes_per_token=None
    )
    fitting = {
        target
        for memory_bytes in rule.memory_bytes
        if (target := _fitted_bpw(known, memory_bytes)) is not None
    }
    return tuple(sorted(fitting))


def num_published_bytes(targets_bpw: tuple[float, ...], num_parameters: int) -> int:
    """Size of the weights of all targets together."""
    return sum(weight_bytes(target, num_parameters) for target in targets_bpw)


def _fitted_bpw(footprint: MemoryFootprint, memory_bytes: int) -> float | None:
    """The target for a Mac with `memory_bytes`; None if the model is too large for it."""
    try:
        bpw = fitting_tenths(
            footprint.inventory,
            memory_bytes=memory_bytes,
            cache_bytes=footprint.cache_bytes,
            max_bpw=MAX_FITTED_BPW,
        )
    except InfeasibleTargetError:
        return None
    return bpw if bpw >= MIN_FITTED_BPW else None
