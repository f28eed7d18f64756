from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dynquant.quant.kl_calibration import KlCalibration

nats = st.floats(1e-6, 10)
probes = st.lists(st.tuples(nats, nats), min_size=1, max_size=4, unique_by=lambda pair: pair[0])


def test_without_probes_costs_add_up():
    assert KlCalibration().predicted_nats(0.3) == 0.3


def test_a_plan_that_costs_nothing_is_predicted_to_lose_nothing():
    assert KlCalibration(((0.1, 0.2),)).predicted_nats(0.0) == 0.0


def test_at_a_probe_its_measurement_is_predicted():
    together = KlCalibration(((0.1, 0.05), (1.0, 0.8)))
    assert together.predicted_nats(0.1) == pytest.approx(0.05)
    assert together.predicted_nats(1.0) == pytest.approx(0.8)


def test_between_probes_it_is_interpolated_geometrically():
    together = KlCalibration(((0.01, 0.01), (1.0, 0.25)))
    assert together.predicted_nats(0.1) == pytest.approx(0.05)


def test_beyond_the_probes_their_ratio_stays():
    together = KlCalibration(((0.1, 0.05), (1.0, 0.8)))
    assert together.predicted_nats(0.01) == pytest.approx(0.005)
    assert together.predicted_nats(10.0) == pytest.approx(8.0)


def test_a_probe_that_measured_less_than_a_cheaper_one_counts_as_that():
    together = KlCalibration(((1.0, 0.1), (0.1, 0.2)))
    assert together.predicted_nats(1.0) == pytest.approx(0.2)


@given(probes, nats, nats)
def test_a_plan_that_costs_more_is_never_predicted_to_lose_less(probes, one, other):
    together = KlCalibration(tuple(probes))
    low, high = sorted((one, other))
    assert together.predicted_nats(low) <= together.predicted_nats(high) * (1 + 1e-9)
