"""The allocator against brute force, its relaxation and its documentation."""

from __future__ import annotations

import itertools
import math
import re
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dynquant.errors import (
    InfeasibleTargetError,
    InvalidOptionError,
    NonFiniteError,
    SensitivitiesError,
)
from dynquant.quant.allocate import allocate, allocate_by_threshold, check_target
from dynquant.quant.formats import DEFAULT_MENU, QuantFormat
from dynquant.quant.kl_calibration import KlCalibration
from dynquant.quant.plan import LayerProfile, ModelInventory, QuantPlan
from tests.report.factories import make_inventory, make_layer, make_layers

LOW, HIGH = QuantFormat(4, 64), QuantFormat(8, 64)
FALLING = {"2g64": 4.0, "4g64": 1.0, "8g64": 0.25}
# Makes 0.01 BPW more than all the layers hold, so that no plan is filled up at equal cost.
LARGE = 10**9


def layer_bits(inventory: ModelInventory, plan: QuantPlan) -> int:
    return sum(layer.stored_bits(plan.formats[layer.path]) for layer in inventory.layers)


def summed_cost(inventory: ModelInventory, plan: QuantPlan) -> float:
    return math.fsum(layer.cost_nats(plan.formats[layer.path]) for layer in inventory.layers)


def names(plan: QuantPlan) -> list[str]:
    return [fmt.name for fmt in plan.formats.values()]


def brute_force(inventory: ModelInventory, target_bpw: float) -> tuple[float, int]:
    """Least cost of a plan within the target, and the fewest bits of a plan of that cost."""
    options = [
        [
            (cost, layer.stored_bits(f))
            for f, cost in zip(layer.formats, layer.costs_nats, strict=True)
        ]
        for layer in inventory.layers
    ]
    totals = (
        (math.fsum(cost for cost, _ in picks), sum(bits for _, bits in picks))
        for picks in itertools.product(*options)
    )
    return min(total for total in totals if inventory.bpw(total[1]) <= target_bpw)


def exact_by_table(inventory: ModelInventory, budget_bits: int) -> float:
    """Least cost by the textbook table over all budgets, in units of the common divisor."""
    unit = math.gcd(*(layer.stored_bits(f) for layer in inventory.layers for f in layer.formats))
    least = np.zeros(budget_bits // unit + 1)
    for layer in inventory.layers:
        following = np.full(least.shape, np.inf)
        for fmt, cost in zip(layer.formats, layer.costs_nats, strict=True):
            size = layer.stored_bits(fmt) // unit
            if size < len(least):
                following[size:] = np.minimum(following[size:], least[: -size or None] + cost)
        least = following
    return float(least[-1])


def spread_target(inventory: ModelInventory, fraction: float) -> float:
    """The target at this fraction of the feasible range."""
    low, high = inventory.min_bpw, inventory.max_bpw
    return min(max(low + fraction * (high - low), low), high)


FORMATS = st.lists(st.sampled_from(DEFAULT_MENU), min_size=1, max_size=5, unique=True)
SHAPES = st.sampled_from([(64, 128), (128, 128), (48, 256), (4, 32, 128), (512, 128)])
REAL_COSTS = st.one_of(
    st.floats(0, 1e6, allow_subnormal=False), st.floats(1e-9, 1.0), st.just(0.0), st.just(1.0)
)
WHOLE_COSTS = st.integers(0, 6).map(float)


@st.composite
def inventories(
    draw: st.DrawFn, costs: st.SearchStrategy[float], num_parameters: int | None = None
) -> ModelInventory:
    layers = []
    for i in range(draw(st.integers(1, 6))):
        formats = tuple(draw(FORMATS))
        layers.append(
            LayerProfile(
                path=f"layers.{i}",
                shape=draw(SHAPES),
                dtype_bits=draw(st.sampled_from([16, 32])),
                formats=formats,
                costs_nats=tuple(draw(costs) for _ in formats),
            )
        )
    weights = sum(layer.num_weights for layer in layers)
    return make_inventory(
        layers,
        num_parameters=num_parameters or weights + draw(st.integers(0, 3000)),
        fixed_bits=draw(st.integers(0, 50_000)),
    )


def model_like_inventory(num_blocks: int, *, seed: int) -> ModelInventory:
    """Equal blocks of seven matrices, one embedding much heavier than they are, 19 formats."""
    rng = np.random.default_rng(seed)
    roles = ((256, 256), (128, 256), (128, 256), (256, 256), (768, 256), (768, 256), (256, 768))
    layers = []
    for i, shape in enumerate([(8192, 256), *roles * num_blocks]):
        scale = math.prod(shape) * rng.lognormal(0.0, 1.2)
        noise = rng.lognormal(0.0, 0.1, len(DEFAULT_MENU))
        costs = {
            fmt.name: float(scale * 4.0**-fmt.bits * fmt.group_size**0.3 * factor)
            for fmt, factor in zip(DEFAULT_MENU, noise, strict=True)
        }
        layers.append(make_layer(costs, path=f"layers.{i}", shape=shape))
    return make_inventory(layers)


def relaxation_bound(inventory: ModelInventory, budget_bits: int) -> float:
    """Best Lagrangian bound: every price of a bit gives a valid one, and the dual is concave."""
    bits = np.array([[la.stored_bits(f) for f in la.formats] for la in inventory.layers])
    costs = np.array([layer.costs_nats for layer in inventory.layers])

    def dual(log_price: float) -> float:
        price = math.exp(log_price)
        return float((costs + price * bits).min(axis=1).sum() - price * budget_bits)

    low, high = -60.0, 20.0
    for _ in range(150):
        left, right = low + (high - low) / 3, high - (high - low) / 3
        low, high = (left, high) if dual(left) < dual(right) else (low, right)
    return dual(low)


# --- the best plan ---


@settings(max_examples=400)
@given(inventory=inventories(REAL_COSTS), fraction=st.floats(0, 1))
def test_a_plan_costs_as_little_as_brute_force_finds(
    inventory: ModelInventory, fraction: float
) -> None:
    target = spread_target(inventory, fraction)

    plan = allocate(inventory, target_bpw=target)

    least_cost, _ = brute_force(inventory, target)
    assert plan.predicted_kl_nats == pytest.approx(least_cost, rel=1e-12, abs=0)
    assert plan.lower_bound_nats == plan.predicted_kl_nats


@settings(max_examples=200)
@given(inventory=inventories(WHOLE_COSTS, num_parameters=LARGE), fraction=st.floats(0, 1))
def test_among_plans_of_equal_cost_the_one_with_the_fewest_bits_is_chosen(
    inventory: ModelInventory, fraction: float
) -> None:
    target = spread_target(inventory, fraction)

    plan = allocate(inventory, target_bpw=target)

    assert (summed_cost(inventory, plan), layer_bits(inventory, plan)) == brute_force(
        inventory, target
    )


@settings(max_examples=200)
@given(inventory=inventories(REAL_COSTS), fraction=st.floats(0, 1))
def test_a_plan_names_an_allowed_format_per_layer_and_its_own_exact_size_and_cost(
    inventory: ModelInventory, fraction: float
) -> None:
    target = spread_target(inventory, fraction)

    plan = allocate(inventory, target_bpw=target)

    assert list(plan.formats) == [layer.path for layer in inventory.layers]
    assert all(plan.formats[layer.path] in layer.formats for layer in inventory.layers)
    assert plan.stored_bpw == inventory.bpw(layer_bits(inventory, plan))
    assert plan.stored_bpw <= target == plan.target_bpw
    assert plan.predicted_kl_nats == summed_cost(inventory, plan)


@settings(max_examples=100)
@given(inventory=inventories(REAL_COSTS), fraction=st.floats(0, 1))
def test_the_same_request_gives_the_same_plan(inventory: ModelInventory, fraction: float) -> None:
    target = spread_target(inventory, fraction)

    assert allocate(inventory, target_bpw=target) == allocate(inventory, target_bpw=target)


@settings(max_examples=100)
@given(inventory=inventories(REAL_COSTS), fractions=st.tuples(st.floats(0, 1), st.floats(0, 1)))
def test_a_higher_target_never_costs_more(
    inventory: ModelInventory, fractions: tuple[float, float]
) -> None:
    low, high = sorted(spread_target(inventory, fraction) for fraction in fractions)

    smaller = allocate(inventory, target_bpw=low).predicted_kl_nats
    larger = allocate(inventory, target_bpw=high).predicted_kl_nats

    assert larger <= smaller * (1 + 1e-12)


@pytest.mark.parametrize("target_bpw", [2.5, 3.2, 4.0, 4.5, 5.7, 8.0])
@pytest.mark.parametrize("num_blocks", [3, 8])
def test_a_model_with_a_heavy_embedding_gets_the_plan_of_the_exact_table(
    num_blocks: int, target_bpw: float
) -> None:
    inventory = model_like_inventory(num_blocks, seed=num_blocks)

    plan = allocate(inventory, target_bpw=target_bpw)

    exact = exact_by_table(inventory, inventory.budget_bits(target_bpw))
    assert plan.predicted_kl_nats == pytest.approx(exact, rel=1e-12)
    assert plan.lower_bound_nats == plan.predicted_kl_nats
    assert 0 <= target_bpw - plan.stored_bpw < 0.01


@pytest.mark.parametrize("target_bpw", [2.5, 4.5, 8.0])
def test_a_plan_for_two_thousand_layers_is_close_to_the_relaxation(target_bpw: float) -> None:
    inventory = model_like_inventory(286, seed=1)

    plan = allocate(inventory, target_bpw=target_bpw)

    bound = relaxation_bound(inventory, inventory.budget_bits(target_bpw))
    assert bound * (1 - 1e-9) <= plan.lower_bound_nats <= plan.predicted_kl_nats
    assert plan.predicted_kl_nats < bound * 1.001
    assert 0 <= target_bpw - plan.stored_bpw < 0.01


def test_an_instance_too_hard_to_prove_still_gets_a_close_plan_and_an_honest_bound() -> None:
    # Cost falls in proportion to bits: every reduced cost is nil and any plan could be the best.
    rng = np.random.default_rng(0)
    layers = []
    for i, (out, groups) in enumerate(rng.integers(100, 4000, size=(400, 2))):
        layer = make_layer(path=f"layers.{i}", shape=(int(out) * 2 + 1, int(groups) * 128))
        costs = tuple((2e10 - layer.stored_bits(fmt)) * 1e-9 for fmt in DEFAULT_MENU)
        layers.append(replace(layer, formats=DEFAULT_MENU, costs_nats=costs))
    inventory = make_inventory(layers)

    plan = allocate(inventory, target_bpw=4.3)

    bound = relaxation_bound(inventory, inventory.budget_bits(4.3))
    assert plan.lower_bound_nats == pytest.approx(bound, rel=1e-9)
    assert plan.lower_bound_nats < plan.predicted_kl_nats < bound * (1 + 1e-6)
    assert plan.stored_bpw <= 4.3


def test_a_better_format_off_the_hull_is_found_when_it_fits() -> None:
    # 4g64 lies above the line from 2g64 to 8g64, so the relaxation never stops there.
    layers = make_layers({"2g64": 10.0, "4g64": 9.0, "8g64": 0.0})

    plan = allocate(make_inventory(layers), target_bpw=5.0)

    assert names(plan) == ["4g64"]


def test_a_larger_format_that_costs_more_is_not_taken() -> None:
    layers = make_layers({"2g64": 3.0, "4g64": 1.0, "8g64": 2.0})

    plan = allocate(make_inventory(layers), target_bpw=8.5)

    assert names(plan) == ["4g64"]


def test_the_layer_that_gains_most_per_bit_is_upgraded() -> None:
    layers = make_layers({"4g64": 1.0, "8g64": 0.5}, {"4g64": 2.0, "8g64": 0.5})

    plan = allocate(make_inventory(layers), target_bpw=6.5)

    assert names(plan) == ["4g64", "8g64"]


def test_of_two_formats_of_equal_size_and_cost_the_first_in_the_menu_is_taken() -> None:
    def pick(first: str, second: str) -> list[str]:
        layers = make_layers({first: 1.0, second: 1.0})
        return names(allocate(make_inventory(layers), target_bpw=4.5))

    assert pick("4g64", "nvfp4") == ["4g64"]
    assert pick("nvfp4", "4g64") == ["nvfp4"]


def test_of_two_equal_layers_the_same_one_is_always_upgraded() -> None:
    layers = make_layers(*[{"4g64": 1.0, "8g64": 0.5}] * 4)
    inventory = make_inventory(layers)

    plans = {tuple(names(allocate(inventory, target_bpw=6.5))) for _ in range(3)}

    assert len(plans) == 1
    assert sorted(*plans) == ["4g64", "4g64", "8g64", "8g64"]


def test_unused_bits_go_to_larger_formats_of_the_same_cost() -> None:
    layers = make_layers(*[{"2g64": 0.0, "4g64": 0.0, "8g64": 0.0}] * 3)

    plan = allocate(make_inventory(layers), target_bpw=6.5)

    assert names(plan) == ["8g64", "8g64", "2g64"]
    assert plan.predicted_kl_nats == 0.0


def test_a_gap_is_never_filled_at_a_higher_cost() -> None:
    layers = make_layers(*[{"2g64": 0.0, "4g64": 1e-9}] * 3)

    plan = allocate(make_inventory(layers), target_bpw=4.0)

    assert names(plan) == ["2g64"] * 3


def test_equal_cost_upgrades_stop_once_the_gap_is_small() -> None:
    layers = make_layers(*[{"2g64": 0.0, "4g64": 0.0}] * 2)
    inventory = make_inventory(layers, num_parameters=LARGE)

    plan = allocate(inventory, target_bpw=inventory.max_bpw)

    assert names(plan) == ["2g64", "2g64"]


def test_arrays_that_are_never_quantized_count_towards_the_target() -> None:
    layer = make_layer(FALLING)
    fixed_bits = 16 * layer.num_weights
    inventory = make_inventory([layer], num_parameters=2 * layer.num_weights, fixed_bits=fixed_bits)

    plan = allocate(inventory, target_bpw=10.25)

    assert names(plan) == ["4g64"]
    assert plan.stored_bpw == (16 + 4.5) / 2


def test_the_calibration_of_kl_changes_predictions_and_no_plan() -> None:
    alone = make_inventory(make_layers({"3g64": 4.0, "8g64": 1.0}, {"3g64": 3.0, "8g64": 1.0}))
    whole = replace(alone, together=KlCalibration(((1.0, 0.5), (10.0, 8.0))))
    plain = allocate(alone, target_bpw=6.1)
    plan = allocate(whole, target_bpw=6.1)
    assert plan.formats == plain.formats
    assert plan.predicted_kl_nats == whole.together.predicted_nats(plain.predicted_kl_nats)
    assert plan.lower_bound_nats == whole.together.predicted_nats(plain.lower_bound_nats)
    assert plan.lower_bound_nats <= plan.predicted_kl_nats < plain.predicted_kl_nats


def test_a_model_without_quantizable_layers_has_one_target() -> None:
    inventory = make_inventory([], num_parameters=100, fixed_bits=1600)

    plan = allocate(inventory, target_bpw=16.0)

    assert (plan.formats, plan.stored_bpw, plan.predicted_kl_nats) == ({}, 16.0, 0.0)


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_a_cost_that_is_not_finite_is_an_error_that_names_the_layer(bad: float) -> None:
    layers = make_layers(FALLING, FALLING | {"4g64": bad})

    with pytest.raises(NonFiniteError, match=r"layers\.1") as refusal:
        allocate(make_inventory(layers), target_bpw=4.5)

    assert refusal.value.layer == "layers.1"


def test_an_inventory_that_was_not_measured_cannot_be_allocated() -> None:
    with pytest.raises(ValueError, match="zip"):
        allocate(make_inventory(), target_bpw=4.5)


# --- the feasible range ---


@settings(max_examples=300)
@given(inventory=inventories(WHOLE_COSTS), num_parameters=st.integers(1000, 10**12))
def test_both_ends_of_the_range_and_the_numbers_of_the_message_are_feasible(
    inventory: ModelInventory, num_parameters: int
) -> None:
    inventory = replace(inventory, num_parameters=num_parameters)

    with pytest.raises(InfeasibleTargetError) as refusal:
        check_target(inventory, inventory.max_bpw * 1.5)

    assert refusal.value.min_bpw == inventory.min_bpw
    assert refusal.value.max_bpw == inventory.max_bpw
    printed = re.search(r"formats, (\S+) to (\S+) BPW", str(refusal.value))
    assert printed
    for target in (inventory.min_bpw, inventory.max_bpw, *map(float, printed.groups())):
        assert allocate(inventory, target_bpw=target).stored_bpw <= target


def test_the_range_is_printed_to_three_decimals_rounded_inwards() -> None:
    inventory = make_inventory([make_layer(shape=(64, 64))], num_parameters=4096, fixed_bits=1)

    with pytest.raises(InfeasibleTargetError, match=r"formats, 2\.501 to 8\.500 BPW\.$"):
        check_target(inventory, 2.5)


def test_a_range_too_narrow_for_three_decimals_is_printed_in_full() -> None:
    inventory = make_inventory([make_layer(formats="4g64")], num_parameters=4096, fixed_bits=1)

    with pytest.raises(InfeasibleTargetError, match=f"{inventory.min_bpw} to {inventory.max_bpw}"):
        check_target(inventory, 4.0)


@pytest.mark.parametrize(("target", "side"), [(2.4, "below"), (8.6, "above"), (1e300, "above")])
def test_a_target_outside_of_the_range_is_refused(target: float, side: str) -> None:
    inventory = make_inventory([make_layer(FALLING)])

    with pytest.raises(InfeasibleTargetError, match=f"{side} the feasible range") as refusal:
        allocate(inventory, target_bpw=target)

    assert (refusal.value.min_bpw, refusal.value.max_bpw) == (2.5, 8.5)


@pytest.mark.parametrize("target", [math.nan, math.inf, -math.inf, -4.5, 0.0])
def test_a_target_that_is_no_positive_number_is_refused(target: float) -> None:
    with pytest.raises(InvalidOptionError, match="positive number"):
        allocate(make_inventory([make_layer(FALLING)]), target_bpw=target)


def test_a_target_is_checked_without_costs() -> None:
    check_target(make_inventory([make_layer(formats="2g64,8g64")]), 4.5)


# --- the threshold of mlx_lm.dynamic_quant ---


def layers_of(
    *sensitivities: float, **overrides: object
) -> tuple[ModelInventory, dict[str, float]]:
    layers = [
        make_layer(path=f"layers.{i}", **overrides)  # type: ignore[arg-type]
        for i in range(len(sensitivities))
    ]
    return make_inventory(layers), {f"layers.{i}": s for i, s in enumerate(sensitivities)}


def high_layers(plan: QuantPlan) -> set[int]:
    return {i for i, fmt in enumerate(plan.formats.values()) if fmt == HIGH}


def by_threshold(
    inventory: ModelInventory,
    sensitivities: dict[str, float],
    target: float,
    tolerance: float = 0.0,
) -> QuantPlan:
    return allocate_by_threshold(
        inventory, sensitivities, low=LOW, high=HIGH, target_bpw=target, tolerance=tolerance
    )


def test_the_most_sensitive_layers_that_fit_are_promoted() -> None:
    inventory, sensitivities = layers_of(0.1, 3.0, -1.0, 2.0)

    plan = by_threshold(inventory, sensitivities, 6.6)

    assert high_layers(plan) == {1, 3}
    assert plan.stored_bpw == 6.5
    assert plan.target_bpw == 6.6


@settings(max_examples=200)
@given(
    scores=st.lists(st.integers(-3, 3).map(float), min_size=1, max_size=7),
    fraction=st.floats(0, 1),
)
def test_the_threshold_is_the_lowest_of_all_that_stay_within_the_target(
    scores: list[float], fraction: float
) -> None:
    inventory, sensitivities = layers_of(*scores)
    target = 4.5 + fraction * 4.0

    def promoted(threshold: float) -> set[int]:
        return {i for i, score in enumerate(scores) if score > threshold}

    feasible = [
        promoted(threshold)
        for threshold in (-math.inf, *scores)
        if 4.5 + 4.0 * len(promoted(threshold)) / len(scores) <= target
    ]
    plan = by_threshold(inventory, sensitivities, target)

    assert high_layers(plan) == max(feasible, key=len)
    assert plan.stored_bpw <= target


def test_layers_of_equal_sensitivity_are_promoted_together_or_not_at_all() -> None:
    inventory, sensitivities = layers_of(2.0, 1.0, 1.0, 1.0)

    assert high_layers(by_threshold(inventory, sensitivities, 8.4)) == {0}
    assert high_layers(by_threshold(inventory, sensitivities, 8.5)) == {0, 1, 2, 3}


def test_layers_within_the_tolerance_of_the_threshold_stay_low() -> None:
    inventory, sensitivities = layers_of(10.0, 5.2, 5.0, 0.0)

    assert high_layers(by_threshold(inventory, sensitivities, 6.5)) == {0, 1}
    assert high_layers(by_threshold(inventory, sensitivities, 6.5, tolerance=0.01)) == {0, 1}
    assert high_layers(by_threshold(inventory, sensitivities, 6.5, tolerance=0.02)) == {0}


def test_the_tolerance_does_not_matter_when_every_layer_fits() -> None:
    inventory, sensitivities = layers_of(3.0, 2.0, 1.0)

    assert high_layers(by_threshold(inventory, sensitivities, 8.5, tolerance=1.0)) == {0, 1, 2}


def test_no_layer_is_promoted_at_the_low_end_of_the_range() -> None:
    inventory, sensitivities = layers_of(3.0, 2.0, 1.0)

    assert high_layers(by_threshold(inventory, sensitivities, 4.5)) == set()


@pytest.mark.parametrize(
    ("formats", "low", "high"),
    [
        ("2g32,4g32,8g32", "4g32", "8g32"),
        ("2g64,3g64", "3g64", "3g64"),
        ("8g64,unquantized", "8g64", "8g64"),
        ("6g64,unquantized", "6g64", "unquantized"),
        ("nvfp4,4g64,8g64", "4g64", "8g64"),
    ],
)
def test_a_layer_that_cannot_take_a_format_takes_the_nearest_larger_else_its_largest(
    formats: str, low: str, high: str
) -> None:
    inventory, sensitivities = layers_of(1.0, formats=formats)

    lows = by_threshold(inventory, sensitivities, inventory.bpw(_bits(inventory, low)))
    highs = by_threshold(inventory, sensitivities, inventory.bpw(_bits(inventory, high)))

    assert names(highs) == [high]
    if low != high:
        assert names(lows) == [low]


def _bits(inventory: ModelInventory, name: str) -> int:
    return inventory.layers[0].stored_bits(QuantFormat.from_name(name))


@pytest.mark.parametrize(("target", "side"), [(4.4, "below"), (8.6, "above")])
def test_a_target_outside_of_low_to_high_is_refused(target: float, side: str) -> None:
    inventory, sensitivities = layers_of(1.0, 2.0)

    with pytest.raises(InfeasibleTargetError, match=side) as refusal:
        by_threshold(inventory, sensitivities, target)

    assert (refusal.value.min_bpw, refusal.value.max_bpw) == (4.5, 8.5)


def test_a_threshold_plan_without_costs_has_no_figures() -> None:
    inventory, sensitivities = layers_of(1.0, 2.0)

    plan = by_threshold(inventory, sensitivities, 6.5)

    assert math.isnan(plan.predicted_kl_nats)
    assert math.isnan(plan.lower_bound_nats)


def test_a_threshold_plan_with_costs_has_the_lower_bound_of_all_plans() -> None:
    layers = make_layers({"4g64": 1.0, "8g64": 0.5}, {"4g64": 2.0, "8g64": 0.5})
    inventory = make_inventory(layers)

    plan = by_threshold(inventory, {"layers.0": 9.0, "layers.1": 1.0}, 6.5)

    assert plan.predicted_kl_nats == 2.5
    assert plan.lower_bound_nats == 1.5


@pytest.mark.parametrize("tolerance", [-0.1, 1.1, math.nan, math.inf])
def test_a_tolerance_that_is_no_fraction_is_refused(tolerance: float) -> None:
    inventory, sensitivities = layers_of(1.0)

    with pytest.raises(InvalidOptionError, match="tolerance"):
        by_threshold(inventory, sensitivities, 4.5, tolerance)


def test_a_high_format_smaller_than_the_low_one_is_refused() -> None:
    inventory, sensitivities = layers_of(1.0)

    with pytest.raises(InvalidOptionError, match="4g64, is smaller than 8g64"):
        allocate_by_threshold(inventory, sensitivities, low=HIGH, high=LOW, target_bpw=4.5)


@pytest.mark.parametrize("sensitivities", [{}, {"layers.0": math.nan}, {"layers.0": math.inf}])
def test_a_layer_without_a_finite_sensitivity_is_named(sensitivities: dict[str, float]) -> None:
    inventory, _ = layers_of(1.0)

    with pytest.raises(SensitivitiesError, match=r"layers\.0"):
        by_threshold(inventory, sensitivities, 4.5)
