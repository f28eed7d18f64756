"""The uniform quant to compare with: one format everywhere, as `mlx_lm.convert` makes it."""

from __future__ import annotations

import math

from dynquant.quant.formats import AFFINE_BITS, AFFINE_GROUP_SIZES, UNQUANTIZED, QuantFormat
from dynquant.quant.plan import LayerProfile, ModelInventory, QuantPlan

__all__ = ["nearest_uniform", "uniform_plan"]


def uniform_plan(inventory: ModelInventory, fmt: QuantFormat) -> QuantPlan:
    """`fmt` on every layer that it fits; 8 bits where the architecture refuses fewer.

    Args:
        inventory: The model, with the default menu.
        fmt: An affine format.
    """
    formats = {layer.path: _taken(layer, fmt) for layer in inventory.layers}
    bits = sum(layer.stored_bits(formats[layer.path]) for layer in inventory.layers)
    bpw = inventory.bpw(bits)
    return QuantPlan(
        formats=formats,
        target_bpw=bpw,
        stored_bpw=bpw,
        predicted_kl_nats=math.nan,
        lower_bound_nats=math.nan,
    )


def nearest_uniform(inventory: ModelInventory, stored_bpw: float) -> tuple[QuantFormat, QuantPlan]:
    """The uniform format whose stored size is nearest to `stored_bpw`, and its plan."""
    plans = {
        fmt: uniform_plan(inventory, fmt)
        for bits in AFFINE_BITS
        for fmt in (QuantFormat(bits, group_size) for group_size in AFFINE_GROUP_SIZES)
    }
    return min(plans.items(), key=lambda item: (abs(item[1].stored_bpw - stored_bpw), item[0]))


def _taken(layer: LayerProfile, fmt: QuantFormat) -> QuantFormat:
    if fmt in layer.formats:
        return fmt
    if not fmt.fits(layer.shape):
        return UNQUANTIZED
    floor = QuantFormat(8, fmt.group_size)
    return floor if floor in layer.formats else UNQUANTIZED
