from __future__ import annotations

from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dynquant.quant.formats import UNQUANTIZED, QuantFormat
from dynquant.quant.plan import QuantPlan
from tests.report.factories import make_inventory, make_layer

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


def test_within_a_menu_layers_take_formats_that_fit_or_stay_as_they_are():
    layers = [make_layer(shape=(4, 128)), make_layer(path="b", shape=(4, 96))]
    inventory = make_inventory(layers).within([FOUR, EIGHT])
    assert [layer.formats for layer in inventory.layers] == [(FOUR, EIGHT), (UNQUANTIZED,)]
    assert layers[0].formats != (FOUR, EIGHT)


def of_widths(*widths: int, formats: str) -> str:
    """The sentence on layers of these widths that no format fits."""
    layers = [make_layer(path=f"{i}", shape=(4, width)) for i, width in enumerate(widths)]
    menu = [QuantFormat.from_name(name) for name in formats.split(",")]
    return make_inventory(layers).within(menu).why_unquantized


def test_a_model_whose_widths_fit_no_group_says_why_it_stays_as_it_is():
    said = of_widths(66, 130, 66, formats="4g32,8g64")
    assert said.startswith(" No layer can be quantized: MLX quantizes groups of 32, 64 or 128")
    assert "(66, 130)" in said


def test_single_layers_of_odd_widths_are_counted_with_their_share():
    said = of_widths(96, 32, formats="4g32")
    assert said == ""
    said = of_widths(96, 48, 48, formats="4g32")
    assert said.startswith(" 2 of 3 layers, 50% of the weights, cannot be quantized")
    assert "(48)" in said


def test_a_menu_whose_groups_fit_no_layer_is_what_to_change():
    said = of_widths(96, 48, formats="4g128")
    assert "the formats must have a group size that divides" in said
    assert "(48, 96)" in said


def test_of_very_many_widths_a_few_are_named():
    assert "(1, 3, 5, 7, 9, …)" in of_widths(*range(1, 99, 2), formats="4g32")


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
