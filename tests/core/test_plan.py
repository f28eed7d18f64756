from __future__ import annotations

from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dynquant.core.formats import UNQUANTIZED, QuantFormat
from dynquant.core.plan import QuantPlan
from tests.core.factories import make_inventory, make_layer

FOUR, EIGHT = QuantFormat(4, 64), QuantFormat(8, 64)


def make_plan(*names: str) -> QuantPlan:
    formats = {f"layers.{i}": QuantFormat.from_name(name) for i, name in enumerate(names)}
    return QuantPlan(
        formats=formats,
        target_bpw=4.5,
        stored_bpw=4.5,
        predicted_kl_nats=0.0,
        lower_bound_nats=0.0,
    )


def test_a_layer_knows_its_size_and_cost_in_each_format():
    layer = make_layer({"4g64": 0.5, "8g64": 0.1}, shape=(3, 64, 128))
    assert layer.num_weights == 3 * 64 * 128
    assert layer.stored_bits(FOUR) == layer.num_weights * 9 // 2
    assert (layer.cost_nats(FOUR), layer.cost_nats(EIGHT)) == (0.5, 0.1)
    with pytest.raises(ValueError, match="not in tuple"):
        layer.cost_nats(UNQUANTIZED)


def test_the_feasible_range_is_that_of_the_smallest_and_the_largest_formats():
    layers = [make_layer(formats="2g64,4g64"), make_layer(path="b", formats="4g64,unquantized")]
    inventory = make_inventory(layers, fixed_bits=64 * 64)
    assert inventory.min_bpw == (2.5 + 4.5 + 1) / 2
    assert inventory.max_bpw == (4.5 + 16 + 1) / 2


def test_within_a_menu_layers_take_what_fits_of_it_or_stay_as_they_are():
    layers = [make_layer(shape=(4, 128)), make_layer(path="b", shape=(4, 96))]
    inventory = make_inventory(layers).within([FOUR, EIGHT])
    assert [layer.formats for layer in inventory.layers] == [(FOUR, EIGHT), (UNQUANTIZED,)]
    assert layers[0].formats != (FOUR, EIGHT)


@given(
    target=st.floats(0.1, 40.0),
    num_parameters=st.integers(1, 10**12),
    fixed_bits=st.integers(0, 10**12),
)
def test_a_budget_is_the_most_bits_that_stay_at_or_below_the_target(
    target, num_parameters, fixed_bits
):
    inventory = make_inventory([], num_parameters=num_parameters, fixed_bits=fixed_bits)
    bits = inventory.budget_bits(target)
    assert inventory.bpw(bits) <= target
    # One more bit is too much, but for what division rounds away.
    exact = Fraction(fixed_bits + bits + 2, num_parameters)
    assert exact >= Fraction(target) * (1 - Fraction(1, 10**15))


def test_the_most_common_format_leaves_unquantized_layers_out():
    plan = make_plan("unquantized", "unquantized", "unquantized", "8g64", "8g64", "4g64")
    assert plan.most_common == EIGHT


def test_of_equally_common_formats_the_first_in_order_is_taken():
    assert make_plan("8g64", "4g64", "4g64", "8g64").most_common == FOUR
