from __future__ import annotations

from functools import partial
from pathlib import Path

import pytest

from dynquant.errors import InfeasibleTargetError
from dynquant.model.source import ModelSource
from dynquant.quant.chips import bandwidth_model, bandwidths_gb_per_sec
from dynquant.quant.recipe import Recipe
from dynquant.quant.speed import TokenReads
from dynquant.report.size_options import Bounds, feasible_sizes, recommended, size_options
from tests.fakes import FakeQuantizer
from tests.report.factories import make_layer

SOURCE = ModelSource(
    name="a-model", folder=Path(), revision_sha="c0ffee", is_repo=False, license_fields={}
)


def options(
    *targets_bpw: float,
    num_rows: int = 1 << 23,
    chip: str | None = None,
    tokens_per_sec: float | None = None,
    memory_bytes: int | None = None,
    kv_bits: int = 16,
):
    """Of a model whose layers have 128 · `num_rows` weights in all; 10 bytes of cache a token."""
    layers = (make_layer(path="a", shape=(num_rows // 2, 128)),) * 2
    recipe = Recipe(targets_bpw=targets_bpw, context_tokens=10**7)
    bounds = Bounds(
        chip=chip, tokens_per_sec=tokens_per_sec, memory_bytes=memory_bytes, kv_bits=kv_bits
    )
    return size_options(SOURCE, FakeQuantizer(layers=layers), recipe, bounds)


def test_the_usual_sizes_are_those_that_the_model_allows():
    recipe = Recipe(targets_bpw=())
    assert feasible_sizes(FakeQuantizer(), recipe) == (3.0, 3.5, 4.0, 4.5, 5.0, 6.0, 7.0, 8.0)
    odd = FakeQuantizer(layers=(make_layer(shape=(10, 100)),))  # no group divides its width
    assert feasible_sizes(odd, recipe) == (16.0,)


def test_an_option_tells_size_quality_and_the_macs_that_run_it():
    small, large = options(3.0, 6.0)
    assert small.forecast.size_bytes * 2 == large.forecast.size_bytes
    assert small.quality.startswith("clearly worse")
    assert large.quality.startswith("hardly distinguishable")
    assert small.mac_gib == 8
    assert small.tokens_per_sec is None


def test_speed_is_estimated_from_the_bytes_that_a_token_reads():
    (found,) = options(4.5, chip="M4 Pro")
    read = TokenReads(weight_bytes=found.forecast.size_bytes, cache_bytes=0, num_blocks=6)
    expected = bandwidth_model().tokens_per_sec(
        read, bandwidth_gb_per_sec=bandwidths_gb_per_sec()["M4 Pro"]
    )
    assert found.tokens_per_sec == pytest.approx(expected)
    assert found.full_tokens_per_sec is not None
    assert found.full_tokens_per_sec < found.tokens_per_sec


def test_the_largest_size_that_fits_is_recommended():
    sizes = options(3.0, 4.0, 5.0, num_rows=1 << 27)  # 6.4, 8.6, 10.7 GB beside 0.1 GB of cache
    for memory_gib, bpw in ((8, None), (12, 3.0), (18, 5.0)):
        best = recommended(sizes, memory_gib=memory_gib)
        assert (None if best is None else best.forecast.target_bpw) == bpw


def test_more_bits_than_can_be_told_from_the_original_are_not_recommended():
    best = recommended(options(3.0, 6.0, 8.0), memory_gib=64)
    assert best is not None
    assert best.forecast.target_bpw == 6.0
    only = recommended(options(8.0), memory_gib=64)
    assert only is not None
    assert only.forecast.target_bpw == 8.0


@pytest.mark.parametrize("tokens_per_sec", [60.0, 90.0, 120.0])
def test_the_largest_size_that_is_fast_enough_is_found(tokens_per_sec):
    on_m4_pro = partial(options, chip="M4 Pro", num_rows=1 << 25)
    (found,) = on_m4_pro(tokens_per_sec=tokens_per_sec)
    bpw = found.forecast.target_bpw
    assert found.full_tokens_per_sec >= tokens_per_sec
    if bpw < found.forecast.max_bpw:
        (larger,) = on_m4_pro(round(bpw + 0.02, 2))
        assert larger.full_tokens_per_sec < tokens_per_sec


def test_memory_speed_and_cache_bound_a_size_together():
    on_m4_pro = partial(options, chip="M4 Pro", num_rows=1 << 25)
    (by_speed,) = on_m4_pro(tokens_per_sec=90)
    (by_memory,) = on_m4_pro(memory_bytes=3 << 30)
    (both,) = on_m4_pro(tokens_per_sec=90, memory_bytes=3 << 30)
    sizes = [each.forecast.target_bpw for each in (by_speed, by_memory)]
    assert both.forecast.target_bpw == min(sizes) < max(sizes)
    (smaller_cache,) = on_m4_pro(tokens_per_sec=90, memory_bytes=3 << 30, kv_bits=4)
    assert smaller_cache.forecast.target_bpw > both.forecast.target_bpw


def test_a_speed_that_no_size_reaches_is_refused_with_the_fastest():
    with pytest.raises(InfeasibleTargetError) as caught:
        options(tokens_per_sec=5000, chip="M1", num_rows=1 << 27)
    assert "generates 5000 tokens a second on M1 behind 10,000,000 tokens" in str(caught.value)
    assert f"its smallest, {caught.value.min_bpw:.2f} bits per weight" in str(caught.value)
