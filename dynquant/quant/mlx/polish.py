"""Improve plans by measuring: swaps of formats that lower the KL divergence of the whole model.

The costs of layers are estimates, and many plans cost nearly the same. In each round the swaps
that cost least by the table are tried on the whole model, on windows that neither measuring nor
encoding uses. The plan of least KL divergence goes into the next round, in which all swaps that
helped are also tried as one. Layers outside the blocks (embedding, head) keep their formats, and
are left exact in the trials: every candidate would need a copy of its own of them in memory.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field

import mlx.core as mx

from dynquant.quant.mlx.encoders import LayerEncoder
from dynquant.quant.mlx.probing import kl_of_formats
from dynquant.quant.mlx.sensitivity import Measurement
from dynquant.quant.plan import ModelInventory, QuantPlan
from dynquant.quant.swaps import Swap, swaps, with_formats

__all__ = ["polished"]

logger = logging.getLogger(__name__)

_SWAPS_PER_ROUND = 8  # of each plan; all of them go through the model together
_MIN_GAIN = 0.02  # of a round; less on a few windows was no gain on other text (decision 0010)


def polished(
    measurement: Measurement,
    windows: Sequence[mx.array],
    inventory: ModelInventory,
    plans: Mapping[float, QuantPlan],
    encoder: LayerEncoder,
    *,
    num_rounds: int,
    keep_going: Callable[[], bool],
    on_step: Callable[[], None] = lambda: None,
) -> dict[float, QuantPlan]:
    """Plans of the same size with less KL divergence on `windows`; none without a round.

    Args:
        measurement: The model, and the calibration windows that the encoder learns from.
        windows: Other windows, each (batch, seq), int32.
        inventory: The model with its costs.
        plans: Target → plan.
        encoder: An encoder that holds no second moments yet.
        num_rounds: How many rounds at most.
        keep_going: Called before each round; False ends the rounds.
        on_step: Called after each block of each round.

    Returns:
        Target → the best plan of the rounds that were made. Without a round it is empty, so that
        a cost table does not note plans as polished that another run has the time to polish.
    """
    outer = measurement.paths_in(None)
    searches = [_Search(target, plan) for target, plan in plans.items()]
    num_done = 0
    while num_done < num_rounds and keep_going():
        candidates = [search.candidates(inventory, outer) for search in searches]
        formats = {
            f"{search.target}:{index}": {p: f for p, f in plan.formats.items() if p not in outer}
            for search, tried in zip(searches, candidates, strict=True)
            for index, (_, plan) in enumerate(tried)
        }
        found = kl_of_formats(measurement, windows, formats, encoder, on_step=on_step)
        for search, tried in zip(searches, candidates, strict=True):
            search.choose(tried, [found[f"{search.target}:{i}"] for i in range(len(tried))])
        num_done += 1
    return {search.target: search.plan for search in searches} if num_done else {}


@dataclass
class _Search:
    """The search for the best plan of one target.

    Attributes:
        target: The target, in BPW.
        plan: The best plan so far.
        tried: Swaps that were candidates in an earlier round.
        joined: The swaps that helped in the last round and change other layers than its best, as
            one swap.
    """

    target: float
    plan: QuantPlan
    tried: list[Swap] = field(default_factory=list)
    joined: Swap = field(default_factory=dict)

    def candidates(
        self, inventory: ModelInventory, fixed: Collection[str]
    ) -> list[tuple[Swap, QuantPlan]]:
        """Changes to try in this round, with the plan that each gives; first the empty change."""
        fresh = swaps(
            inventory, self.plan, num_swaps=_SWAPS_PER_ROUND, fixed=fixed, tried=self.tried
        )
        self.tried += fresh
        changes = [{}, self.joined, *fresh] if self.joined else [{}, *fresh]
        plans = ((change, with_formats(inventory, self.plan, change)) for change in changes)
        return [(change, plan) for change, plan in plans if plan.stored_bpw <= self.target]

    def choose(self, candidates: Sequence[tuple[Swap, QuantPlan]], kls: Sequence[float]) -> None:
        """Take the candidate of least KL divergence, if it gains enough over the empty change."""
        best = min(range(len(kls)), key=lambda i: kls[i])
        if kls[best] > (1 - _MIN_GAIN) * kls[0]:
            best = 0
        logger.info("polish %g: KL %.4g to %.4g", self.target, kls[0], kls[best])
        chosen, self.plan = candidates[best]
        self.joined = {
            path: fmt
            # From worst to best: of two swaps that change the same layer, the better prevails.
            for i in sorted(range(len(kls)), key=lambda i: -kls[i])
            if kls[i] < kls[0] and not candidates[i][0].keys() & chosen.keys()
            for path, fmt in candidates[i][0].items()
        }
