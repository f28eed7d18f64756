"""Offers: within the limit, on a machine that is large enough, and no cheaper one would do."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dynquant.errors import HubJobError
from dynquant.rented.hardware import billed_micro_usd
from dynquant.rented.offer import Offer, offer_for
from tests.rented.factories import GB, make_flavor, make_needs

GPUS = ("", "T4", "L4", "A10G", "A100", "H200", "of next year")

flavors = st.lists(
    st.builds(
        make_flavor,
        name=st.uuids().map(str),
        gpu=st.sampled_from(GPUS),
        gpu_bytes=st.integers(0, 200).map(lambda n: n * GB),
        memory_bytes=st.integers(1, 300).map(lambda n: n * GB),
        disk_bytes=st.integers(1, 4_000).map(lambda n: n * GB),
        micro_usd_per_minute=st.integers(1, 700_000),
    ),
    max_size=6,
)
needs = st.builds(
    make_needs,
    memory_bytes=st.integers(1, 200 * GB),
    disk_bytes=st.integers(1, 2_000 * GB),
    transfer_secs=st.floats(1, 10**4),
    compute_secs=st.floats(1, 10**5),
)
limits = st.none() | st.integers(0, 10**8)
timeouts = st.none() | st.integers(60, 10**5)


def offered(wanted: Any, rented: Any, **limits: Any) -> Offer | None:
    try:
        return offer_for(wanted, rented, **limits)
    except HubJobError:
        return None


@given(needs, flavors, limits, timeouts)
def test_no_offer_costs_more_than_the_limit_even_at_its_timeout(wanted, rented, limit, timeout):
    offer = offered(wanted, rented, max_micro_usd=limit, timeout_secs=timeout)
    if offer is not None:
        assert limit is None or offer.worst_micro_usd <= limit
        price = offer.flavor.micro_usd_per_minute
        assert offer.worst_micro_usd == billed_micro_usd(price, offer.timeout_secs)
        assert timeout in {None, offer.timeout_secs}


@given(needs, flavors, limits)
def test_a_machine_has_what_the_conversion_needs_and_time_for_it(wanted, rented, limit):
    offer = offered(wanted, rented, max_micro_usd=limit)
    if offer is not None:
        assert offer.flavor.gpu_bytes > wanted.memory_bytes
        assert offer.flavor.memory_bytes > wanted.memory_bytes
        assert offer.flavor.disk_bytes > wanted.disk_bytes
        assert offer.timeout_secs > offer.expected_secs
        assert offer.expected_micro_usd <= offer.worst_micro_usd


@given(needs, flavors, limits)
def test_no_other_machine_is_cheaper_within_the_limit(wanted, rented, limit):
    best = offered(wanted, rented, max_micro_usd=limit)
    for each in rented:
        alone = offered(wanted, [each], max_micro_usd=limit)
        if alone is not None:
            assert best is not None
            assert best.expected_micro_usd <= alone.expected_micro_usd


@given(needs, flavors, st.integers(0, 10**8), st.integers(0, 10**8))
def test_a_higher_limit_never_loses_an_offer(wanted, rented, limit, more):
    if offered(wanted, rented, max_micro_usd=limit) is not None:
        assert offered(wanted, rented, max_micro_usd=limit + more) is not None


def test_the_usual_model_goes_to_the_cheapest_machine_and_a_large_one_to_a_large_one():
    l4, h200 = make_flavor(), make_flavor(
        name="h200", gpu="H200", gpu_bytes=141 * GB, memory_bytes=256 * GB, disk_bytes=3_000 * GB,
        micro_usd_per_minute=83_333,
    )  # fmt: skip
    assert offer_for(make_needs(), [h200, l4]).flavor is l4
    assert offer_for(make_needs(memory_bytes=60 * GB), [h200, l4]).flavor is h200
    assert offer_for(make_needs(), [h200, l4], name="h200").flavor is h200


def test_a_gpu_without_bfloat16_and_a_machine_without_a_gpu_are_not_offered():
    rented = [make_flavor(name="t4-small", gpu="T4"), make_flavor(name="cpu-xl", gpu="")]
    with pytest.raises(HubJobError, match="no machine with a GPU"):
        offer_for(make_needs(), rented)
    for each in rented:
        with pytest.raises(HubJobError, match="no GPU that MLX converts on"):
            offer_for(make_needs(), [*rented, make_flavor()], name=each.name)


def test_a_flavor_that_is_gone_is_told_with_those_that_are_there():
    with pytest.raises(HubJobError, match=r"rents no machine 'h100' now.*: l4x1"):
        offer_for(make_needs(), [make_flavor()], name="h100")


def test_a_limit_that_is_too_low_is_told_with_what_the_conversion_may_cost():
    with pytest.raises(HubJobError, match=r"up to \$1\.20 .*limit of \$0\.10.*max-dollars"):
        offer_for(make_needs(), [make_flavor()], max_micro_usd=100_000)


def test_a_limit_shortens_the_timeout_before_it_refuses():
    free = offer_for(make_needs(), [make_flavor()])
    tight = offer_for(make_needs(), [make_flavor()], max_micro_usd=free.worst_micro_usd // 2)
    assert tight.expected_secs < tight.timeout_secs < free.timeout_secs


def test_what_a_named_machine_lacks_is_told():
    with pytest.raises(HubJobError, match=r"'l4x1' has 24\.0 GB of GPU memory"):
        offer_for(make_needs(memory_bytes=40 * GB), [make_flavor()], name="l4x1")
    with pytest.raises(HubJobError, match="'l4x1' has 400 GB of disk"):
        offer_for(make_needs(disk_bytes=900 * GB), [make_flavor()], name="l4x1")
