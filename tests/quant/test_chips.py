from __future__ import annotations

import pytest

from dynquant.errors import InvalidOptionError
from dynquant.quant.chips import bandwidths_gb_per_sec, chip_named


@pytest.mark.parametrize(
    ("written", "meant"),
    [
        ("M4 Pro", "M4 Pro"),
        ("apple m4-pro", "M4 Pro"),
        ("  Apple M1 ", "M1"),
        ("m3 max (30-core gpu)", "M3 Max, 30-core GPU"),
    ],
)
def test_a_chip_is_found_as_people_write_it(written, meant):
    assert chip_named(written) == meant


def test_an_unknown_chip_is_refused_with_the_nearest_ones():
    with pytest.raises(InvalidOptionError, match=r"No chip is called 'M4 Prro'\. .*'M4 Pro'"):
        chip_named("M4 Prro")
    with pytest.raises(InvalidOptionError, match="Known are 'M1'"):
        chip_named("Xeon")


def test_every_chip_has_a_plausible_bandwidth():
    found = bandwidths_gb_per_sec()
    assert all(60 <= bandwidth <= 1000 for bandwidth in found.values())
    assert found["M4"] < found["M4 Pro"] < found["M4 Max"]
