from __future__ import annotations

from itertools import product

import pytest

from dynquant.quant.allocate import allocate
from dynquant.quant.formats import QuantFormat
from dynquant.quant.swaps import swaps, with_formats
from tests.report.factories import make_inventory, make_layers

COSTS = (
    {"2g64": 8.0, "3g64": 3.0, "4g64": 1.0},
    {"2g64": 4.0, "3g64": 2.1, "4g64": 0.9},
    {"2g64": 9.0, "3g64": 4.0, "4g64": 0.5},
    {"4g64": 0.5},
)


def planned(target_bpw: float = 3.75):
    inventory = make_inventory(make_layers(*COSTS))
    return inventory, allocate(inventory, target_bpw=target_bpw)


def every_swap(inventory, plan):
    """All plans that differ in exactly two layers, one larger and one smaller, and fit."""
    found = []
    for formats in product(*(layer.formats for layer in inventory.layers)):
        change = {
            layer.path: fmt
            for layer, fmt in zip(inventory.layers, formats, strict=True)
            if fmt != plan.formats[layer.path]
        }
        if len(change) != 2:
            continue
        new = with_formats(inventory, plan, change)
        signs = {
            layer.stored_bits(change[layer.path]) > layer.stored_bits(plan.formats[layer.path])
            for layer in inventory.layers
            if layer.path in change
        }
        if signs == {True, False} and new.stored_bpw <= plan.target_bpw:
            found.append(new.predicted_kl_nats)
    return sorted(found)


@pytest.mark.parametrize("target", [3.5, 3.75, 4.0])
def test_swaps_are_all_there_are_the_cheapest_first(target):
    inventory, plan = planned(target)
    found = [
        with_formats(inventory, plan, swap).predicted_kl_nats
        for swap in swaps(inventory, plan, num_swaps=100)
    ]
    assert found == pytest.approx(every_swap(inventory, plan))
    assert found


def test_no_swap_costs_less_than_an_optimal_plan_or_breaks_the_budget():
    inventory, plan = planned()
    for swap in swaps(inventory, plan, num_swaps=100):
        new = with_formats(inventory, plan, swap)
        assert new.predicted_kl_nats >= plan.predicted_kl_nats
        assert new.stored_bpw <= plan.target_bpw
        assert len(swap) == 2


def test_layers_that_are_fixed_take_part_in_no_swap():
    inventory, plan = planned()
    path = inventory.layers[0].path
    found = swaps(inventory, plan, num_swaps=100, fixed=[path])
    everything = swaps(inventory, plan, num_swaps=100)
    assert found == [swap for swap in everything if path not in swap]
    assert len(found) < len(everything)


def test_tried_swaps_are_not_proposed_again():
    inventory, plan = planned()
    first, *rest = swaps(inventory, plan, num_swaps=100)
    assert swaps(inventory, plan, num_swaps=100, tried=[first]) == rest
    assert swaps(inventory, plan, num_swaps=1) == [first]


def test_a_plan_with_other_formats_has_their_size_and_costs():
    inventory, plan = planned()
    path = inventory.layers[0].path
    new = with_formats(inventory, plan, {path: QuantFormat(2, 64)})
    assert new.formats == {**plan.formats, path: QuantFormat(2, 64)}
    assert new.predicted_kl_nats == pytest.approx(
        sum(layer.cost_nats(new.formats[layer.path]) for layer in inventory.layers)
    )
    bits = sum(layer.stored_bits(new.formats[layer.path]) for layer in inventory.layers)
    assert new.stored_bpw == inventory.bpw(bits)
    assert new.lower_bound_nats == plan.lower_bound_nats
