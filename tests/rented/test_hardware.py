from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dynquant.rented.hardware import dollars, num_bytes, price_micro_usd
from tests.rented.factories import make_flavor


@pytest.mark.parametrize(
    ("text", "expected"),
    [("141 GB", 141 * 10**9), ("1128 GB", 1128 * 10**9), ("1.5 TB", 15 * 10**11), ("N/A", 0)],
)
def test_the_hubs_sizes_are_read(text, expected):
    assert num_bytes(text) == expected


@given(st.integers(0, 10**6), st.integers(0, 10**6))
def test_a_longer_job_never_costs_less_and_every_minute_that_began_is_paid(secs, more):
    flavor = make_flavor()
    price = price_micro_usd(flavor, secs)
    assert price <= price_micro_usd(flavor, secs + more)
    assert price * 60 >= secs * flavor.micro_usd_per_minute


@given(st.integers(0, 10**12))
def test_what_is_shown_is_never_less_than_what_is_paid(micro_usd):
    shown = dollars(micro_usd)
    assert shown.startswith("$")
    assert round(float(shown[1:]) * 10**6) >= micro_usd
    assert round(float(shown[1:]) * 10**6) < micro_usd + 10**4
