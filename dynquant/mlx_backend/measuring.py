"""From importance to costs: what every format of every layer takes from the model, in nats."""

from __future__ import annotations

import dataclasses
import logging
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from statistics import median

import mlx.core as mx
import mlx.nn as nn
import numpy as np

from dynquant.core.formats import UNQUANTIZED, QuantFormat
from dynquant.core.plan import LayerProfile
from dynquant.core.recipe import EFFORTS, Effort
from dynquant.mlx_backend.encoders import LayerEncoder
from dynquant.mlx_backend.encoding import decode, encode
from dynquant.mlx_backend.fallback import measure_block_outputs
from dynquant.mlx_backend.importance import Importance
from dynquant.mlx_backend.loading import Weights, scalar
from dynquant.mlx_backend.probing import corrected, measure_scales
from dynquant.mlx_backend.reverse import NoGradientError
from dynquant.mlx_backend.sensitivity import Measurement, measure_importance
from dynquant.mlx_backend.streaming import BlockWeights

__all__ = ["Costs", "format_costs", "measure_costs"]

logger = logging.getLogger(__name__)

_MAX_SPREAD = 8.0  # of the probes' factors around their median; beyond it they tell of noise
_SAMPLE_WEIGHTS = 1 << 17  # costs of one layer are estimated on about this many weights


@dataclass(frozen=True)
class Costs:
    """What a measurement found.

    Attributes:
        profiles: The layers with the cost of each format.
        method: `fisher`, or `block_output` where the model could not be differentiated.
        scales: What the probes corrected, `role:bits` → factor.
        importance: Importance of the layers that a forward pass alone does not tell.
    """

    profiles: tuple[LayerProfile, ...]
    method: str
    scales: Mapping[str, float]
    importance: Mapping[str, Importance]


def measure_costs(
    measurement: Measurement,
    profiles: Sequence[LayerProfile],
    *,
    encoder: str,
    effort: Effort = EFFORTS["normal"],
    probe_windows: Sequence[mx.array],
    on_step: Callable[[str], None],
) -> Costs:
    """Cost of every format of every layer, corrected by whole-model probes.

    Args:
        measurement: The model and the calibration windows.
        profiles: The quantizable layers and the formats that each may take.
        encoder: Name of the encoder that will be used.
        effort: How much work it will do, and whether to probe.
        probe_windows: Windows outside the calibration windows, each (batch, seq), int32.
        on_step: Called with `measure` or `probe` after each block.

    Raises:
        NonFiniteError: NaN or infinity in a pass; names the layer.
    """
    by_path = {profile.path: profile for profile in profiles}
    costs: dict[str, tuple[float, ...]] = {}
    unknown: set[str] = set()
    densities: list[float] = []
    kept: dict[str, Importance] = {}

    def judge(importances: Mapping[str, Importance], held: Weights) -> None:
        for path, importance in importances.items():
            profile, name = by_path[path], f"{path}.weight"
            weight = held[name].astype(measurement.dtypes[name])
            costs[path] = format_costs(
                weight, importance, profile.formats, search=encoder != "minmax"
            )
            if not importance.terms:
                unknown.add(path)
                continue
            densities.append(scalar(importance.row_masses.sum()) / profile.num_weights)
            if isinstance(measurement.layers[path], nn.Embedding):
                kept[path] = importance

    method = "fisher"
    try:
        watcher = measure_importance(
            measurement, on_layers=judge, on_step=lambda: on_step("measure")
        )
    except (NoGradientError, FloatingPointError) as error:
        logger.warning(
            "This model's blocks cannot be differentiated (%s); "
            "layers are judged by the error at their block's output instead.",
            str(error).splitlines()[0][:200],
        )
        method = "block_output"
        for gathered in (costs, unknown, densities, kept):
            gathered.clear()
        watcher = measure_block_outputs(
            measurement, on_layers=judge, on_step=lambda: on_step("measure")
        )
    blocks = measurement.blocks
    for block in (path for path, calls in blocks.num_calls.items() if not calls):
        paths = [path for path in by_path if blocks.block_of(path) == block]
        with BlockWeights(blocks, measurement.load).holding(block) as held:
            judge(dict.fromkeys(paths, Importance(())), held)
    # A layer that the text never reached counts like the median weight.
    typical = median(densities) if densities else 1.0
    for path in unknown:
        costs[path] = tuple(typical * cost for cost in costs[path])
    measured = [dataclasses.replace(p, costs_nats=costs[p.path]) for p in profiles]
    if not effort.probes:
        return Costs(tuple(measured), method, {}, kept)
    watcher.forget({path for path in by_path if blocks.block_of(path) is not None})
    scales = measure_scales(
        measurement,
        probe_windows,
        measured,
        LayerEncoder(encoder, watcher, kept, effort.num_sweeps),
        # Relative errors know nothing of nats; there any factor may be right.
        max_spread=_MAX_SPREAD if method == "fisher" else math.inf,
        on_step=lambda: on_step("probe"),
    )
    return Costs(tuple(corrected(p, scales) for p in measured), method, scales, kept)


def format_costs(
    weight: mx.array,
    importance: Importance,
    formats: Sequence[QuantFormat],
    *,
    search: bool,
) -> tuple[float, ...]:
    """Expected KL divergence per token of storing `weight` in each of `formats`.

    A large layer is judged by a sample of its rows, drawn in proportion to their summed
    importance, so that the estimate has no bias and the rows that matter are in it.

    Args:
        weight: (..., out, in), in the dtype of the scales and biases.
        importance: What an error of each weight costs; without terms, the costs
            are squared errors instead of nats.
        formats: Formats that fit the weight.
        search: Encode as the least-squares encoder does, rather than as `mx.quantize`.
    """
    rows = weight.reshape(-1, weight.shape[-1])
    num_rows = rows.shape[0]
    masses = importance.row_masses if importance.terms else mx.ones(num_rows)
    num_samples = max(1, _SAMPLE_WEIGHTS // rows.shape[-1])
    if num_rows <= num_samples:
        chosen, factors = mx.arange(num_rows), mx.ones(num_rows)
    else:
        chosen = _systematic_sample(masses, num_samples)
        factors = masses.sum() / (num_samples * mx.maximum(masses[chosen], 1e-37))
    sample = rows[chosen]
    matter = mx.broadcast_to(importance.of_rows(chosen), sample.shape)
    mx.eval(sample, matter, factors)
    costs = []
    for fmt in formats:
        if fmt == UNQUANTIZED:
            costs.append(0.0)
            continue
        stored = encode(sample, matter.__getitem__, fmt, search=search)
        error = mx.square(decode(stored) - sample.astype(mx.float32))
        costs.append(scalar(0.5 * ((matter * error).sum(-1) * factors).sum()))
    return tuple(costs)


def _systematic_sample(masses: mx.array, num_samples: int) -> mx.array:
    """Indices in proportion to `masses`, evenly spaced along their running sum; no randomness."""
    running = np.cumsum(np.asarray(masses, dtype=np.float64))
    marks = (np.arange(num_samples) + 0.5) * (running[-1] / num_samples)
    return mx.array(np.minimum(np.searchsorted(running, marks), len(running) - 1))
