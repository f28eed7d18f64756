"""The result of verifying a written model."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from dynquant.quant.cache_bits import CacheLoss, cache_losses_in
from dynquant.quant.speed import MeasuredSpeed

__all__ = ["RUNTIMES", "Verified", "runtimes_in"]

RUNTIMES = ("mlx-vlm", "mlx-lm")
"""The libraries that a written model may be for."""

MAX_SAMPLE_CHARS = 10_000
"""24 tokens have some hundred."""


@dataclass(frozen=True, slots=True)
class Verified:
    """A written model that its stock runtimes run as planned.

    Attributes:
        sample: Text that the model generated.
        runtimes: The libraries that load it and compute what was planned, of `RUNTIMES`.
        saw_image: Whether a generated image was among the inputs.
        speed: Of the first runtime, on the machine that verified it; None if it was not timed.
        cache_losses: KL divergence that caches of fewer bits add; empty if they were not tried.
    """

    sample: str
    runtimes: tuple[str, ...] = ("mlx-lm",)
    saw_image: bool = False
    speed: MeasuredSpeed | None = None
    cache_losses: tuple[CacheLoss, ...] = ()

    @classmethod
    def from_json(cls, raw: Mapping[str, Any] | str) -> Verified:
        """The record of its fields as JSON types, perhaps by a process that is not trusted.

        Earlier versions kept the sample alone.

        Raises:
            ValueError, TypeError, KeyError: It is another record.
        """
        if isinstance(raw, str):
            return cls(raw[:MAX_SAMPLE_CHARS])
        sample, runtimes = raw["sample"], runtimes_in(raw["runtimes"])
        if not isinstance(sample, str):
            raise TypeError(sample)
        speed = MeasuredSpeed.from_json(raw["speed"]) if raw.get("speed") else None
        losses = cache_losses_in(raw.get("cache_losses", ()))
        return cls(sample[:MAX_SAMPLE_CHARS], runtimes, raw["saw_image"] is True, speed, losses)


def runtimes_in(raw: object) -> tuple[str, ...]:
    """Names of runtimes, the first the one that the model was made with.

    Raises:
        ValueError: They are others, or none.
    """
    if not (isinstance(raw, list | tuple) and raw and set(raw) <= set(RUNTIMES)):
        raise ValueError(raw)
    return tuple(dict.fromkeys(raw))
