from __future__ import annotations

from dataclasses import asdict

import pytest

from dynquant.quant.verified import Verified, runtimes_in

GOOD = asdict(Verified("The", ("mlx-vlm", "mlx-lm"), saw_image=True))


def test_a_result_comes_back_as_it_was():
    assert Verified.from_json(GOOD) == Verified("The", ("mlx-vlm", "mlx-lm"), saw_image=True)


def test_the_sample_that_earlier_versions_kept_is_a_result():
    assert Verified.from_json("The text") == Verified("The text")


@pytest.mark.parametrize(
    "changes",
    [
        {"sample": 7},
        {"runtimes": ["mlx-lm", "evil"]},
        {"runtimes": []},
        {"runtimes": "mlx-lm"},
        {"runtimes": None},
        {"runtimes": [["mlx-lm"]]},
    ],
)
def test_other_records_are_refused(changes):
    with pytest.raises((ValueError, TypeError)):
        Verified.from_json(GOOD | changes)


def test_a_long_sample_is_cut():
    assert len(Verified.from_json(GOOD | {"sample": "a" * 10**6}).sample) == 10_000


def test_runtimes_are_named_once():
    assert runtimes_in(["mlx-vlm", "mlx-lm", "mlx-vlm"]) == ("mlx-vlm", "mlx-lm")
