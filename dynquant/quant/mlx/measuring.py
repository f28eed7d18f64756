"""From importance to costs: what every format of every layer takes from the model, in nats."""

from __future__ import annotations

import dataclasses
import logging
import math
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from statistics import median

import mlx.core as mx
import mlx.nn as nn
import numpy as np

from dynquant.quant.formats import UNQUANTIZED, QuantFormat
from dynquant.quant.kl_calibration import KlCalibration
from dynquant.quant.mlx.backward import NoGradientError
from dynquant.quant.mlx.block_error import measure_block_outputs
from dynquant.quant.mlx.encoders import LayerEncoder
from dynquant.quant.mlx.encoding import squared_errors
from dynquant.quant.mlx.importance import Importance
from dynquant.quant.mlx.loading import Weights
from dynquant.quant.mlx.probing import corrected, measure_scales
from dynquant.quant.mlx.sensitivity import Measurement, measure_importance
from dynquant.quant.mlx.streaming import BlockWeights, side_by_side
from dynquant.quant.plan import LayerProfile
from dynquant.quant.recipe import EFFORTS, Effort

__all__ = ["Costs", "Sample", "format_costs", "measure_costs", "sample_layer"]

logger = logging.getLogger(__name__)

_MAX_SPREAD = 8.0  # of the probes' factors around their median; beyond it they tell of noise
# Costs of one layer are estimated on this many weights: within 1 % or so, though weights have
# heavy tails, because runs are drawn by importance and range.
_SAMPLE_WEIGHTS = 1 << 14
_LAYERS_AT_ONCE = 16


@dataclass(frozen=True)
class Costs:
    """What a measurement found.

    Attributes:
        profiles: The layers with the cost of each format.
        method: `fisher`, or `block_output` where the model could not be differentiated.
        scales: What the probes corrected, `role:bits` → factor.
        together: What the costs come to on the whole model.
        importance: Importance of the layers that a forward pass alone does not tell.
    """

    profiles: tuple[LayerProfile, ...]
    method: str
    scales: Mapping[str, float]
    together: KlCalibration
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
        samples = []
        for path, importance in importances.items():
            profile, name = by_path[path], f"{path}.weight"
            weight = held[name].astype(measurement.dtypes[name])
            samples.append(sample_layer(weight, importance, profile.formats))
            if not importance.terms:
                unknown.add(path)
                continue
            densities.append(importance.mass / profile.num_weights)
            if isinstance(measurement.layers[path], nn.Embedding):
                kept[path] = importance
        costs.update(
            zip(importances, format_costs(samples, search=encoder != "minmax"), strict=True)
        )

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
        return Costs(tuple(measured), method, {}, KlCalibration(), kept)
    watcher.forget({path for path in by_path if blocks.block_of(path) is not None})
    scales, together = measure_scales(
        measurement,
        probe_windows,
        measured,
        LayerEncoder(encoder, watcher, kept, effort.num_sweeps),
        # Relative errors know nothing of nats; there any factor may be right.
        max_spread=_MAX_SPREAD if method == "fisher" else math.inf,
        on_step=lambda: on_step("probe"),
    )
    profiles = tuple(corrected(profile, scales) for profile in measured)
    return Costs(profiles, method, scales, together, kept)


@dataclass(frozen=True)
class Sample:
    """Weights by which a layer is judged.

    Attributes:
        weights: Runs of neighbours in a row, (runs, length), as stored.
        matter: What an error of each costs, (runs, length), float32; a run that stands for
            others counts for more.
        formats: Formats that fit the layer.
    """

    weights: mx.array
    matter: mx.array
    formats: tuple[QuantFormat, ...]


def sample_layer(
    weight: mx.array, importance: Importance, formats: Sequence[QuantFormat]
) -> Sample:
    """Weights of a layer in proportion to what they may cost; of a small layer, all of them.

    The estimate has no bias, and what matters is in it. A run is whole groups of every format.

    Args:
        weight: (..., out, in), in the dtype of the scales and biases.
        importance: What an error of each weight costs; without terms, the costs
            are squared errors instead of nats.
        formats: Formats that fit the weight.
    """
    width = weight.shape[-1]
    length = max(fmt.group_size for fmt in formats) or width
    runs = weight.reshape(-1, length)
    num_samples = max(1, _SAMPLE_WEIGHTS // length)
    if runs.shape[0] <= num_samples:
        every = mx.arange(weight.size // width)
        matter = mx.broadcast_to(importance.of_rows(every), (every.size, width))
        return Sample(runs, matter.reshape(runs.shape), tuple(formats))
    masses = importance.run_masses(length) if importance.terms else mx.ones(runs.shape[0])
    # What a run costs goes with its importance and the square of its range.
    shares = masses * mx.square((runs.max(-1) - runs.min(-1)).astype(mx.float32))
    chosen = _systematic_sample(shares, num_samples)
    factors = shares.sum() / (num_samples * mx.maximum(shares[chosen], 1e-37))
    rows, places = mx.divmod(chosen, width // length)
    matter = mx.broadcast_to(importance.of_rows(rows), (num_samples, width))
    matter = matter.reshape(num_samples, -1, length)[mx.arange(num_samples), places]
    return Sample(runs[chosen], matter * factors[:, None], tuple(formats))


def format_costs(samples: Sequence[Sample], *, search: bool) -> list[tuple[float, ...]]:
    """Expected KL divergence per token of storing each layer in each of its formats.

    Layers of one kind are encoded together: the operations are many and small.

    Args:
        samples: The layers.
        search: Encode as the least-squares encoder does, rather than as `mx.quantize`.
    """
    costs: list[tuple[float, ...]] = [()] * len(samples)
    kinds = defaultdict(list)
    for index, sample in enumerate(samples):
        kinds[sample.formats, sample.weights.shape[-1], sample.weights.dtype].append(index)
    for members in kinds.values():
        for start in range(0, len(members), _LAYERS_AT_ONCE):
            some = members[start : start + _LAYERS_AT_ONCE]
            found = _costs_of_one_kind([samples[index] for index in some], search=search)
            for index, layer_costs in zip(some, found, strict=True):
                costs[index] = layer_costs
    return costs


def _costs_of_one_kind(samples: Sequence[Sample], *, search: bool) -> list[tuple[float, ...]]:
    """Costs of layers with the same formats and the same length of runs."""
    formats = samples[0].formats
    weights = mx.concatenate([sample.weights for sample in samples])
    matter = mx.concatenate([sample.matter for sample in samples])
    mx.eval(weights, matter)
    ends = np.cumsum([len(sample.weights) for sample in samples])[:-1]
    by_run = dict[QuantFormat, mx.array]()

    def judge(fmt: QuantFormat) -> list[mx.array]:
        by_run[fmt] = (matter * squared_errors(weights, matter, fmt, search=search)).sum(-1)
        return [by_run[fmt]]

    side_by_side([fmt for fmt in formats if fmt != UNQUANTIZED], judge)
    by_format = {UNQUANTIZED: [0.0] * len(samples)}
    for fmt, costs in by_run.items():
        parts = np.split(np.asarray(costs, dtype=np.float64), ends)
        by_format[fmt] = [0.5 * float(part.sum()) for part in parts]
    return list(zip(*(by_format[fmt] for fmt in formats), strict=True))


def _systematic_sample(masses: mx.array, num_samples: int) -> mx.array:
    """Indices in proportion to `masses`, evenly spaced along their running sum; no randomness."""
    running = np.cumsum(np.asarray(masses, dtype=np.float64))
    marks = (np.arange(num_samples) + 0.5) * (running[-1] / num_samples)
    return mx.array(np.minimum(np.searchsorted(running, marks), len(running) - 1))
