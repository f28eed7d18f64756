"""Predict the speed of a plan from times of matrix products that were measured on a machine.

Generating a token takes each matrix product once, and some time for each block and each token that
does not depend on formats (attention, norms, routers, sampling):

    secs = Σ_ℓ t(format_ℓ, weights read of ℓ) + blocks · secs per block + secs per token.

t is interpolated between the measured sizes, linearly in the weights that are read: a product with
few rows is bound by reading them.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from dynquant.quant.formats import QuantFormat
from dynquant.quant.plan import LayerProfile
from dynquant.quant.speed import weights_read

__all__ = ["KernelTime", "KernelTimes"]


@dataclass(frozen=True, slots=True, kw_only=True)
class KernelTime:
    """One measured product of `batch` rows with a matrix.

    Attributes:
        fmt: How the matrix is stored.
        num_weights: Weights that the product reads; of experts, those of the chosen ones.
        batch: Rows of the other factor; 1 while generating.
        by_experts: Whether the matrix is chosen by an index, as of experts.
        secs: Time of the product.
    """

    fmt: QuantFormat
    num_weights: int
    batch: int
    by_experts: bool
    secs: float


@dataclass(frozen=True, kw_only=True)
class KernelTimes:
    """All that was measured on one machine.

    Attributes:
        machine: The chip and the device, see `MeasuredSpeed.machine`.
        mlx_version: Version of MLX.
        times: Measured products.
        secs_per_block: Of a block beside its products, while generating.
        secs_per_token: Of a token beside its blocks and products.
    """

    machine: str
    mlx_version: str
    times: tuple[KernelTime, ...]
    secs_per_block: float
    secs_per_token: float

    def secs(
        self, fmt: QuantFormat, num_weights: float, *, batch: int = 1, by_experts: bool = False
    ) -> float:
        """Time of a product that reads so many weights; of an unmeasured format, the nearest one's.

        Raises:
            KeyError: Nothing was measured at this batch.
        """
        same = [t for t in self.times if t.batch == batch and t.by_experts is by_experts]
        if not same:
            raise KeyError((batch, by_experts))
        nearest = min({t.fmt for t in same}, key=lambda each: _distance(each, fmt))
        points = sorted((t.num_weights, t.secs) for t in same if t.fmt == nearest)
        return _interpolated(points, num_weights)

    def tokens_per_sec(
        self,
        layers: Sequence[LayerProfile],
        formats: Mapping[str, QuantFormat],
        shares: Mapping[str, float],
        *,
        num_blocks: int,
    ) -> float:
        """Predicted speed of generating with a short context.

        Args:
            layers: The model's layers.
            formats: Path of each → its format.
            shares: Path → share of its weights that a token reads, see `speed.reads_of`.
            num_blocks: Blocks of the model.
        """
        secs = math.fsum(
            self.secs(formats[layer.path], read, by_experts=layer.is_experts)
            for layer in layers
            if (read := weights_read(layer, shares))
        )
        return 1 / (secs + num_blocks * self.secs_per_block + self.secs_per_token)

    def to_json(self) -> dict[str, Any]:
        """The fields as JSON types."""
        return {
            "machine": self.machine,
            "mlx_version": self.mlx_version,
            "secs_per_block": self.secs_per_block,
            "secs_per_token": self.secs_per_token,
            "times": [
                [t.fmt.name, t.num_weights, t.batch, t.by_experts, t.secs] for t in self.times
            ],
        }

    @classmethod
    def from_json(cls, raw: Mapping[str, Any]) -> KernelTimes:
        """The record that `to_json` wrote.

        Raises:
            ValueError, TypeError, KeyError, DynquantError: It is another record.
        """
        return cls(
            machine=str(raw["machine"]),
            mlx_version=str(raw["mlx_version"]),
            secs_per_block=float(raw["secs_per_block"]),
            secs_per_token=float(raw["secs_per_token"]),
            times=tuple(
                KernelTime(
                    fmt=QuantFormat.from_name(name),
                    num_weights=int(num_weights),
                    batch=int(batch),
                    by_experts=by_experts is True,
                    secs=float(secs),
                )
                for name, num_weights, batch, by_experts, secs in raw["times"]
            ),
        )


def _distance(a: QuantFormat, b: QuantFormat) -> tuple[bool, int, int]:
    return a.mode != b.mode, abs(a.bits - b.bits), abs(a.group_size - b.group_size)


def _interpolated(points: Sequence[tuple[int, float]], at: float) -> float:
    """Piecewise linear between `points`; in proportion beyond the largest, flat below the first."""
    first, last = points[0], points[-1]
    if at <= first[0]:
        return first[1]
    if at >= last[0]:
        return last[1] * at / last[0]
    low, high = next((a, b) for a, b in pairwise(points) if a[0] <= at <= b[0])
    return low[1] + (high[1] - low[1]) * (at - low[0]) / (high[0] - low[0])
