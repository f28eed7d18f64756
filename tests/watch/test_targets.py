from __future__ import annotations

import pytest

from dynquant.quant.formats import DEFAULT_MENU
from dynquant.quant.plan import LayerProfile, ModelInventory
from dynquant.report.forecast import fitting_bpw, memory_to_run_bytes
from dynquant.report.quality_summary import gpu_share
from dynquant.watch.targets import MemoryFootprint, num_published_bytes, targets_of
from tests.watch.factories import make_rule

GIB = 2**30


def make_footprint(num_rows: int, *, cache_bytes: int) -> MemoryFootprint:
    layer = LayerProfile(
        path="a", shape=(num_rows, 4096), dtype_bits=16, formats=tuple(DEFAULT_MENU)
    )
    inventory = ModelInventory(
        model_type="qwen3",
        layers=(layer,),
        num_parameters=layer.num_weights,
        fixed_bits=0,
        dtype="bfloat16",
    )
    return MemoryFootprint(inventory=inventory, cache_bytes=cache_bytes)


def test_named_targets_are_taken_as_they_are_in_order():
    assert targets_of(make_rule(bpw=(6.0, 3.5)), num_parameters=1, footprint=None) == (3.5, 6.0)


@pytest.mark.parametrize("num_billions", [4, 8, 14, 32])
def test_what_is_made_for_a_memory_size_runs_there(num_billions):
    num_parameters = num_billions * 10**9
    rule = make_rule(bpw=(), memory_bytes=(16 * GIB, 32 * GIB))
    targets = targets_of(rule, num_parameters=num_parameters, footprint=None)
    assert targets == tuple(round(target, 1) for target in targets)
    largest = targets[-1] * num_parameters / 8
    assert memory_to_run_bytes(int(largest), 0) <= 32 * GIB * gpu_share(32)


def test_eight_billion_parameters_at_16_gb_get_as_much_as_a_mac_allows():
    rule = make_rule(bpw=(), memory_bytes=(16 * GIB,))
    (target,) = targets_of(rule, num_parameters=8 * 10**9, footprint=None)
    assert target == 8.0
    (target,) = targets_of(rule, num_parameters=14 * 10**9, footprint=None)
    assert 4.5 <= target <= 6


def test_known_footprints_are_planned_with_exactly():
    footprint = make_footprint(3 * 10**6, cache_bytes=GIB)
    rule = make_rule(bpw=(), memory_bytes=(16 * GIB,))
    exact = fitting_bpw(footprint.inventory, memory_bytes=16 * GIB, cache_bytes=GIB)
    num_parameters = footprint.inventory.num_parameters
    (target,) = targets_of(rule, num_parameters=num_parameters, footprint=footprint)
    assert exact - 0.1 < target <= exact


def test_a_size_that_leaves_too_little_is_left_out_and_equal_targets_are_one():
    rule = make_rule(bpw=(), memory_bytes=(8 * GIB, 128 * GIB, 256 * GIB))
    assert targets_of(rule, num_parameters=70 * 10**9, footprint=None) == (8.0,)
    assert targets_of(rule, num_parameters=10**12, footprint=None) == ()


def test_what_is_published_counts_every_target():
    assert num_published_bytes((4.0, 8.0), 10**9) == 1_500_000_000
