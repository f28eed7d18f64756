from __future__ import annotations

import math

import pytest

from dynquant.quant.formats import DEFAULT_MENU, UNQUANTIZED, QuantFormat
from dynquant.quant.plan import LayerProfile
from dynquant.quant.uniform import nearest_uniform, uniform_plan
from tests.report.factories import make_inventory, make_layer


def layer(path: str = "a", shape: tuple[int, ...] = (64, 128), floor: int = 0) -> LayerProfile:
    """A layer with the formats of the default menu that `ModelFolder.inventory` would give it."""
    formats = tuple(
        fmt for fmt in DEFAULT_MENU if fmt.fits(shape) and (fmt == UNQUANTIZED or fmt.bits >= floor)
    )
    return LayerProfile(path=path, shape=shape, dtype_bits=16, formats=formats)


def test_a_uniform_plan_has_one_format_and_its_exact_size():
    inventory = make_inventory([layer("a"), layer("b")])
    plan = uniform_plan(inventory, QuantFormat(4, 64))
    assert {fmt.name for fmt in plan.formats.values()} == {"4g64"}
    assert plan.stored_bpw == plan.target_bpw == 4.5
    assert math.isnan(plan.predicted_kl_nats)


def test_arrays_that_are_never_quantized_count():
    inventory = make_inventory([layer()], num_parameters=64 * 128 + 100, fixed_bits=1600)
    plan = uniform_plan(inventory, QuantFormat(4, 64))
    assert plan.stored_bpw == (4.5 * 64 * 128 + 1600) / (64 * 128 + 100)


def test_a_width_that_the_group_does_not_divide_stays_unquantized():
    plan = uniform_plan(make_inventory([layer(shape=(64, 96))]), QuantFormat(4, 64))
    assert plan.formats["a"] == UNQUANTIZED


def test_a_floor_of_the_architecture_gives_eight_bits_as_convert_does():
    plan = uniform_plan(make_inventory([layer(floor=8)]), QuantFormat(4, 64))
    assert plan.formats["a"] == QuantFormat(8, 64)


def test_a_layer_that_may_not_be_quantized_stays():
    kept = make_layer(formats="unquantized", path="a")
    plan = uniform_plan(make_inventory([kept]), QuantFormat(4, 64))
    assert plan.formats["a"] == UNQUANTIZED


@pytest.mark.parametrize(
    ("stored_bpw", "name"),
    [(1.0, "2g128"), (2.5, "2g64"), (4.5, "4g64"), (4.49, "4g64"), (4.3, "4g128"), (20.0, "8g32")],
)
def test_the_nearest_uniform_format_is_the_one_of_nearest_size(stored_bpw, name):
    fmt, plan = nearest_uniform(make_inventory([layer()]), stored_bpw)
    assert fmt.name == name
    assert plan.formats == {"a": fmt}


def test_of_two_formats_equally_near_the_smaller_is_taken():
    # 2g32 stores 3.0 and 3g128 3.25; 3.125 lies between.
    fmt, _ = nearest_uniform(make_inventory([layer()]), 3.125)
    assert fmt.name == "2g32"
