"""Choose one format per layer: the least summed cost whose stored bits fit the budget.

`knapsack` solves the problem. `allocate_by_threshold` is the method of `mlx_lm.quant.dynamic_quant`
instead: two formats, and a threshold on sensitivities.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from decimal import ROUND_CEILING, ROUND_FLOOR, Decimal

from dynquant.errors import (
    InfeasibleTargetError,
    InvalidOptionError,
    NonFiniteError,
    SensitivitiesError,
)
from dynquant.quant.formats import QuantFormat
from dynquant.quant.knapsack import Menus, Option, Plan, Relaxation, solve, total, undominated
from dynquant.quant.plan import LayerProfile, ModelInventory, QuantPlan

__all__ = ["allocate", "allocate_by_threshold", "check_target"]

# A plan that leaves more than this unused takes formats that are larger and cost no more.
_MAX_GAP_BPW = 0.01


def check_target(inventory: ModelInventory, target_bpw: float) -> None:
    """Refuse a target that no choice of formats can meet; needs no costs.

    Raises:
        InvalidOptionError: The target is not a positive number.
        InfeasibleTargetError: It lies outside of the range that the formats span.
    """
    _check_range(target_bpw, inventory.min_bpw, inventory.max_bpw, inventory.why_unquantized)


def allocate(inventory: ModelInventory, *, target_bpw: float) -> QuantPlan:
    """Choose one format per layer: the least summed cost that stays within `target_bpw`.

    Exact unless the search meets its limit on states, a count and never a clock; where the plan
    is proven to be the best, `lower_bound_nats` equals its cost. Ties go to fewer bits, then to
    the order of the menu. Only when more than 0.01 BPW would stay unused are larger formats of
    the same cost taken.

    Args:
        inventory: The model, with `costs_nats` of every layer filled in.
        target_bpw: Upper bound on the stored bits per weight of the whole model.

    Raises:
        InvalidOptionError, InfeasibleTargetError: As `check_target` does.
        NonFiniteError: A cost is NaN or infinite.
    """
    check_target(inventory, target_bpw)
    budget = inventory.budget_bits(target_bpw)
    menus = [_options(layer) for layer in inventory.layers]
    plan, lower_bound = solve([undominated(menu) for menu in menus], budget)
    plan = _fill(plan, menus, budget, _MAX_GAP_BPW * inventory.num_parameters)
    chosen = [layer.formats[o.place] for layer, o in zip(inventory.layers, plan, strict=True)]
    return _quant_plan(inventory, chosen, target_bpw, total(plan)[0], lower_bound)


def allocate_by_threshold(
    inventory: ModelInventory,
    sensitivities: Mapping[str, float],
    *,
    low: QuantFormat,
    high: QuantFormat,
    target_bpw: float,
    tolerance: float = 0.0,
) -> QuantPlan:
    """Give `high` to the layers whose sensitivity exceeds a threshold, `low` to the others.

    The threshold is the lowest that keeps the plan within `target_bpw`; adding up stored bits
    finds it, where the original quantizes the model again for every guess. A layer that cannot
    take `low` or `high` takes the next larger format that it can, else its largest.

    Args:
        inventory: The model; without costs those of the plan are NaN.
        sensitivities: Path of every layer to its score, which may be negative.
        low: Format of the layers at or below the threshold.
        high: Format of the layers above it; stores no fewer bits than `low`.
        target_bpw: Upper bound on the stored bits per weight of the whole model.
        tolerance: Fraction, 0 to 1, of the range of sensitivities. Layers this close to the
            first one that does not fit are tied with it and stay `low`.

    Raises:
        InvalidOptionError: `target_bpw`, `tolerance` or the order of the formats makes no sense.
        InfeasibleTargetError: The target lies outside of what `low` and `high` span.
        SensitivitiesError: A layer's sensitivity is missing or not finite.

    Source: `estimate_threshold` of `mlx_lm.quant.dynamic_quant`, mlx-lm 0.32.2.
    """
    layers = inventory.layers
    if not 0.0 <= tolerance <= 1.0:
        raise InvalidOptionError(f"The tolerance must lie between 0 and 1, not {tolerance}.")
    if any(layer.stored_bits(high) < layer.stored_bits(low) for layer in layers):
        raise InvalidOptionError(f"The high format, {high.name}, is smaller than {low.name}.")
    scores = [_finite_score(sensitivities, layer.path) for layer in layers]
    lows, highs = ([_nearest(layer, fmt) for layer in layers] for fmt in (low, high))
    low_bits, high_bits = (
        [layer.stored_bits(fmt) for layer, fmt in zip(layers, formats, strict=True)]
        for formats in (lows, highs)
    )
    least, most = inventory.bpw(sum(low_bits)), inventory.bpw(sum(high_bits))
    _check_range(target_bpw, least, most, inventory.why_unquantized)

    budget = inventory.budget_bits(target_bpw)
    margin = tolerance * (max(scores, default=0.0) - min(scores, default=0.0))
    threshold = _first_too_many(scores, low_bits, high_bits, budget) + margin
    chosen = [highs[i] if score > threshold else lows[i] for i, score in enumerate(scores)]
    cost = lower_bound = math.nan
    if all(layer.costs_nats for layer in layers):
        cost = math.fsum(map(LayerProfile.cost_nats, layers, chosen))
        relaxation = Relaxation([undominated(_options(layer)) for layer in layers])
        lower_bound = relaxation.least_cost(budget)
    return _quant_plan(inventory, chosen, target_bpw, cost, lower_bound)


def _options(layer: LayerProfile) -> list[Option]:
    if not all(map(math.isfinite, layer.costs_nats)):
        raise NonFiniteError(
            f"The cost table has a cost of {layer.path} that is not finite.", layer=layer.path
        )
    return [
        Option(place, layer.stored_bits(fmt), cost)
        for place, (fmt, cost) in enumerate(zip(layer.formats, layer.costs_nats, strict=True))
    ]


def _fill(plan: Plan, menus: Menus, budget: int, max_gap: float) -> Plan:
    """Take larger formats that cost no more while more than `max_gap` bits stay unused."""
    filled = list(plan)
    room = budget - total(plan)[1]
    for layer, menu in enumerate(menus):
        if room <= max_gap:
            break
        at = filled[layer]
        fitting = [o for o in menu if o.cost <= at.cost and o.bits - at.bits <= room]
        filled[layer] = min(fitting, key=lambda o: (o.cost, -o.bits, o.place))
        room -= filled[layer].bits - at.bits
    return filled


def _finite_score(sensitivities: Mapping[str, float], path: str) -> float:
    if not math.isfinite(score := sensitivities.get(path, math.nan)):
        raise SensitivitiesError(f"There is no finite sensitivity of the layer {path}.")
    return score


def _first_too_many(
    scores: Sequence[float], low_bits: Sequence[int], high_bits: Sequence[int], budget: int
) -> float:
    """Score of the first layer, from the highest score down, that exceeds `budget`; else -inf."""
    bits = sum(low_bits)
    for i in sorted(range(len(scores)), key=lambda i: -scores[i]):
        bits += high_bits[i] - low_bits[i]
        if bits > budget:
            return scores[i]
    return -math.inf


def _nearest(layer: LayerProfile, asked: QuantFormat) -> QuantFormat:
    """`asked` if the layer may take it, else its next larger format, else its largest."""
    if asked in layer.formats:
        return asked
    by_size = sorted(layer.formats, key=layer.stored_bits)
    asked_bits = layer.stored_bits(asked)
    return next((fmt for fmt in by_size if layer.stored_bits(fmt) >= asked_bits), by_size[-1])


def _check_range(target_bpw: float, min_bpw: float, max_bpw: float, why: str) -> None:
    if not (math.isfinite(target_bpw) and target_bpw > 0):
        raise InvalidOptionError(f"The target BPW must be a positive number, not {target_bpw}.")
    if min_bpw <= target_bpw <= max_bpw:
        return
    side = "below" if target_bpw < min_bpw else "above"
    # Rounded from the shortest decimals that read back as these floats, so that both ends work.
    exact = least, most = Decimal(repr(min_bpw)), Decimal(repr(max_bpw))
    step = Decimal("0.001")
    shown = least.quantize(step, ROUND_CEILING), most.quantize(step, ROUND_FLOOR)
    low, high = shown if shown[0] <= shown[1] else exact
    message = (
        f"A target of {target_bpw} BPW is {side} the feasible range of this model and these "
        f"formats, {low} to {high} BPW.{why if target_bpw < min_bpw else ''}"
    )
    raise InfeasibleTargetError(message, min_bpw=min_bpw, max_bpw=max_bpw)


def _quant_plan(
    inventory: ModelInventory,
    chosen: Sequence[QuantFormat],
    target_bpw: float,
    cost_nats: float,
    lower_bound_nats: float,
) -> QuantPlan:
    layers = list(zip(inventory.layers, chosen, strict=True))
    return QuantPlan(
        formats={layer.path: fmt for layer, fmt in layers},
        target_bpw=target_bpw,
        stored_bpw=inventory.bpw(sum(layer.stored_bits(fmt) for layer, fmt in layers)),
        predicted_kl_nats=inventory.together.predicted_nats(cost_nats),
        lower_bound_nats=inventory.together.predicted_nats(min(cost_nats, lower_bound_nats)),
    )
