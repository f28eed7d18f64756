"""Axes of a plot: positions of values, ticks, and free places for labels."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

__all__ = ["Box", "Labels", "Scale", "linear_ticks", "log_scale", "log_ticks"]

_LINEAR_STEPS = (0.05, 0.1, 0.25, 0.5, 1.0, 2.0, 5.0, 10.0, 20.0)
_MAX_LINEAR_TICKS = 9
# Decades on the axis up to which each of these multiples of a power of ten is marked.
_LOG_MULTIPLES = ((1.2, (1, 2, 3, 5, 7)), (2.4, (1, 2, 5)), (4.5, (1, 3)), (math.inf, (1,)))
_MAX_DECADES = 7


@dataclass(frozen=True, slots=True, kw_only=True)
class Scale:
    """Maps values to positions: `low` to `start`, `high` to `end`."""

    low: float
    high: float
    start: float
    end: float

    def place(self, value: float) -> float:
        """The position of `value`."""
        share = (value - self.low) / (self.high - self.low)
        return self.start + share * (self.end - self.start)


def log_scale(values: Iterable[float], *, start: float, end: float) -> Scale:
    """A scale of decimal logarithms with some room around `values`, half a decade at least."""
    logs = [math.log10(value) for value in values]
    room = max(0.1 * (max(logs) - min(logs)), 0.3)
    return Scale(low=min(logs) - room, high=max(logs) + room, start=start, end=end)


def linear_ticks(scale: Scale) -> list[float]:
    """Round values within `scale`, ascending."""
    span = scale.high - scale.low
    fitting = (step for step in _LINEAR_STEPS if span / step <= _MAX_LINEAR_TICKS)
    step = next(fitting, _LINEAR_STEPS[-1])
    first, last = math.ceil(scale.low / step), math.floor(scale.high / step)
    return [round(i * step, 2) for i in range(first, last + 1)]


def log_ticks(scale: Scale) -> list[float]:
    """Round values within a scale of decimal logarithms, ascending."""
    span = scale.high - scale.low
    multiples = next(multiples for limit, multiples in _LOG_MULTIPLES if span <= limit)
    step = math.ceil(span / _MAX_DECADES)
    decades = range(math.floor(scale.low / step) * step, math.ceil(scale.high) + 1, step)
    values = (float(f"{multiple}e{decade}") for decade in decades for multiple in multiples)
    return [value for value in values if scale.low <= math.log10(value) <= scale.high]


@dataclass(frozen=True, slots=True, kw_only=True)
class Box:
    """A rectangle of the plot, parallel to the axes."""

    left: float
    top: float
    right: float
    bottom: float

    @classmethod
    def around(cls, x: float, y: float, reach: float) -> Box:
        """The square about a point."""
        return cls(left=x - reach, top=y - reach, right=x + reach, bottom=y + reach)

    def overlaps(self, other: Box) -> bool:
        """Whether they have a part in common."""
        return (
            self.left < other.right
            and other.left < self.right
            and self.top < other.bottom
            and other.top < self.bottom
        )

    def holds(self, other: Box) -> bool:
        """Whether `other` lies within."""
        return (
            self.left <= other.left
            and other.right <= self.right
            and self.top <= other.top
            and other.bottom <= self.bottom
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Labels:
    """Finds free places for labels beside points.

    Attributes:
        bounds: The area for labels.
        taken: Areas that are in use.
    """

    bounds: Box
    taken: list[Box] = field(default_factory=list)

    def line(self, x1: float, y1: float, x2: float, y2: float) -> None:
        """Keep labels off a line."""
        num_steps = math.ceil(math.hypot(x2 - x1, y2 - y1) / 5) or 1
        shares = (i / num_steps for i in range(num_steps + 1))
        self.taken.extend(Box.around(x1 + s * (x2 - x1), y1 + s * (y2 - y1), 3) for s in shares)

    def beside(self, x: float, y: float, *, width: float, height: float) -> Box | None:
        """A free place for a label of a point, which is then taken; None if no place is free."""
        for left, top in _places_beside(x, y, width, height):
            box = Box(left=left, top=top, right=left + width, bottom=top + height)
            if self.bounds.holds(box) and not any(map(box.overlaps, self.taken)):
                self.taken.append(box)
                return box
        return None


def _places_beside(
    x: float, y: float, width: float, height: float
) -> Iterator[tuple[float, float]]:
    """Left upper corners around a point, from near to far."""
    for gap in (12, 18, 28):
        level, above, below = y - height / 2, y - gap - height, y + gap
        right, center, left = x + gap, x - width / 2, x - gap - width
        yield from (
            (right, above),
            (right, level),
            (left, below),
            (left, level),
            (center, above),
            (center, below),
            (right, below),
            (left, above),
        )
