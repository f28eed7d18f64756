"""Swaps: one layer of a plan takes a larger format and another a smaller one, within the budget."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import replace
from heapq import nsmallest
from itertools import product
from math import fsum

from dynquant.quant.formats import QuantFormat
from dynquant.quant.plan import LayerProfile, ModelInventory, QuantPlan

__all__ = ["Swap", "swaps", "with_formats"]

Swap = Mapping[str, QuantFormat]
"""Path → new format of the two layers that change."""


def swaps(
    inventory: ModelInventory,
    plan: QuantPlan,
    *,
    num_swaps: int,
    fixed: Collection[str] = (),
    tried: Collection[Swap] = (),
) -> list[Swap]:
    """The swaps that cost the least by the table: an error in the table most easily reverses them.

    Args:
        inventory: The model with its costs.
        plan: A plan for it.
        num_swaps: The most to return.
        fixed: Paths of layers that keep their format.
        tried: Swaps to leave out.
    """
    room = inventory.budget_bits(plan.target_bpw) - sum(
        layer.stored_bits(plan.formats[layer.path]) for layer in inventory.layers
    )
    ups, downs = list[_Move](), list[_Move]()
    for layer in inventory.layers:
        if layer.path in fixed:
            continue
        for move in _moves(layer, plan.formats[layer.path]):
            (ups if move[0] > 0 else downs).append(move)
    # The best partners of each layer are among the few that free most bits for their cost.
    downs = nsmallest(_MAX_DOWNS, downs, key=lambda move: (move[1] / -move[0], move[2]))
    found = [
        (cost_up + cost_down, {path_up: fmt_up, path_down: fmt_down})
        for (more, cost_up, path_up, fmt_up), (less, cost_down, path_down, fmt_down) in product(
            ups, downs
        )
        if path_up != path_down and more + less <= room
    ]
    found = [each for each in found if each[1] not in tried]
    return [swap for _, swap in nsmallest(num_swaps, found, key=lambda e: (e[0], *sorted(e[1])))]


def with_formats(inventory: ModelInventory, plan: QuantPlan, changed: Swap) -> QuantPlan:
    """`plan` with some formats changed; its lower bound stays the same."""
    formats = {**plan.formats, **changed}
    bits = sum(layer.stored_bits(formats[layer.path]) for layer in inventory.layers)
    summed = fsum(layer.cost_nats(formats[layer.path]) for layer in inventory.layers)
    return replace(
        plan,
        formats=formats,
        stored_bpw=inventory.bpw(bits),
        predicted_kl_nats=inventory.together.predicted_nats(summed),
    )


_Move = tuple[int, float, str, QuantFormat]
"""More bits, more cost, path, new format."""

_MAX_DOWNS = 64


def _moves(layer: LayerProfile, now: QuantFormat) -> list[_Move]:
    """To each format of the layer that is larger and costs less, or smaller and costs more."""
    bits, cost = layer.stored_bits(now), layer.cost_nats(now)
    moves = [
        (layer.stored_bits(fmt) - bits, layer.cost_nats(fmt) - cost, layer.path, fmt)
        for fmt in layer.formats
    ]
    return [move for move in moves if (move[0] > 0 > move[1]) or (move[0] < 0 < move[1])]
