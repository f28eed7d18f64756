"""The multiple-choice knapsack problem: one option per layer, the least cost within a bit budget.

Its linear relaxation is solved by walking the convex hulls of the layers from the steepest saving
to the flattest. The price of a bit at the budget rules out, by reduced costs, every option that no
better plan can use; a search over Pareto states, each bounded by the relaxation of the layers still
to come, decides between the few options that remain.

Sources: Sinha & Zoltners, "The multiple-choice knapsack problem", Operations Research 27(3),
1979 (relaxation and dominance); Pisinger, "A minimal algorithm for the multiple-choice knapsack
problem", European Journal of Operational Research 83(2), 1995 (core and states).
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from itertools import pairwise
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

__all__ = ["Menus", "Option", "Plan", "Relaxation", "solve", "total", "undominated"]

# States that the quick search and the thorough one expand; under a second for both at worst.
_WORK_LIMITS = (100_000, 2_000_000)
# Rounding of a few thousand sums, as a fraction of the largest total cost.
_ROUNDING = 1e-13

_Floats = npt.NDArray[np.float64]


class Option(NamedTuple):
    """One format of one layer: its place in the layer's menu, its size and its cost."""

    place: int
    bits: int
    cost: float


class _Step(NamedTuple):
    """One layer's way from an option to the next larger one on its hull."""

    saving_per_bit: float
    layer: int
    smaller: Option
    larger: Option


Plan = list[Option]
"""One option per layer."""

Menus = Sequence[Sequence[Option]]
"""The options of each layer, from few bits to many; `undominated` makes such a menu."""


def undominated(options: Sequence[Option]) -> list[Option]:
    """Options from few bits to many, without those that a smaller one matches in cost."""
    kept: list[Option] = []
    for option in sorted(options, key=lambda option: (option.bits, option.cost, option.place)):
        if not kept or option.cost < kept[-1].cost:
            kept.append(option)
    return kept


def _saving_per_bit(smaller: Option, larger: Option) -> float:
    return (smaller.cost - larger.cost) / (larger.bits - smaller.bits)


def _hull(options: Iterable[Option]) -> list[Option]:
    """The options on the lower convex hull: each step up saves less per bit than the last."""
    hull: list[Option] = []
    for option in options:
        while len(hull) > 1 and (
            _saving_per_bit(hull[-1], option) >= _saving_per_bit(hull[-2], hull[-1])
        ):
            hull.pop()
        hull.append(option)
    return hull


def total(plan: Iterable[Option]) -> tuple[float, int]:
    """Cost and bits of a plan, in the order in which plans are compared."""
    options = list(plan)
    return math.fsum(option.cost for option in options), sum(option.bits for option in options)


class Relaxation:
    """The steps along the hulls of `layers`, those that save most per bit first.

    Taking the first k of them gives a plan of whole formats: a corner of the convex, piecewise
    linear curve of least cost by budget that bounds every plan from below.
    """

    def __init__(self, layers: Menus) -> None:
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

    def least_cost(self, budget: int) -> float:
        """A bound that no plan within `budget` undercuts."""
        return float(np.interp(budget, *self.curve()))

    def corner_plan(self, corner: int, start: int = 0) -> Plan:
        """The options of the layers from `start` on at a corner of `curve(start)`."""
        plan = self.smallest[start:]
        for step in [step for step in self.steps if step.layer >= start][:corner]:
            plan[step.layer - start] = step.larger
        return plan


def solve(layers: Menus, budget: int) -> tuple[Plan, float]:
    """The cheapest plan found, and a bound that no plan within the budget undercuts."""
    relaxation = Relaxation(layers)
    bits, costs = relaxation.curve()
    relaxed = float(np.interp(budget, bits, costs))
    corner = int(np.searchsorted(bits, budget, side="right")) - 1
    price = relaxation.steps[corner].saving_per_bit if corner < len(relaxation.steps) else 0.0
    slack = _ROUNDING * math.fsum(max(abs(o.cost) for o in options) for options in layers)

    plan, proven = relaxation.corner_plan(corner), relaxed
    for work_limit in _WORK_LIMITS:
        allowance = total(plan)[0] - relaxed + slack
        kept = [_affordable(options, price, allowance) for options in layers]
        # Large layers first: what the small ones can still even out is left to the end.
        core = sorted(
            (i for i, options in enumerate(kept) if len(options) > 1),
            key=lambda i: kept[i][0].bits - kept[i][-1].bits,
        )
        cost, size = total(options[0] for options in kept if len(options) == 1)
        settled = [Option(0, size, cost)]
        picks, proven = _search(
            [settled, *(kept[i] for i in core)], total(plan), budget, slack, work_limit
        )
        if picks is not None:
            found = [options[0] for options in kept]
            for i, option in zip(core, picks[1:], strict=True):
                found[i] = option
            plan = min(plan, found, key=total)
        if proven >= total(plan)[0]:
            break
    return plan, max(relaxed, proven)


def _affordable(options: Sequence[Option], price: float, allowance: float) -> list[Option]:
    """Options whose reduced cost a plan better than the best known one could still bear."""
    base = min(options, key=lambda o: o.cost + price * o.bits)
    return [o for o in options if o.cost - base.cost + price * (o.bits - base.bits) <= allowance]


def _search(
    layers: Menus, best: tuple[float, int], budget: int, slack: float, work_limit: int
) -> tuple[Plan | None, float]:
    """Go through `layers`, keeping the Pareto states that may still beat `best`, a total.

    Bounds are trusted to within `slack`; `work_limit` is the most states to expand.

    Returns:
        The options of a better plan if there is one, and the least bound of the states that
        were dropped to keep to the limit; infinity if none was.
    """
    width = work_limit // sum(map(len, layers))
    relaxation = Relaxation(layers)
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
    picks: Plan = []
    for kept, options in zip(history[position::-1], layers[position::-1], strict=True):
        state, pick = divmod(int(kept[state]), len(options))
        picks.append(options[pick])
    return picks[::-1] + relaxation.corner_plan(corner, position + 1), least_dropped
