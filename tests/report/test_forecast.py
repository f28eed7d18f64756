from __future__ import annotations

import contextlib
import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dynquant.errors import InfeasibleTargetError, InvalidOptionError
from dynquant.report.facts import SizeVariant
from dynquant.report.forecast import (
    TargetForecast,
    fitting_bpw,
    fitting_tenths,
    memory_to_run_bytes,
    one_layer_inventory,
    parse_memory,
    target_forecast,
    weight_bytes,
)
from dynquant.report.quality_summary import gpu_share
from tests.report.factories import make_inventory, make_layer

GB = 2**30


def model(num_parameters: int):
    """A model of one layer with formats from 2.5 to 16 bits per weight."""
    layer = make_layer(shape=(num_parameters // 64, 64), formats="2g64,4g64,unquantized")
    return make_inventory([layer])


@pytest.mark.parametrize(
    ("text", "num_bytes"),
    [
        ("16GB", 16 * GB),
        ("16G", 16 * GB),
        ("16", 16 * GB),
        ("16 gb", 16 * GB),
        (" 16GiB ", 16 * GB),
        ("0.5g", GB // 2),
        ("512MB", GB // 2),
        ("1T", 1024 * GB),
    ],
)
def test_a_memory_size_is_read_as_macs_are_sold(text, num_bytes):
    assert parse_memory(text) == num_bytes


@pytest.mark.parametrize("text", ["", "0", "0GB", "-16GB", "16XB", "lots", "1e3GB", "16,5GB", "٣."])
def test_what_is_no_memory_size_is_refused(text):
    with pytest.raises(InvalidOptionError, match=r"not a memory size.*16GB"):
        parse_memory(text)


def test_running_takes_weights_cache_and_some_working_space():
    assert memory_to_run_bytes(1000, 200) == math.ceil(1200 * 1.05)


def test_the_fitting_target_is_the_largest_one_in_steps_of_a_hundredth():
    inventory = model(8 * 10**9)
    bpw = fitting_bpw(inventory, memory_bytes=8 * GB, cache_bytes=GB // 2)
    usable = 8 * GB * gpu_share(8.0)

    def needed(target: float) -> int:
        return memory_to_run_bytes(weight_bytes(target, inventory.num_parameters), GB // 2)

    assert needed(bpw) <= usable < needed(bpw + 0.01)
    assert round(bpw, 2) == bpw


@given(st.integers(1, 512), st.integers(0, 4 * GB), st.integers(10**8, 10**12))
def test_a_fitting_target_is_always_feasible(memory, cache_bytes, num_parameters):
    inventory = model(num_parameters)
    with contextlib.suppress(InfeasibleTargetError):
        bpw = fitting_bpw(inventory, memory_bytes=memory * GB, cache_bytes=cache_bytes)
        assert inventory.min_bpw <= bpw <= inventory.max_bpw


def test_a_model_that_fits_whole_needs_no_more_than_its_largest_formats():
    assert fitting_bpw(model(6400), memory_bytes=GB, cache_bytes=0) == 16.0


@pytest.mark.parametrize("cache_bytes", [0, 100 * GB])
def test_a_model_that_does_not_fit_is_refused_with_what_is_missing(cache_bytes):
    inventory = model(70 * 10**9)
    with pytest.raises(InfeasibleTargetError, match=r"8 GB leave room for .*2\.50 are") as caught:
        fitting_bpw(inventory, memory_bytes=8 * GB, cache_bytes=cache_bytes)
    assert (caught.value.min_bpw, caught.value.max_bpw) == (2.5, 16.0)


def test_a_small_model_gets_no_more_bits_than_asked_for():
    bpw = fitting_tenths(model(6400), memory_bytes=8 * GB, cache_bytes=0, max_bpw=8.5)
    assert bpw == 8.5


@given(st.integers(1, 512), st.integers(10**8, 10**12), st.sampled_from([8.0, 8.5]))
def test_a_fitting_target_is_in_tenths_and_feasible(memory, num_parameters, max_bpw):
    inventory = model(num_parameters)
    fitting = {"memory_bytes": memory * GB, "cache_bytes": 0}
    with contextlib.suppress(InfeasibleTargetError):
        bpw = fitting_tenths(inventory, **fitting, max_bpw=max_bpw)
        exact = min(fitting_bpw(inventory, **fitting), max_bpw)
        assert inventory.min_bpw <= bpw <= exact + 1e-6 < bpw + 0.1 + 2e-6
        assert round(bpw, 1) == bpw or bpw < math.ceil(10 * inventory.min_bpw) / 10


@pytest.mark.parametrize("num_parameters", [1, 128, 1_000, 8 * 10**9 + 5])
def test_a_rough_inventory_has_the_size_of_the_original(num_parameters):
    inventory = one_layer_inventory(num_parameters)
    assert inventory.num_parameters == max(num_parameters, 128)
    assert inventory.max_bpw == 16.0


def forecast_at(target_bpw: float, **overrides: Any) -> TargetForecast:
    options: dict[str, Any] = {
        "context_tokens": 1_000,
        "cache_bytes_per_token": 512,
        "measured": (),
    }
    return target_forecast(model(64 * 10**6), target_bpw, **options | overrides)


def test_a_target_has_its_size_its_memory_and_an_expectation():
    one = forecast_at(4.5)
    assert one.size_bytes == 36 * 10**6
    assert one.memory_bytes == memory_to_run_bytes(one.size_bytes, 512_000)
    assert (one.quality, one.is_measured) == ("close to the original for most uses", False)


def test_memory_is_unknown_where_the_cache_is():
    one = forecast_at(4.5, cache_bytes_per_token=None)
    assert (one.memory_bytes, one.fits) == (None, "")


def test_a_target_beyond_the_formats_is_refused_with_what_the_model_allows():
    with pytest.raises(InfeasibleTargetError, match=r"allows about 2\.50 to 16\.00") as caught:
        forecast_at(1.5)
    assert (caught.value.min_bpw, caught.value.max_bpw) == (2.5, 16.0)


def test_figures_of_this_model_take_the_place_of_the_rule_of_thumb():
    measured = [
        SizeVariant(
            name="x",
            target_bpw=bpw,
            stored_bpw=bpw,
            num_bytes=1,
            mean_kl_nats=kl,
            mean_kl_se_nats=0.0,
            top1_agreement=0.9,
        )
        for bpw, kl in ((3.5, 0.2), (4.5, 0.1))
    ]
    near = forecast_at(4.6, measured=measured)
    assert near.is_measured
    assert near.quality == "mean KL 0.10 nats and top-1 agreement 90 % at 4.5 bits per weight"
    assert not forecast_at(6.0, measured=measured).is_measured
