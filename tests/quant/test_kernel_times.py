from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dynquant.quant.formats import QuantFormat
from dynquant.quant.kernel_times import KernelTime, KernelTimes
from tests.report.factories import make_layer

FOUR, EIGHT = QuantFormat.from_name("4g64"), QuantFormat.from_name("8g64")


def time_of(fmt: QuantFormat, num_weights: int, secs: float, **overrides) -> KernelTime:
    values = {"batch": 1, "by_experts": False, **overrides}
    return KernelTime(fmt=fmt, num_weights=num_weights, secs=secs, **values)


TIMES = KernelTimes(
    machine="Apple M4 Pro, GPU",
    mlx_version="0.32.4",
    times=(
        time_of(FOUR, 1000, 0.001),
        time_of(FOUR, 4000, 0.003),
        time_of(EIGHT, 1000, 0.002),
        time_of(EIGHT, 4000, 0.006),
        time_of(FOUR, 1000, 0.01, by_experts=True),
        time_of(FOUR, 1000, 0.1, batch=64),
    ),
    secs_per_block=0.002,
    secs_per_token=0.003,
)


@pytest.mark.parametrize(
    ("num_weights", "secs"),
    [(1000, 0.001), (2500, 0.002), (4000, 0.003), (8000, 0.006), (10, 0.001)],
)
def test_times_are_interpolated_between_the_measured_sizes(num_weights, secs):
    assert TIMES.secs(FOUR, num_weights) == pytest.approx(secs)


def test_a_format_that_was_not_measured_takes_the_nearest_ones_time():
    assert TIMES.secs(QuantFormat.from_name("5g32"), 1000) == 0.001
    assert TIMES.secs(QuantFormat.from_name("8g128"), 1000) == 0.002


def test_experts_and_batches_have_times_of_their_own():
    assert TIMES.secs(FOUR, 1000, by_experts=True) == 0.01
    assert TIMES.secs(FOUR, 1000, batch=64) == 0.1
    with pytest.raises(KeyError):
        TIMES.secs(FOUR, 1000, batch=512)


def test_a_token_takes_each_product_each_block_and_some_time_beside():
    layers = [
        make_layer(path="a", shape=(40, 100)),
        make_layer(path="experts", shape=(4, 10, 100)),
        make_layer(path="embedding", shape=(500, 100)),
    ]
    formats = {"a": EIGHT, "experts": FOUR, "embedding": FOUR}
    shares = {"experts": 0.25, "embedding": 0.0}
    found = TIMES.tokens_per_sec(layers, formats, shares, num_blocks=2)
    assert found == pytest.approx(1 / (0.006 + 0.01 + 2 * 0.002 + 0.003))


@given(a=st.floats(1, 1e6), b=st.floats(1, 1e6))
def test_more_weights_never_take_less_time(a, b):
    low, high = sorted((a, b))
    assert TIMES.secs(FOUR, low) <= TIMES.secs(FOUR, high)


def test_the_record_survives_json():
    assert KernelTimes.from_json(json.loads(json.dumps(TIMES.to_json()))) == TIMES
