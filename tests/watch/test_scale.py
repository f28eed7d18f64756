"""A Hub with many models: the cost of a sweep depends on the new ones, not on the total."""

from __future__ import annotations

import time

import pytest

from dynquant.watch.skips import Skip
from tests.watch.scene import add_model, model_files, stamp
from tests.watch.test_crash import Sweeps

pytestmark = [pytest.mark.hub, pytest.mark.slow]

NUM_MODELS = 50_000
NUM_NEW = 200
RULES = "rules: [{name: a, bpw: [4.5], destination: you, max_per_sweep: 500}]"


def test_a_sweep_over_the_last_hour_costs_some_calls_whatever_else_the_hub_has(
    scene, tmp_path, record_property
):
    hub = scene.hub
    for number in range(NUM_MODELS):
        date = stamp(scene.at(-180 - number))
        hub.add(f"user{number % 500}/m{number}", {}, created_at=date, last_modified=date)
    sweeps = Sweeps(scene, tmp_path, RULES)
    assert sweeps.whole(scene.at(-120))["queued"] == []
    # The uploads of an hour: a rule takes every tenth model.
    quant = model_files(tags=["gguf"])
    for number in range(NUM_NEW):
        files = None if number % 10 == 0 else quant
        add_model(hub, f"new/m{number}", scene.at(-60 + number * 0.3), files)
    hub.requests.clear()
    began = time.monotonic()
    report = sweeps.whole(scene.at(0))
    secs = time.monotonic() - began

    calls = (
        f"{report['calls']} calls for {report['seen']} models seen of {len(hub.repos):,}, "
        f"{len(report['queued'])} queued, in {secs:.1f} s"
    )
    record_property("watch", calls)
    assert len(report["queued"]) == NUM_NEW // 10
    assert report["skipped"][Skip.QUANT] == NUM_NEW - NUM_NEW // 10
    # A page of each list, and for each model that a rule takes its metadata and its quants.
    assert report["calls"] == len(hub.requests) == 2 + 2 * (NUM_NEW // 10)
    assert sum(request.num_bytes for request in hub.requests) < 2_000_000


def test_memory_does_not_grow_with_the_number_of_models_that_are_read(
    scene, tmp_path, record_property
):
    hub = scene.hub
    quant = model_files(tags=["gguf"])
    most = []
    for number, (size, minutes) in enumerate(((1_000, 0), (12_000, 60))):
        for each in range(size):
            at = scene.at(minutes - 50 + each * 50 / size)
            hub.add(f"new/m{number}-{each}", quant, created_at=stamp(at), last_modified=stamp(at))
        report = Sweeps(scene, tmp_path, RULES).whole(scene.at(minutes))
        assert report["seen"] >= size
        most.append(report["max_rss"])
    record_property("watch", f"12,000 models instead of 1,000: {most[1] - most[0]:+,} bytes")
    assert most[1] - most[0] < 5_000_000, most
