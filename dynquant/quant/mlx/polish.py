"""Improve plans by measuring: swaps of formats that the whole model finds better are kept.

The costs of layers are estimates, and many plans cost nearly the same. In each round the swaps
that cost least by the table are tried on the whole model, on windows that neither measuring nor
encoding sees; the best becomes the plan of the next round, in which all that helped are also
tried together. Layers outside the blocks (embedding, head) keep their formats, and are left exact
in the trials: every candidate would need a copy of its own of them in memory.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence

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
    """Plans of the same size with less KL divergence on `windows`; none if there was no round.

    Args:
        measurement: The model, and the calibration windows that the encoder learns from.
        windows: Other windows, each (batch, seq), int32.
        inventory: The model with its costs.
        plans: Target → plan.
        encoder: It has seen nothing yet.
        num_rounds: How many rounds at most.
        keep_going: Asked before each round.
        on_step: Called after each block of each round.

    Returns:
        Target → the best plan of the rounds that were made. Without a round it is empty, so that
        a cost table does not note as polished what another run has time for.
    """
    outer = measurement.paths_in(None)
    best, num_done = dict(plans), 0
    tried: dict[float, list[Swap]] = {target: [] for target in plans}
    together: dict[float, Swap] = {}
    for _ in range(num_rounds):
        if not keep_going():
            break
        asked: dict[str, QuantPlan] = {}
        changes: dict[str, tuple[float, Swap]] = {}
        for target, plan in best.items():
            fresh = swaps(
                inventory,
                plan,
                num_swaps=_SWAPS_PER_ROUND,
                fixed=outer,
                tried=tried[target],
            )
            tried[target] += fresh
            for index, change in enumerate([{}, together.get(target, {}), *fresh]):
                candidate = with_formats(inventory, plan, change)
                if candidate.stored_bpw <= target:
                    asked[f"{target}:{index}"] = candidate
                    changes[f"{target}:{index}"] = target, change
        formats = {
            name: {path: fmt for path, fmt in plan.formats.items() if path not in outer}
            for name, plan in asked.items()
        }
        found = kl_of_formats(measurement, windows, formats, encoder, on_step=on_step)
        for target in plans:
            mine = {n: found[n] for n, (t, _) in changes.items() if t == target}
            start = mine[f"{target}:0"]
            winner = min(mine, key=lambda name: (mine[name], name))
            if mine[winner] > (1 - _MIN_GAIN) * start:
                winner = f"{target}:0"
            logger.info("polish %g: KL %.4g to %.4g", target, start, mine[winner])
            best[target] = asked[winner]
            chosen = changes[winner][1]
            together[target] = {
                path: fmt
                for name in sorted(mine, key=lambda name: -mine[name])
                if mine[name] < start and not changes[name][1].keys() & chosen.keys()
                for path, fmt in changes[name][1].items()
            }
        num_done += 1
    return best if num_done else {}
