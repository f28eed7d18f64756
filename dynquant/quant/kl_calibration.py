"""What the costs of layers come to when all of them are quantized at once."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

__all__ = ["KlCalibration"]


@dataclass(frozen=True)
class KlCalibration:
    """Whole plans that were measured, to predict others by.

    Errors of many layers add up to less than their sum where they send tokens to the same other
    experts, and to more where they go one way. It depends on how much error there is, and moves
    all plans of one size alike, so it does not change which of them is the best.

    Attributes:
        probes: Summed cost and measured KL divergence of each plan, both above 0, in nats.
    """

    probes: tuple[tuple[float, float], ...] = ()

    def predicted_nats(self, summed: float) -> float:
        """KL divergence of a plan whose costs sum up to `summed`; never falls as that rises.

        Between the probes it is interpolated geometrically; beyond them their ratio stays.
        """
        if not self.probes or not summed > 0:
            return summed
        sums, measured = np.log(sorted(self.probes)).T
        ratios = np.maximum.accumulate(measured) - sums
        return summed * math.exp(float(np.interp(math.log(summed), sums, ratios)))
