from __future__ import annotations

import contextlib
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dynquant.errors import InfeasibleTargetError, InvalidOptionError
from dynquant.report.forecast import fitting_bpw, memory_to_run_bytes, parse_memory
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
    with pytest.raises(InvalidOptionError, match=r"no memory size.*16GB"):
        parse_memory(text)


def test_running_takes_weights_cache_and_some_working_space():
    assert memory_to_run_bytes(1000, 200) == math.ceil(1200 * 1.05)


def test_the_fitting_target_is_the_largest_one_in_steps_of_a_hundredth():
    inventory = model(8 * 10**9)
    bpw = fitting_bpw(inventory, memory_bytes=8 * GB, cache_bytes=GB // 2)
    usable = 8 * GB * gpu_share(8.0)

    def needed(target: float) -> int:
        return memory_to_run_bytes(round(target * inventory.num_parameters / 8), GB // 2)

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
