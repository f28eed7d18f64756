from __future__ import annotations

import json
import math
from dataclasses import asdict, replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dynquant.quant.chips import bandwidth_model, bandwidths_gb_per_sec
from dynquant.quant.formats import UNQUANTIZED, QuantFormat
from dynquant.quant.speed import MeasuredSpeed, TokenReads, reads_at_bpw, reads_of
from tests.report.factories import make_inventory, make_layer

FOUR = QuantFormat.from_name("4g64")
SPEED = MeasuredSpeed(
    machine="Apple M4 Pro, GPU",
    prompt_tokens=512,
    prompt_tokens_per_sec=803.5,
    generated_tokens=64,
    generated_tokens_per_sec=41.25,
)


def reads(gigabytes: float, *, num_blocks: int, has_experts: bool = False) -> TokenReads:
    return TokenReads(
        weight_bytes=round(gigabytes * 1e9),
        cache_bytes=0,
        num_blocks=num_blocks,
        has_experts=has_experts,
    )


@pytest.mark.parametrize(
    ("chip", "read", "published"),
    [
        ("M4 Pro", reads(0.634, num_blocks=28), 284.2),  # Qwen3-0.6B, 8 bits
        ("M4 Max", reads(59.1, num_blocks=80), 7.92),  # Qwen2.5-72B, 6 bits
        ("M3 Max", reads(3.5, num_blocks=48, has_experts=True), 68.0),  # Qwen3-30B-A3B, 8 bits
        ("M4 Pro", reads(15.4, num_blocks=62), 13.24),  # gemma-3-27b
        ("M4 Pro", reads(1.87, num_blocks=48, has_experts=True), 70.55),  # Qwen3-30B-A3B, 4 bits
    ],
)
def test_estimates_are_near_to_what_people_published(chip, read, published):
    estimate = bandwidth_model().tokens_per_sec(
        read, bandwidth_gb_per_sec=bandwidths_gb_per_sec()[chip]
    )
    assert estimate == pytest.approx(published, rel=0.2)


def test_a_token_reads_dense_layers_whole_few_experts_and_no_looked_up_embedding():
    dense = make_layer(path="dense", shape=(64, 64))
    experts = make_layer(path="experts", shape=(8, 64, 64))
    embedding = make_layer(path="embedding", shape=(1024, 64))
    inventory = make_inventory([dense, experts, embedding], fixed_bits=800)
    formats = {"dense": UNQUANTIZED, "experts": FOUR, "embedding": FOUR}
    found = reads_of(
        inventory,
        formats,
        {"dense": 1.0, "experts": 0.25, "embedding": 0.0},
        cache_bytes=7,
        num_blocks=3,
    )
    assert found.weight_bytes == 64 * 64 * 2 + 2 * 64 * 64 * 4.5 / 8 + 100
    assert (found.cache_bytes, found.num_blocks, found.has_experts) == (7, 3, True)


def test_a_layer_whose_share_is_not_known_counts_whole_and_a_copy_counts_once():
    layer = make_layer(path="head", shape=(64, 64), num_copies=2)
    found = reads_of(make_inventory([layer]), {"head": FOUR}, {}, cache_bytes=0, num_blocks=1)
    assert found.weight_bytes == 64 * 64 * 4.5 / 8


def test_a_tower_is_not_read_for_a_token():
    inventory = make_inventory([make_layer()], fixed_bits=8000, tower_bits=6400)
    with_tower = reads_of(
        inventory, {inventory.layers[0].path: FOUR}, {}, cache_bytes=0, num_blocks=1
    )
    assert with_tower.weight_bytes == 64 * 64 * 4.5 / 8 + 200


@given(names=st.lists(st.sampled_from(["2g64", "4g64", "8g64"]), min_size=1, max_size=6))
def test_a_target_before_planning_reads_what_a_plan_of_that_size_reads(names):
    """All layers are of one shape and read alike, so which of them has more bits is the same."""
    layers = [make_layer(path=f"layers.{i}") for i in range(len(names))]
    inventory = make_inventory(layers, fixed_bits=160)
    formats = {f"layers.{i}": QuantFormat.from_name(name) for i, name in enumerate(names)}
    shares = {layer.path: 0.5 for layer in layers}
    bits = sum(layer.stored_bits(formats[layer.path]) for layer in layers)
    planned = reads_of(inventory, formats, shares, cache_bytes=0, num_blocks=1)
    before = reads_at_bpw(inventory, inventory.bpw(bits), shares, cache_bytes=0, num_blocks=1)
    assert abs(planned.weight_bytes - before.weight_bytes) <= 1


def test_a_long_context_slows_generation_by_its_cache():
    model, short = bandwidth_model(), reads(4.0, num_blocks=32)
    full = replace(short, cache_bytes=4_000_000_000)
    speeds = [model.tokens_per_sec(each, bandwidth_gb_per_sec=100) for each in (short, full)]
    assert 0.5 < speeds[1] / speeds[0] < 0.52


def test_records_survive_json():
    read = reads(1.5, num_blocks=4, has_experts=True)
    assert TokenReads.from_json(json.loads(json.dumps(asdict(read)))) == read
    assert MeasuredSpeed.from_json(json.loads(json.dumps(asdict(SPEED)))) == SPEED


@pytest.mark.parametrize(
    "wrong",
    [
        {"generated_tokens_per_sec": math.inf},
        {"generated_tokens_per_sec": 0},
        {"generated_tokens_per_sec": True},
        {"prompt_tokens": -1},
        {"prompt_tokens": 2.5},
        {"machine": 7},
    ],
)
def test_a_wrong_measurement_of_another_process_is_refused(wrong):
    with pytest.raises((ValueError, TypeError)):
        MeasuredSpeed.from_json(asdict(SPEED) | wrong)


def test_the_name_of_a_machine_is_one_short_line():
    found = MeasuredSpeed.from_json(asdict(SPEED) | {"machine": "a\nb\x1b[31m" + "c" * 500})
    assert found.machine.startswith("ab[31mc")
    assert len(found.machine) == 80
