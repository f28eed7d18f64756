"""Correct the costs by whole-model measurements: one scale per role and bit width.

The second-order cost of a layer is off by a factor that depends on its role (how far
input and gradient go together, how errors of its rows add up) far more than on its
format: on `tiny-qwen3` 1.0 for the embedding, 1.4 for down_proj, 2.5 for v_proj, each
nearly the same at 3 and at 5 bits. So each role is quantized alone, at two widths,
and the KL divergence of the whole model is measured. Whole plans are measured too, since the
costs of many layers do not simply add up (decision 0002).
"""

from __future__ import annotations

import dataclasses
import logging
import math
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from statistics import median

import numpy as np

from dynquant.quant.allocate import allocate
from dynquant.quant.formats import QuantFormat
from dynquant.quant.kl_calibration import KlCalibration
from dynquant.quant.mlx.arrays import Weights
from dynquant.quant.mlx.encoders import LayerEncoder, formats_by_path, stored_by
from dynquant.quant.mlx.evaluation import kl_divergences
from dynquant.quant.mlx.model_inputs import Batch
from dynquant.quant.mlx.observing import observed
from dynquant.quant.mlx.sensitivity import Measurement
from dynquant.quant.mlx.streaming import BlockWeights, Forward
from dynquant.quant.plan import LayerProfile, ModelInventory

__all__ = ["corrected", "kl_of_formats", "measure_scales", "role_of"]

logger = logging.getLogger(__name__)

_PROBED_BITS = (2, 4)
_PROBED_BITS_OF_EXPERTS = (2, 4, 6)  # their factor goes on changing; of other layers by 6 % at most
_PROBED_GROUP_SIZE = 64
# Plans of models with experts are probed at so many times the smallest size. Below the first the
# ratio of measured KL to summed costs is about constant; at the last, KL comes mostly from a few
# tokens that are routed to other experts.
_PLANNED = (2.5, 3.0)


def role_of(profile: LayerProfile) -> str:
    """Layers of one role share a scale: the last name of the path, experts apart."""
    return profile.path.rpartition(".")[2] + (" (experts)" if profile.is_experts else "")


def measure_scales(
    measurement: Measurement,
    windows: Sequence[Batch],
    profiles: Sequence[LayerProfile],
    encoder: LayerEncoder,
    *,
    max_spread: float,
    on_step: Callable[[], None] = lambda: None,
) -> tuple[dict[str, float], KlCalibration]:
    """Measured over predicted KL of each role at each probed width, and of whole plans.

    Models with experts take a second pass, for plans that the costs of the first chose, on the
    calibration windows; for other models plans of one width for all layers suffice, and are probed
    in the same pass as the roles.

    Args:
        measurement: The model, and the calibration windows that the encoder learns from.
        windows: Other windows, each (batch, seq), int32, for the KL divergences.
        profiles: The layers with their costs.
        encoder: It holds the moments of the layers outside all blocks; those of each
            block are gathered as the model advances.
        max_spread: Factors are kept within this many times their median.
        on_step: Called after each block of each pass.

    Returns:
        `role:bits` → scale, and measured KL against the summed costs after scaling.
    """
    plans, has_experts = _plans(profiles), any(profile.is_experts for profile in profiles)
    whole = {} if has_experts else _uniform_plans(profiles)
    measured = kl_of_formats(measurement, windows, plans | whole, encoder, on_step=on_step)
    pairs = _predicted_and_measured(plans, profiles, measured)
    ratios = {name: kl / predicted for name, (predicted, kl) in pairs.items()}
    middle = median(ratios.values()) if ratios else 1.0
    low, high = middle / max_spread, middle * max_spread
    scales = {name: min(max(ratio, low), high) for name, ratio in ratios.items()}
    alone = [corrected(profile, scales) for profile in profiles]
    if has_experts:
        whole = _chosen_plans(alone)
        # Tokens routed to other experts are rare and have much of the KL: it takes many windows.
        windows = measurement.batches
        measured = kl_of_formats(measurement, windows, whole, encoder, on_step=on_step)
    return scales, KlCalibration(tuple(_predicted_and_measured(whole, alone, measured).values()))


def _predicted_and_measured(
    plans: Mapping[str, Mapping[str, QuantFormat]],
    profiles: Sequence[LayerProfile],
    measured: Mapping[str, float],
) -> dict[str, tuple[float, float]]:
    """Summed cost and measured KL of each plan, where both are above zero."""
    by_path = {profile.path: profile for profile in profiles}
    pairs = {
        name: (sum(by_path[path].cost_nats(fmt) for path, fmt in plan.items()), measured[name])
        for name, plan in plans.items()
    }
    for name, (predicted, kl) in pairs.items():
        logger.info("probe %s: predicted %.3g, measured %.3g", name, predicted, kl)
    return {name: pair for name, pair in pairs.items() if min(pair) > 0}


def kl_of_formats(
    measurement: Measurement,
    windows: Sequence[Batch],
    plans: Mapping[str, Mapping[str, QuantFormat]],
    encoder: LayerEncoder,
    *,
    on_step: Callable[[], None] = lambda: None,
) -> dict[str, float]:
    """Mean KL(original ‖ quantized) per token of whole models, all in one streamed pass.

    Args:
        measurement: The model, and the calibration windows that the encoder learns from.
        windows: Windows for the KL divergences, each (batch, seq), int32; where they are the
            `batches` of the measurement, the original goes over them once.
        plans: Name → path → format; layers without one stay as they are.
        encoder: It holds the moments of the layers outside all blocks; those of each
            block are gathered as the model advances.
        on_step: Called after each block.
    """
    blocks, load = measurement.blocks, measurement.load
    inside = {p: m for p, m in measurement.layers.items() if blocks.block_of(p) is not None}
    quantized = {}
    for name, formats in plans.items():
        stored = stored_by(encoder, formats, measurement.dtypes)
        quantized[name] = Forward(blocks, BlockWeights(blocks, load, stored), windows)
    wanted = formats_by_path(plans.values())
    learning = Forward(blocks, BlockWeights(blocks, load), measurement.batches)

    def learned(_block: str, held: Weights) -> None:
        encoder.encode_ahead(learning.weights.as_stored(held), wanted)

    others, original = list(quantized.values()), learning
    if windows is not measurement.batches:
        original = Forward(blocks, BlockWeights(blocks, load), windows)
        others.append(original)
    while (block := learning.next_block) is not None:
        with observed(inside, encoder.hessians):
            learning.step(encoder.hessians.pending, learned)
        for forward in others:
            forward.step()
        encoder.leave(measurement.paths_in(block))
        on_step()
    encoder.hessians.forget(inside)
    return kl_divergences(original, quantized)


def corrected(profile: LayerProfile, scales: Mapping[str, float]) -> LayerProfile:
    """`profile` with its costs scaled; between the probed widths the scale is interpolated."""
    known = sorted(
        (int(key.rpartition(":")[2]), scale)
        for key, scale in scales.items()
        if key.rpartition(":")[0] == role_of(profile)
    )
    if not known:
        return profile
    costs = (
        cost * _interpolated(known, fmt.bits)
        for fmt, cost in zip(profile.formats, profile.costs_nats, strict=True)
    )
    return dataclasses.replace(profile, costs_nats=tuple(costs))


def _interpolated(known: Sequence[tuple[int, float]], bits: int) -> float:
    """Geometric interpolation over bits, constant outside."""
    widths, scales = zip(*known, strict=True)
    return math.exp(float(np.interp(bits, widths, np.log(scales))))


def _plans(profiles: Sequence[LayerProfile]) -> dict[str, dict[str, QuantFormat]]:
    """`role:bits` → plan that quantizes that role alone."""
    roles = defaultdict(list)
    for profile in profiles:
        if _affine(profile):
            roles[role_of(profile)].append(profile)
    plans: dict[str, dict[str, QuantFormat]] = {}
    for role, members in roles.items():
        plans |= _plans_of(role, members, _widths(profiles))
    return plans


def _uniform_plans(profiles: Sequence[LayerProfile]) -> dict[str, dict[str, QuantFormat]]:
    """`all layers:bits` → plan of all layers at about one width."""
    everything = [profile for profile in profiles if _affine(profile)]
    return _plans_of("all layers", everything, _widths(profiles))


def _chosen_plans(profiles: Sequence[LayerProfile]) -> dict[str, dict[str, QuantFormat]]:
    """`plan:bpw` → plan that the costs choose, at some sizes."""
    inventory = ModelInventory(  # of the quantizable layers alone
        model_type="",
        layers=tuple(profiles),
        num_parameters=sum(profile.num_weights for profile in profiles),
        fixed_bits=0,
        dtype="",
    )
    wanted = {min(size * inventory.min_bpw, inventory.max_bpw) for size in _PLANNED}
    plans = {f"plan:{bpw:g}": allocate(inventory, target_bpw=bpw).formats for bpw in sorted(wanted)}
    stays = {profile.path for profile in profiles if not _affine(profile)}
    return {
        name: {path: fmt for path, fmt in formats.items() if path not in stays}
        for name, formats in plans.items()
    }


def _widths(profiles: Sequence[LayerProfile]) -> tuple[int, ...]:
    has_experts = any(profile.is_experts for profile in profiles)
    return _PROBED_BITS_OF_EXPERTS if has_experts else _PROBED_BITS


def _plans_of(
    name: str, members: Sequence[LayerProfile], widths: Sequence[int]
) -> dict[str, dict[str, QuantFormat]]:
    """`name:bits` → plan that quantizes `members` to about the same width."""
    plans = {}
    for bits in widths if members else ():
        plan = {member.path: _nearest(member, bits) for member in members}
        plans[f"{name}:{min(fmt.bits for fmt in plan.values())}"] = plan
    return plans


def _affine(profile: LayerProfile) -> list[QuantFormat]:
    return [fmt for fmt in profile.formats if fmt.mode == "affine"]


def _nearest(profile: LayerProfile, bits: int) -> QuantFormat:
    return min(
        _affine(profile),
        key=lambda fmt: (abs(fmt.bits - bits), abs(fmt.group_size - _PROBED_GROUP_SIZE)),
    )
