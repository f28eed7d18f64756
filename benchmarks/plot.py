"""Plots of benchmarks: lines over a logarithmic axis, in the style of the cards' plots."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from dynquant.report.axes import Scale, linear_ticks, log_scale, log_ticks
from dynquant.report.numbers import significant
from dynquant.report.svg import DARK, LIGHT, MARGIN, WIDTH, Theme, escaped, opening, trimmed

__all__ = ["Point", "Series", "chart_svg"]

_LEFT, _TOP, _BOTTOM, _RIGHT = 92.0, 92.0, 396.0, WIDTH - 250.0
_HEIGHT = 446
_LINE_HEIGHT = 20
# Hues that stay apart for the colour-blind (Okabe and Ito), each on a light and a dark page.
_OUR_HUES = (("#2f69b3", "#5fb0e8"), ("#7aa5d8", "#3f7fae"), ("#12305c", "#b9dcf7"))
_HUES = (
    ("#6b7280", "#9aa4b5"),
    ("#b45309", "#e69f00"),
    ("#00795a", "#2fb68d"),
    ("#a3437f", "#e08cc0"),
    ("#a33c00", "#ef7f4d"),
    ("#857600", "#f0e442"),
    ("#5b4bb0", "#a99cf2"),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Point:
    """One mark; `error` reaches up and down from `y`, `label` is shown under a pointer."""

    x: float
    y: float
    error: float = 0.0
    label: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Series:
    """Marks of one colour, joined by a line."""

    name: str
    points: Sequence[Point]
    is_ours: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class _Chart:
    theme: Theme
    x: Scale
    y: Scale

    def place(self, point: Point) -> tuple[float, float]:
        return self.x.place(point.x), self.height(point.y)

    def height(self, value: float) -> float:
        return self.y.place(math.log10(value))


def chart_svg(
    series: Sequence[Series],
    *,
    heading: str,
    subtitle: str,
    across: str,
    upwards: str,
    dark: bool,
) -> str:
    """Draw the series; self-contained.

    Args:
        series: At least one point in all; every y above 0.
        heading: Shown in bold.
        subtitle: Shown below it.
        across: Label of the x axis.
        upwards: Label of the y axis.
        dark: For a dark page.
    """
    theme = DARK if dark else LIGHT
    points = [point for each in series for point in each.points]
    left, right = min(p.x for p in points), max(p.x for p in points)
    room = 0.05 * (right - left) or 1.0
    chart = _Chart(
        theme=theme,
        x=Scale(low=left - room, high=right + room, start=_LEFT, end=_RIGHT),
        y=log_scale([point.y for point in points], start=_BOTTOM, end=_TOP),
    )
    drawn = list(
        opening(
            theme,
            _HEIGHT,
            title=f"{heading}: {subtitle}",
            description=f"A plot: {across} from left to right, {upwards} upwards, on a "
            "logarithmic axis. A table beside it lists the figures.",
            heading=heading,
            subtitle=subtitle,
        )
    )
    drawn += _axes(chart, across, upwards)
    hues = {True: iter(_OUR_HUES), False: iter(_HUES)}
    # dynquant last, so that no other line covers it.
    for number, each in enumerate(sorted(series, key=lambda s: s.is_ours)):
        drawn += _line(chart, each, next(hues[each.is_ours])[dark], number)
    return "\n".join([*drawn, "</svg>", ""])


def _line(chart: _Chart, series: Series, color: str, number: int) -> Iterator[str]:
    theme = chart.theme
    points = sorted(series.points, key=lambda point: point.x)
    places = [chart.place(point) for point in points]
    path = "L".join(f"{trimmed(x)} {trimmed(y)}" for x, y in places)
    yield _stroke(f"M{path}", color, width=2.5 if series.is_ours else 1.2)
    fill = color if series.is_ours else theme.background
    for point, (x, y) in zip(points, places, strict=True):
        yield f"<g><title>{escaped(point.label)}</title>"
        if point.error:
            low = max(point.y - point.error, point.y / 10)
            ends = (chart.height(low), chart.height(point.y + point.error))
            yield _stroke(f"M{trimmed(x)} {trimmed(ends[0])}V{trimmed(ends[1])}", color, width=1.5)
        yield (
            f'<circle cx="{trimmed(x)}" cy="{trimmed(y)}" r="{4.5 if series.is_ours else 3.5}" '
            f'fill="{fill}" stroke="{color}" stroke-width="1.5"/></g>'
        )
    top = _TOP + 10 + _LINE_HEIGHT * number
    yield f'<circle cx="{trimmed(_RIGHT + 24)}" cy="{trimmed(top - 4)}" r="4.5" fill="{color}"/>'
    ink = theme.text if series.is_ours else theme.muted
    yield _small(ink, series.name, x=_RIGHT + 36, y=top)


def _axes(chart: _Chart, across: str, upwards: str) -> Iterator[str]:
    theme = chart.theme
    yield _small(theme.muted, upwards, x=MARGIN, y=_TOP - 14)
    for value in log_ticks(chart.y):
        y = chart.height(value)
        yield _stroke(f"M{trimmed(_LEFT)} {trimmed(y)}H{trimmed(_RIGHT)}", theme.border)
        yield _small(theme.muted, significant(value, 1), x=_LEFT - 12, y=y + 4, anchor="end")
    yield _stroke(f"M{trimmed(_LEFT)} {trimmed(_BOTTOM)}H{trimmed(_RIGHT)}", theme.muted)
    for value in linear_ticks(chart.x):
        x = chart.x.place(value)
        yield _stroke(f"M{trimmed(x)} {trimmed(_BOTTOM)}v5", theme.muted)
        yield _small(theme.muted, trimmed(value), x=x, y=_BOTTOM + 22, anchor="middle")
    middle = (_LEFT + _RIGHT) / 2
    yield _small(theme.muted, across, x=middle, y=_BOTTOM + 40, anchor="middle")


def _small(color: str, words: str, *, x: float, y: float, anchor: str = "start") -> str:
    return (
        f'<text x="{trimmed(x)}" y="{trimmed(y)}" font-size="12" text-anchor="{anchor}" '
        f'fill="{color}">{escaped(words)}</text>'
    )


def _stroke(path: str, color: str, *, width: float = 1) -> str:
    return f'<path d="{path}" fill="none" stroke="{color}" stroke-width="{width}"/>'
