"""The KL divergence of a whole plan, predicted from the summed costs of its layers."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

__all__ = ["KlCalibration"]


@dataclass(frozen=True)
class KlCalibration:
    """Measured plans, between which the KL divergence of other plans is interpolated.

    The errors of many layers add up to less than their sum where they route tokens to the same
    other experts, and to more where they are correlated. The ratio depends on the size of the
    error and is the same for all plans of one size, so it does not change which of them is best.

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
