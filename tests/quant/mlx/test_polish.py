from __future__ import annotations

import dataclasses
from itertools import count

import pytest

from dynquant.quant.allocate import allocate
from dynquant.quant.mlx.encoders import LayerEncoder
from dynquant.quant.mlx.polish import polished
from dynquant.quant.mlx.probing import kl_of_formats
from dynquant.quant.plan import ModelInventory, QuantPlan
from tests.quant.mlx.factories import make_batches, make_measurement, make_profiles
from tests.report.factories import make_inventory

FORMATS = "2g32,4g32,6g32"
TARGET = 5.0
WINDOWS = make_batches(1, seed=5)


def with_poor_costs(measurement) -> ModelInventory:
    """Costs far too low for every other layer, so that plans are poor."""
    profiles = make_profiles(measurement, formats=FORMATS)
    layers = tuple(
        dataclasses.replace(
            each,
            costs_nats=tuple((1 + i % 2) * each.num_weights * 4.0**-f.bits for f in each.formats),
        )
        for i, each in enumerate(profiles)
    )
    return make_inventory(layers)


def polish(measurement, *, num_rounds: int = 2, keep_going=lambda: True):
    inventory = with_poor_costs(measurement)
    plan = allocate(inventory, target_bpw=TARGET)
    encoder = LayerEncoder("wls", measurement.observer())
    steps: list[int] = []
    found = polished(
        measurement,
        WINDOWS,
        inventory,
        {TARGET: plan},
        encoder,
        num_rounds=num_rounds,
        keep_going=keep_going,
        on_step=lambda: steps.append(1),
    )
    return plan, found.get(TARGET), len(steps)


def kl(measurement, *plans: QuantPlan) -> list[float]:
    encoder = LayerEncoder("wls", measurement.observer())
    named = {str(i): plan.formats for i, plan in enumerate(plans)}
    return list(kl_of_formats(measurement, WINDOWS, named, encoder).values())


def test_a_poor_plan_gets_better_and_no_larger(tied):
    measurement = make_measurement(tied, gptq=False)
    plan, better, steps = polish(measurement)
    before, after = kl(measurement, plan, better)
    assert after < before
    assert better.stored_bpw <= TARGET
    assert better.formats["model.embed_tokens"] == plan.formats["model.embed_tokens"]
    assert steps == 2 * len(measurement.blocks.blocks)


def test_polishing_twice_gives_the_same_plan(experts):
    first, second = (polish(make_measurement(experts, gptq=False), num_rounds=1)[1] for _ in "ab")
    assert first == second


@pytest.mark.parametrize("rounds", [0, 1])
def test_no_round_begins_after_the_time_is_spent(tied, rounds):
    measurement = make_measurement(tied, gptq=False)
    asked = count()
    plan, better, steps = polish(measurement, num_rounds=9, keep_going=lambda: next(asked) < rounds)
    assert steps == rounds * len(measurement.blocks.blocks)
    # Rounds before the time was spent are kept; without a round no plan is called polished.
    assert (better is not None) == bool(rounds)
    if better is not None:
        before, after = kl(measurement, plan, better)
        assert after < before
