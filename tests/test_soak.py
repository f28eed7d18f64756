"""The rule by which `make soak` calls a line flat."""

from __future__ import annotations

import random

import pytest

from tests.soak import BOUNDS, Bound, Watched, is_flat, judged, slope_per_hour

pytestmark = pytest.mark.harden("soak")

SECS = 1800.0


def watch(amount_at, unit: str = "MB") -> Watched:
    times = [12.0 * number for number in range(int(SECS / 12))]
    return Watched("pages", dict, {unit: [(at, amount_at(at)) for at in times]})


def test_a_slope_is_by_the_hour_and_a_few_odd_samples_do_not_matter():
    samples = [(float(at), 200.0 + at / 36.0) for at in range(0, 360, 3)]
    assert slope_per_hour(samples) == pytest.approx(100.0)
    samples[50] = (samples[50][0], 9_000.0)
    assert slope_per_hour(samples) == pytest.approx(100.0, rel=0.05)


@pytest.mark.parametrize("unit", sorted(BOUNDS))
def test_a_leak_is_found_beneath_noise_and_noise_alone_is_none(unit):
    chance, bound = random.Random(unit), BOUNDS[unit]

    def noisy(per_hour: float):
        return lambda at: 100.0 + per_hour * at / 3600.0 + chance.gauss(0.0, bound.noise / 4)

    lines, good = judged([watch(noisy(4 * bound.per_hour), unit)], secs=SECS)
    assert not good
    assert lines[1].endswith("NOT FLAT")
    assert judged([watch(noisy(0.0), unit)], secs=SECS)[1]


def test_what_fills_up_in_the_warm_up_and_then_stays_is_flat():
    assert judged([watch(lambda at: min(at, 600.0))], secs=SECS)[1]


def test_a_process_that_was_never_seen_is_not_flat():
    assert not judged([watch(lambda at: 1.0)], secs=100 * SECS)[1]


def test_a_short_run_forgives_a_slope_that_comes_to_little():
    bound = Bound(per_hour=60.0, noise=12.0)
    assert is_flat([(0.0, 0.0), (360.0, 10.0)], bound)
    assert not is_flat([(0.0, 0.0), (3600.0, 100.0)], bound)
