"""Choose one format per layer: the least summed cost whose stored bits fit the budget.

This is the multiple-choice knapsack problem. Its linear relaxation is solved by walking the
convex hulls of the layers from the steepest saving to the flattest. The price of a bit at the
budget rules out, by reduced costs, every option that no better plan can use; a search over Pareto
states, each bounded by the relaxation of the layers still to come, settles the few that remain.

Sources: Sinha & Zoltners, "The multiple-choice knapsack problem", Operations Research 27(3),
1979 (relaxation and dominance); Pisinger, "A minimal algorithm for the multiple-choice knapsack
problem", European Journal of Operational Research 83(2), 1995 (core and states).
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from decimal import ROUND_CEILING, ROUND_FLOOR, Decimal
from itertools import pairwise
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from dynquant.errors import (
    InfeasibleTargetError,
    InvalidOptionError,
    NonFiniteError,
    SensitivitiesError,
)
from dynquant.quant.formats import QuantFormat
from dynquant.quant.plan import LayerProfile, ModelInventory, QuantPlan

__all__ = ["allocate", "allocate_by_threshold", "check_target"]

# States that the quick search and the thorough one expand; under a second for both at worst.
_WORK_LIMITS = (100_000, 2_000_000)
# Rounding of a few thousand sums, as a fraction of the largest total cost.
_ROUNDING = 1e-13
# A plan that leaves more than this unused takes formats that are larger and cost no more.
_MAX_GAP_BPW = 0.01

_Floats = npt.NDArray[np.float64]


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
    plan, lower_bound = _solve([_undominated(menu) for menu in menus], budget)
    plan = _fill(plan, menus, budget, _MAX_GAP_BPW * inventory.num_parameters)
    chosen = [layer.formats[o.place] for layer, o in zip(inventory.layers, plan, strict=True)]
    return _quant_plan(inventory, chosen, target_bpw, _total(plan)[0], lower_bound)


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
    scores = [sensitivities.get(layer.path, math.nan) for layer in layers]
    for layer, score in zip(layers, scores, strict=True):
        if not math.isfinite(score):
            raise SensitivitiesError(f"There is no finite sensitivity of the layer {layer.path}.")
    lows = [_nearest(layer, low) for layer in layers]
    highs = [_nearest(layer, high) for layer in layers]
    low_bits = sum(map(LayerProfile.stored_bits, layers, lows))
    high_bits = sum(map(LayerProfile.stored_bits, layers, highs))
    _check_range(
        target_bpw, inventory.bpw(low_bits), inventory.bpw(high_bits), inventory.why_unquantized
    )

    budget = inventory.budget_bits(target_bpw)
    margin = tolerance * (max(scores, default=0.0) - min(scores, default=0.0))
    threshold, bits = -math.inf, low_bits
    for i in sorted(range(len(layers)), key=lambda i: -scores[i]):
        bits += layers[i].stored_bits(highs[i]) - layers[i].stored_bits(lows[i])
        if bits > budget:
            threshold = scores[i] + margin
            break
    chosen = [highs[i] if score > threshold else lows[i] for i, score in enumerate(scores)]
    cost = lower_bound = math.nan
    if all(layer.costs_nats for layer in layers):
        cost = math.fsum(map(LayerProfile.cost_nats, layers, chosen))
        relaxation = _Relaxation([_undominated(_options(layer)) for layer in layers])
        lower_bound = float(np.interp(budget, *relaxation.curve()))
    return _quant_plan(inventory, chosen, target_bpw, cost, lower_bound)


class _Option(NamedTuple):
    """One format of one layer: its place in the layer's menu, its size and its cost."""

    place: int
    bits: int
    cost: float


class _Step(NamedTuple):
    """One layer's way from an option to the next larger one on its hull."""

    saving_per_bit: float
    layer: int
    smaller: _Option
    larger: _Option


_Plan = list[_Option]
_Menus = Sequence[Sequence[_Option]]


def _options(layer: LayerProfile) -> list[_Option]:
    if not all(map(math.isfinite, layer.costs_nats)):
        raise NonFiniteError(
            f"The cost table has a cost of {layer.path} that is not finite.", layer=layer.path
        )
    return [
        _Option(place, layer.stored_bits(fmt), cost)
        for place, (fmt, cost) in enumerate(zip(layer.formats, layer.costs_nats, strict=True))
    ]


def _undominated(options: Sequence[_Option]) -> list[_Option]:
    """Options from few bits to many, without those that a smaller one matches in cost."""
    kept: list[_Option] = []
    for option in sorted(options, key=lambda option: (option.bits, option.cost, option.place)):
        if not kept or option.cost < kept[-1].cost:
            kept.append(option)
    return kept


def _saving_per_bit(smaller: _Option, larger: _Option) -> float:
    return (smaller.cost - larger.cost) / (larger.bits - smaller.bits)


def _hull(options: Iterable[_Option]) -> list[_Option]:
    """The options on the lower convex hull: each step up saves less per bit than the last."""
    hull: list[_Option] = []
    for option in options:
        while len(hull) > 1 and (
            _saving_per_bit(hull[-1], option) >= _saving_per_bit(hull[-2], hull[-1])
        ):
            hull.pop()
        hull.append(option)
    return hull


def _total(plan: Iterable[_Option]) -> tuple[float, int]:
    """Cost and bits of a plan, in the order in which plans are compared."""
    options = list(plan)
    return math.fsum(option.cost for option in options), sum(option.bits for option in options)


class _Relaxation:
    """The steps along the hulls of `layers`, those that save most per bit first.

    Taking the first k of them gives a plan of whole formats: a corner of the convex, piecewise
    linear curve of least cost by budget that bounds every plan from below.
    """

    def __init__(self, layers: _Menus) -> None:
        hulls = [_hull(options) for options in layers]
        self.smallest = [hull[0] for hull in hulls]
        self.steps = [
            _Step(_saving_per_bit(smaller, larger), layer, smaller, larger)
            for layer, hull in enumerate(hulls)
            for smaller, larger in pairwise(hull)
        ]
        self.steps.sort(key=lambda step: -step.saving_per_bit)
        self._layers = np.array([step.layer for step in self.steps], np.int64)
        self._bits = np.array([s.larger.bits - s.smaller.bits for s in self.steps], np.float64)
        self._savings = np.array([s.smaller.cost - s.larger.cost for s in self.steps], np.float64)
        self._min_bits = np.cumsum([0, *(h[0].bits for h in hulls[::-1])])[::-1]
        self._min_costs = np.cumsum([0, *(h[-1].cost for h in hulls[::-1])])[::-1]

    def curve(self, start: int = 0) -> tuple[_Floats, _Floats]:
        """Bits and cost at each corner, for the layers from `start` on."""
        later = self._layers >= start
        bits = np.concatenate(([self._min_bits[start]], self._bits[later]))
        # Summed from the flat end, where the numbers are small, to lose no digits.
        costs = np.concatenate(([self._min_costs[start]], self._savings[later][::-1]))
        return np.cumsum(bits), np.cumsum(costs)[::-1]

    def corner_plan(self, corner: int, start: int = 0) -> _Plan:
        """The options of the layers from `start` on at a corner of `curve(start)`."""
        plan = self.smallest[start:]
        for step in [step for step in self.steps if step.layer >= start][:corner]:
            plan[step.layer - start] = step.larger
        return plan


def _solve(layers: _Menus, budget: int) -> tuple[_Plan, float]:
    """The cheapest plan found, and a bound that no plan within the budget undercuts."""
    relaxation = _Relaxation(layers)
    bits, costs = relaxation.curve()
    relaxed = float(np.interp(budget, bits, costs))
    corner = int(np.searchsorted(bits, budget, side="right")) - 1
    price = relaxation.steps[corner].saving_per_bit if corner < len(relaxation.steps) else 0.0
    slack = _ROUNDING * math.fsum(max(abs(o.cost) for o in options) for options in layers)

    plan, proven = relaxation.corner_plan(corner), relaxed
    for work_limit in _WORK_LIMITS:
        allowance = _total(plan)[0] - relaxed + slack
        kept = [_affordable(options, price, allowance) for options in layers]
        # Large layers first: what the small ones can still even out is left to the end.
        core = sorted(
            (i for i, options in enumerate(kept) if len(options) > 1),
            key=lambda i: kept[i][0].bits - kept[i][-1].bits,
        )
        cost, size = _total(options[0] for options in kept if len(options) == 1)
        settled = [_Option(0, size, cost)]
        picks, proven = _search(
            [settled, *(kept[i] for i in core)], _total(plan), budget, slack, work_limit
        )
        if picks is not None:
            found = [options[0] for options in kept]
            for i, option in zip(core, picks[1:], strict=True):
                found[i] = option
            plan = min(plan, found, key=_total)
        if proven >= _total(plan)[0]:
            break
    return plan, max(relaxed, proven)


def _affordable(options: Sequence[_Option], price: float, allowance: float) -> list[_Option]:
    """Options whose reduced cost a plan better than the best known one could still bear."""
    base = min(options, key=lambda o: o.cost + price * o.bits)
    return [o for o in options if o.cost - base.cost + price * (o.bits - base.bits) <= allowance]


def _search(
    layers: _Menus, best: tuple[float, int], budget: int, slack: float, work_limit: int
) -> tuple[_Plan | None, float]:
    """Go through `layers`, keeping the Pareto states that may still beat `best`, a total.

    Bounds are trusted to within `slack`; `work_limit` is the most states to expand.

    Returns:
        The options of a better plan if there is one, and the least bound of the states that
        were dropped to keep to the limit; infinity if none was.
    """
    width = work_limit // sum(map(len, layers))
    relaxation = _Relaxation(layers)
    better: tuple[int, int, int] | None = None
    history: list[npt.NDArray[np.intp]] = []
    least_dropped = math.inf
    costs, bits = np.zeros(1), np.zeros(1, np.int64)
    for position, options in enumerate(layers):
        costs = np.add.outer(costs, [option.cost for option in options]).ravel()
        bits = np.add.outer(bits, [option.bits for option in options]).ravel()
        corner_bits, corner_costs = relaxation.curve(position + 1)
        bounds = costs + np.interp(budget - bits, corner_bits, corner_costs, left=np.inf)

        kept = np.flatnonzero(bounds <= best[0] + slack)
        kept = kept[np.lexsort((costs[kept], bits[kept]))]
        cheapest_smaller = np.minimum.accumulate(np.append(np.inf, costs[kept]))[:-1]
        kept = kept[costs[kept] < cheapest_smaller]
        if len(kept) > width:
            by_bound = np.argsort(bounds[kept], kind="stable")
            least_dropped = min(least_dropped, float(bounds[kept[by_bound[width]]]))
            kept = kept[np.sort(by_bound[:width])]
        if not len(kept):
            break
        history.append(kept)
        costs, bits = costs[kept], bits[kept]

        # Every state becomes a plan when the layers to come take the last corner that fits.
        corners = np.searchsorted(corner_bits, budget - bits, side="right") - 1
        plan_costs, plan_bits = costs + corner_costs[corners], bits + corner_bits[corners]
        state = int(np.lexsort((plan_bits, plan_costs))[0])
        if (total := (float(plan_costs[state]), int(plan_bits[state]))) < best:
            best, better = total, (position, state, int(corners[state]))

    if better is None:
        return None, least_dropped
    position, state, corner = better
    picks: _Plan = []
    for kept, options in zip(history[position::-1], layers[position::-1], strict=True):
        state, pick = divmod(int(kept[state]), len(options))
        picks.append(options[pick])
    return picks[::-1] + relaxation.corner_plan(corner, position + 1), least_dropped


def _fill(plan: _Plan, menus: _Menus, budget: int, max_gap: float) -> _Plan:
    """Take larger formats that cost no more while more than `max_gap` bits stay unused."""
    filled = list(plan)
    room = budget - _total(plan)[1]
    for layer, menu in enumerate(menus):
        if room <= max_gap:
            break
        at = filled[layer]
        fitting = [o for o in menu if o.cost <= at.cost and o.bits - at.bits <= room]
        filled[layer] = min(fitting, key=lambda o: (o.cost, -o.bits, o.place))
        room -= filled[layer].bits - at.bits
    return filled


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
