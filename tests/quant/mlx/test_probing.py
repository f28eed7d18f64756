from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise
from statistics import median
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dynquant.quant.formats import QuantFormat
from dynquant.quant.kl_calibration import KlCalibration
from dynquant.quant.mlx.encoders import LayerEncoder
from dynquant.quant.mlx.hessians import HessianObserver
from dynquant.quant.mlx.model_inputs import Batch
from dynquant.quant.mlx.probing import corrected, kl_of_formats, measure_scales, role_of
from tests.quant.mlx.factories import TinyModel, make_batches, make_measurement, make_profiles
from tests.report.factories import make_layer

FORMATS = "2g64,3g64,4g64,6g64,8g64,unquantized"


def profile(path: str = "model.layers.3.mlp.up_proj", **overrides):
    costs = dict(zip(FORMATS.split(","), (16.0, 8.0, 4.0, 2.0, 1.0, 0.0), strict=True))
    return make_layer(costs, path=path, **overrides)


def factors(scales: dict[str, float]) -> list[float]:
    before, after = profile().costs_nats, corrected(profile(), scales).costs_nats
    return [b / a for a, b in zip(before[:-1], after[:-1], strict=True)]


def test_a_role_is_the_last_name_of_the_path_experts_apart():
    assert role_of(profile("model.layers.3.mlp.up_proj")) == "up_proj"
    assert role_of(profile("lm_head")) == "lm_head"
    assert role_of(profile("a.up_proj", shape=(4, 64, 64))) == "up_proj (experts)"


def test_the_scale_between_two_probes_is_interpolated_geometrically():
    found = factors({"up_proj:2": 1.0, "up_proj:4": 4.0})
    assert found == pytest.approx([1.0, 2.0, 4.0, 4.0, 4.0])


def test_beyond_the_probes_the_scale_stays():
    assert factors({"up_proj:3": 2.0, "up_proj:6": 16.0}) == pytest.approx(
        [2.0, 2.0, 4.0, 16.0, 16.0]
    )


def test_between_three_probes_each_stretch_has_its_own_slope():
    found = factors({"up_proj:2": 1.0, "up_proj:4": 4.0, "up_proj:8": 1.0})
    assert found == pytest.approx([1.0, 2.0, 4.0, 2.0, 1.0])


def test_one_probe_scales_every_width_alike():
    assert factors({"up_proj:4": 3.0}) == pytest.approx([3.0] * 5)


def test_scales_of_other_roles_are_ignored():
    scales = {"down_proj:2": 9.0, "up_proj (experts):2": 9.0}
    assert corrected(profile(), scales) == profile()


def test_a_cost_of_zero_stays_zero():
    assert corrected(profile(), {"up_proj:2": 5.0}).costs_nats[-1] == 0


positive = st.floats(1e-3, 1e3)


@given(positive, positive)
def test_interpolated_scales_lie_between_the_probed_ones_in_order(first, last):
    found = factors({"up_proj:2": first, "up_proj:6": last})
    low, high = min(first, last), max(first, last)
    assert all(low * (1 - 1e-9) <= f <= high * (1 + 1e-9) for f in found)
    assert all((b - a) * (last - first) >= -1e-9 for a, b in pairwise(found))


def probed(
    tiny: TinyModel,
    *,
    formats: str,
    cost: float = 1e-3,
    name: str = "wls",
    max_spread: float = math.inf,
) -> tuple[dict[str, float], KlCalibration]:
    measurement = make_measurement(tiny, gptq=name == "gptq")
    profiles = [
        make_layer(
            {fmt.name: cost / 2**fmt.bits for fmt in each.formats},
            path=each.path,
            shape=each.shape,
        )
        for each in make_profiles(measurement, formats=formats)
    ]
    moments = HessianObserver(measurement.shapes, gram=measurement.gptq)
    steps: list[int] = []
    found = measure_scales(
        measurement,
        make_batches(1, seed=5),
        profiles,
        LayerEncoder(name, moments),
        max_spread=max_spread,
        on_step=lambda: steps.append(1),
    )
    num_passes = 2 if any(len(each.shape) > 2 for each in profiles) else 1
    assert len(steps) == num_passes * len(measurement.blocks.blocks)
    return found


def scales_of(tiny: TinyModel, **arguments: Any) -> dict[str, float]:
    return probed(tiny, **arguments)[0]


@pytest.mark.parametrize("name", ["wls", "gptq", "minmax"])
def test_each_role_is_probed_at_two_widths_and_its_scales_are_positive(tied, name):
    scales = scales_of(tied, formats="2g32,4g32,6g32", name=name)
    roles = {"q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"}
    expected = {f"{role}:{bits}" for role in (*roles, "embed_tokens") for bits in (2, 4)}
    assert set(scales) == expected
    assert all(0 < scale < math.inf for scale in scales.values())


def test_probing_twice_gives_the_same_scales(experts):
    (first, together), again = (probed(experts, formats="2g32,4g32,6g32") for _ in range(2))
    assert (first, together) == again
    assert "q_proj:6" in first  # with experts a third width
    assert {"up_proj (experts):2", "gate:4", "lm_head:2"} <= set(first)


def test_costs_twice_as_high_get_scales_half_as_high(tied):
    one = scales_of(tied, formats="2g32,4g32", cost=1e-3)
    two = scales_of(tied, formats="2g32,4g32", cost=2e-3)
    for name, scale in one.items():
        assert two[name] == pytest.approx(scale / 2)


@pytest.mark.parametrize("cost", [1e-3, 2e-3])
def test_plans_of_one_width_calibrate_the_summed_costs(tied, cost):
    scales, together = probed(tied, formats="2g32,4g32", cost=cost)
    assert len(together.probes) == 2
    for summed, measured in together.probes:
        # In a random model the costs of layers about add up.
        assert 0.2 < measured / summed < 5
        assert together.predicted_nats(summed) == pytest.approx(measured)
    assert all("all layers" not in name for name in scales)


def test_with_experts_chosen_plans_calibrate_the_summed_costs(experts):
    _, together = probed(experts, formats="2g32,3g32,4g32,6g32,8g32")
    assert len(together.probes) == 2
    assert len({summed for summed, _ in together.probes}) == 2
    assert all(0 < kl < math.inf for _, kl in together.probes)


def test_calibration_windows_may_be_the_windows_for_kl(experts):
    measurement = make_measurement(experts)
    plan = dict.fromkeys(measurement.shapes, QuantFormat(3, 32))

    def kl(windows: Sequence[Batch]) -> dict[str, float]:
        encoder = LayerEncoder("wls", measurement.observer())
        return kl_of_formats(measurement, windows, {"plan": plan}, encoder)

    once, twice = kl(measurement.batches), kl(list(measurement.batches))
    assert once["plan"] > 0
    assert once == pytest.approx(twice, rel=1e-5)


def test_a_menu_that_leaves_one_plan_is_probed_by_that(experts):
    assert len(probed(experts, formats="4g32")[1].probes) == 1


def test_probes_far_from_all_others_are_held_near_the_median(tied):
    free = scales_of(tied, formats="2g32,8g32")
    middle = median(free.values())
    assert max(free.values()) > 2 * middle
    held = scales_of(tied, formats="2g32,8g32", max_spread=2.0)
    for name, scale in free.items():
        assert held[name] == pytest.approx(min(max(scale, middle / 2), 2 * middle))


def test_a_menu_of_one_width_is_probed_at_that_width(tied):
    assert {name.rpartition(":")[2] for name in scales_of(tied, formats="8g32")} == {"8"}


def test_layers_that_no_affine_format_fits_are_not_probed(tied):
    assert probed(tied, formats="unquantized") == ({}, KlCalibration())


def test_costs_of_zero_give_no_scale(tied):
    assert probed(tied, formats="2g32", cost=0.0) == ({}, KlCalibration())


def test_the_probed_format_is_the_nearest_in_bits(tied):
    """Three bits are nearest to two and to four alike."""
    scales = scales_of(tied, formats="3g32,6g32")
    assert {name.rpartition(":")[2] for name in scales} == {"3"}
