"""From importance to costs: the KL divergence that every format of every layer brings, in nats."""

from __future__ import annotations

import dataclasses
import logging
import math
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from math import prod
from statistics import median

import mlx.core as mx
import mlx.nn as nn
import numpy as np

from dynquant.quant.formats import UNQUANTIZED, QuantFormat
from dynquant.quant.kl_calibration import KlCalibration
from dynquant.quant.mlx.arrays import Weights
from dynquant.quant.mlx.backward import NoGradientError
from dynquant.quant.mlx.block_error import measure_block_outputs
from dynquant.quant.mlx.encoders import LayerEncoder
from dynquant.quant.mlx.encoding import squared_errors
from dynquant.quant.mlx.grids import on_grid
from dynquant.quant.mlx.hessians import HessianObserver
from dynquant.quant.mlx.importance import Importance
from dynquant.quant.mlx.lanes import side_by_side
from dynquant.quant.mlx.probing import corrected, measure_scales
from dynquant.quant.mlx.sensitivity import Measurement, measure_importance
from dynquant.quant.mlx.streaming import BlockWeights
from dynquant.quant.plan import LayerProfile
from dynquant.quant.recipe import EFFORTS, Effort

__all__ = ["Costs", "Sample", "format_costs", "measure_costs", "sample_layer"]

logger = logging.getLogger(__name__)

_MAX_SPREAD = 8.0  # of the probes' factors around their median; factors beyond it are noise
# Costs of one layer are estimated on this many weights: within 1 % or so, though weights have
# heavy tails, because runs are drawn by importance and range.
_SAMPLE_WEIGHTS = 1 << 14
_LAYERS_AT_ONCE = 16


@dataclass(frozen=True)
class Costs:
    """Results of a measurement.

    Attributes:
        profiles: The layers with the cost of each format.
        method: `fisher`, or `block_output` where the model could not be differentiated.
        scales: Corrections by the probes, `role:bits` → factor.
        together: Predicts the KL divergence of a whole plan from its summed costs.
        importance: Path → importance of the layers for which H alone does not give it.
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
        effort: The work of the encoder, and whether to probe.
        probe_windows: Windows outside the calibration windows, each (batch, seq), int32.
        on_step: Called with `measure` or `probe` after each block.

    Raises:
        NonFiniteError: NaN or infinity in a pass; names the layer.
    """
    layers = _LayerCosts(measurement, profiles, search=encoder != "minmax")
    method, hessians = _one_pass(measurement, layers, lambda: on_step("measure"))
    measured = layers.profiles_with_costs()
    if not effort.probes:
        return Costs(measured, method, {}, KlCalibration(), layers.importance)
    blocks = measurement.blocks
    hessians.forget({p.path for p in profiles if blocks.block_of(p.path) is not None})
    scales, together = measure_scales(
        measurement,
        probe_windows,
        measured,
        LayerEncoder(encoder, hessians, layers.importance, effort.num_sweeps),
        # Relative errors are not in nats; their factors may have any size.
        max_spread=_MAX_SPREAD if method == "fisher" else math.inf,
        on_step=lambda: on_step("probe"),
    )
    probed = tuple(corrected(profile, scales) for profile in measured)
    return Costs(probed, method, scales, together, layers.importance)


def _one_pass(
    measurement: Measurement, layers: _LayerCosts, on_step: Callable[[], None]
) -> tuple[str, HessianObserver]:
    """Give `layers` the importance of every layer, by gradients where the model has them.

    Returns:
        The method, as `Costs` names it, and the second moments of the inputs.
    """
    try:
        hessians = measure_importance(measurement, on_layers=layers.add, on_step=on_step)
        method = "fisher"
    except (NoGradientError, FloatingPointError) as error:
        logger.warning(
            "This model's blocks cannot be differentiated (%s); "
            "layers are measured by the error at their block's output instead.",
            str(error).splitlines()[0][:200],
        )
        layers.clear()
        hessians = measure_block_outputs(measurement, on_layers=layers.add, on_step=on_step)
        method = "block_output"
    blocks = measurement.blocks
    for block in (path for path, calls in blocks.num_calls.items() if not calls):
        with BlockWeights(blocks, measurement.load).holding(block) as held:
            layers.add(dict.fromkeys(measurement.paths_in(block), Importance(())), held)
    return method, hessians


class _LayerCosts:
    """Costs of layers, computed block by block during a pass that gives their importance.

    Args:
        measurement: The model.
        profiles: The quantizable layers and the formats that each may take.
        search: Encode as the least-squares encoder does, rather than as `mx.quantize`.

    Attributes:
        importance: Path → importance of the layers for which H alone does not give it.
    """

    def __init__(
        self, measurement: Measurement, profiles: Sequence[LayerProfile], *, search: bool
    ) -> None:
        self._measurement = measurement
        self._profiles = {profile.path: profile for profile in profiles}
        self._search = search
        self.clear()

    def clear(self) -> None:
        """Forget all costs."""
        self.importance: dict[str, Importance] = {}
        self._costs: dict[str, tuple[float, ...]] = {}
        self._unreached: set[str] = set()
        self._densities: list[float] = []

    def add(self, importances: Mapping[str, Importance], held: Weights) -> None:
        """Estimate the costs of some layers while their weights are held."""
        samples = []
        for path, importance in importances.items():
            profile, name = self._profiles[path], f"{path}.weight"
            weight = held[name].astype(self._measurement.dtypes[name])
            samples.append(sample_layer(weight, importance, profile.formats))
            if not importance.terms:
                self._unreached.add(path)
                continue
            self._densities.append(importance.mass / prod(profile.shape))
            if isinstance(self._measurement.layers[path], nn.Embedding):
                self.importance[path] = importance
        costs = format_costs(samples, search=self._search)
        self._costs.update(zip(importances, costs, strict=True))

    def profiles_with_costs(self) -> tuple[LayerProfile, ...]:
        """The layers; a layer that the text never reached counts like the median weight."""
        typical = median(self._densities) if self._densities else 1.0
        for path in self._unreached:
            self._costs[path] = tuple(typical * cost for cost in self._costs[path])
        return tuple(
            dataclasses.replace(profile, costs_nats=self._costs[path])
            for path, profile in self._profiles.items()
        )


@dataclass(frozen=True)
class Sample:
    """A sample of the weights of a layer, from which its costs are estimated.

    Attributes:
        weights: Runs of neighbours in a row, (runs, length), as stored.
        importances: Importance of each, (runs, length), float32, times the number of runs that a
            drawn run represents.
        formats: Formats that fit the layer.
    """

    weights: mx.array
    importances: mx.array
    formats: tuple[QuantFormat, ...]


def sample_layer(
    weight: mx.array, importance: Importance, formats: Sequence[QuantFormat]
) -> Sample:
    """Runs of weights drawn in proportion to their possible cost; of a small layer, all weights.

    The estimate has no bias, and important runs are in it. A run is whole groups of every format.

    Args:
        weight: (..., out, in), in the dtype of the scales and biases.
        importance: Importance of the weights; without terms the costs are squared errors instead of
            nats.
        formats: Formats that fit the weight.
    """
    width = weight.shape[-1]
    length = max(fmt.group_size for fmt in formats) or width
    runs = weight.reshape(-1, length)
    num_samples = max(1, _SAMPLE_WEIGHTS // length)
    if runs.shape[0] <= num_samples:
        every = mx.arange(weight.size // width)
        importances = mx.broadcast_to(importance.of_rows(every), (every.size, width))
        return Sample(runs, importances.reshape(runs.shape), tuple(formats))
    masses = importance.run_masses(length) if importance.terms else mx.ones(runs.shape[0])
    # The cost of a run grows with its importance and the square of its range.
    shares = masses * mx.square((runs.max(-1) - runs.min(-1)).astype(mx.float32))
    chosen = _systematic_sample(shares, num_samples)
    factors = shares.sum() / (num_samples * mx.maximum(shares[chosen], 1e-37))
    rows, places = mx.divmod(chosen, width // length)
    importances = mx.broadcast_to(importance.of_rows(rows), (num_samples, width))
    importances = importances.reshape(num_samples, -1, length)[mx.arange(num_samples), places]
    return Sample(runs[chosen], importances * factors[:, None], tuple(formats))


def format_costs(samples: Sequence[Sample], *, search: bool) -> list[tuple[float, ...]]:
    """Expected KL divergence per token of storing each layer in each of its formats.

    Layers of one kind are encoded together, since the operations are many and small.

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
    importances = mx.concatenate([sample.importances for sample in samples])
    mx.eval(weights, importances)
    ends = np.cumsum([len(sample.weights) for sample in samples])[:-1]
    by_run = dict[QuantFormat, mx.array]()

    def add_costs(fmt: QuantFormat) -> list[mx.array]:
        by_run[fmt] = (importances * squared_errors(weights, importances, fmt, search=search)).sum(
            -1
        )
        return [by_run[fmt]]

    side_by_side([fmt for fmt in formats if fmt != UNQUANTIZED], add_costs)
    exact = {
        (index, fmt)
        for fmt in by_run
        for index, sample in enumerate(samples)
        if search and on_grid(sample.weights, fmt) is not None
    }
    by_format = {UNQUANTIZED: [0.0] * len(samples)}
    for fmt, costs in by_run.items():
        parts = np.split(np.asarray(costs, dtype=np.float64), ends)
        by_format[fmt] = [
            0.0 if (index, fmt) in exact else 0.5 * float(part.sum())
            for index, part in enumerate(parts)
        ]
    return list(zip(*(by_format[fmt] for fmt in formats), strict=True))


def _systematic_sample(masses: mx.array, num_samples: int) -> mx.array:
    """Indices in proportion to `masses`, evenly spaced along their running sum; no randomness."""
    running = np.cumsum(np.asarray(masses, dtype=np.float64))
    marks = (np.arange(num_samples) + 0.5) * (running[-1] / num_samples)
    return mx.array(np.minimum(np.searchsorted(running, marks), len(running) - 1))
