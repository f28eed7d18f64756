"""The plot of all sizes of a model: mean KL to the original against stored size."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise

from dynquant.report.axes import Box, Labels, Scale, linear_ticks, log_scale, log_ticks
from dynquant.report.facts import ModelFacts, QuantizedRow, SizeVariant
from dynquant.report.numbers import significant, size, with_error
from dynquant.report.svg import (
    DARK,
    LIGHT,
    MARGIN,
    WIDTH,
    Theme,
    escaped,
    opening,
    shortened,
    small_text,
    trimmed,
)

__all__ = ["size_plot_svg"]

_HEADER_HEIGHT = 72
_LEFT, _TOP, _BOTTOM = 92, 92, 276
_HEIGHT = 336
_NOTE_HEIGHT = 22
_TICK_ROOM = 36  # on both sides, for the size below the outermost ticks
_LABEL_SIZE = 12
_CHAR_WIDTH = 0.58 * _LABEL_SIZE  # of a sans-serif font, cautious
_MAX_LABEL_CHARS = 48
_MAX_LEFT_OUT = 3
_RADIUS, _BIG_RADIUS, _RING_RADIUS = 4.5, 6.5, 9.5
_CAP = 4  # half of the width of an error bar's ends

# Range of the plot; a value beyond it is an error or a lossless model.
_MIN_KL_NATS, _MAX_KL_NATS = 1e-9, 1e6
_MIN_BPW, _MAX_BPW = 0.01, 64.0


@dataclass(frozen=True, slots=True, kw_only=True)
class _Point:
    """A model on the plot.

    Attributes:
        label: Short name.
        tooltip: All of its figures.
        is_ours: Whether dynquant made it; else it is a uniform quant for comparison.
        is_this: Whether it is the model of the card.
    """

    label: str
    tooltip: str
    bpw: float
    kl_nats: float
    kl_se_nats: float
    is_ours: bool
    is_this: bool

    @property
    def why_left_out(self) -> str:
        """Why the point is not in the plot; empty if it is."""
        if not math.isfinite(self.kl_nats):
            return "not measured"
        if self.kl_nats == 0:
            return "mean KL 0"
        is_size = _MIN_BPW <= self.bpw <= _MAX_BPW
        is_distance = _MIN_KL_NATS <= self.kl_nats <= _MAX_KL_NATS
        return "" if is_size and is_distance else "beyond the axes"

    @property
    def ends_nats(self) -> tuple[float, float]:
        """Ends of the error bar; the lower one may lie below 0."""
        error = self.kl_se_nats if 0 <= self.kl_se_nats < math.inf else 0.0
        return self.kl_nats - error, min(self.kl_nats + error, _MAX_KL_NATS)

    @property
    def caption(self) -> str:
        """The label beside the point."""
        return self.label + f", {significant(self.kl_nats, 2)} nats" * self.is_this


@dataclass(frozen=True, slots=True, kw_only=True)
class _Plot:
    """Scales and colours of the plot."""

    theme: Theme
    x: Scale
    y: Scale

    def place(self, point: _Point) -> tuple[float, float]:
        """Centre of a point."""
        return self.x.place(point.bpw), self.height(point.kl_nats)

    def height(self, kl_nats: float) -> float:
        """The height of a KL; the bottom for values below the axis."""
        return self.y.place(max(math.log10(kl_nats), self.y.low) if kl_nats > 0 else self.y.low)

    def color(self, point: _Point) -> str:
        """Colour of a point."""
        return self.theme.accent if point.is_ours else self.theme.muted


def size_plot_svg(facts: ModelFacts, *, dark: bool, is_about_one: bool = True) -> str:
    """Draw mean KL against stored size: all sizes of the model, and uniform quants beside them.

    The SVG is self-contained and depends on `facts` alone.

    Args:
        facts: The model, with its other sizes.
        dark: For a dark page.
        is_about_one: Whether the model itself is highlighted.
    """
    theme = DARK if dark else LIGHT
    points = [*map(_uniform_point, facts.rows[1:-1])]
    points += [
        _variant_point(variant, is_this=is_about_one and variant.name == facts.name)
        for variant in facts.variants
    ]
    shown = [point for point in points if not point.why_left_out]
    note = _note([point for point in points if point.why_left_out])
    height = _HEIGHT if shown else _HEADER_HEIGHT
    drawn = list(_opening(facts, theme, height + _NOTE_HEIGHT * bool(note)))
    if shown:
        plot = _Plot(theme=theme, x=_x_scale(shown), y=_y_scale(shown))
        drawn += _axes(plot, facts.rows[-1])
        drawn += _line(plot, [point for point in shown if point.is_ours])
        drawn += (mark for point in shown for mark in _marks(plot, point))
        drawn += _labels(plot, shown)
    if note:
        drawn.append(small_text(theme, note, x=MARGIN, y=height + 2))
    return "\n".join([*drawn, "</svg>", ""])


def _variant_point(variant: SizeVariant, *, is_this: bool) -> _Point:
    kl_nats = with_error(variant.mean_kl_nats, variant.mean_kl_se_nats, digits=3)
    return _Point(
        label="this model: " * is_this + f"{shortened(trimmed(variant.target_bpw), 8)} bpw",
        tooltip=_tooltip(variant.name, variant.stored_bpw, variant.num_bytes, kl_nats),
        bpw=variant.stored_bpw,
        kl_nats=variant.mean_kl_nats,
        kl_se_nats=variant.mean_kl_se_nats,
        is_ours=True,
        is_this=is_this,
    )


def _uniform_point(row: QuantizedRow) -> _Point:
    quality = row.quality
    kl_nats = with_error(quality.mean_kl_nats, quality.mean_kl_se_nats, digits=3)
    return _Point(
        label=shortened(row.label, _MAX_LABEL_CHARS),
        tooltip=_tooltip(row.label, row.stored_bpw, row.num_bytes, kl_nats),
        bpw=row.stored_bpw,
        kl_nats=quality.mean_kl_nats,
        kl_se_nats=quality.mean_kl_se_nats,
        is_ours=False,
        is_this=False,
    )


def _tooltip(name: str, bpw: float, num_bytes: int, kl_nats: str) -> str:
    return f"{name}: {trimmed(bpw)} bits per weight, {size(num_bytes)}, mean KL {kl_nats} nats"


def _note(left_out: Sequence[_Point]) -> str:
    if not left_out:
        return ""
    named = [f"{point.label} ({point.why_left_out})" for point in left_out[:_MAX_LEFT_OUT]]
    if (hidden := len(left_out) - _MAX_LEFT_OUT) > 0:
        named.append(f"{hidden} more")
    return f"Left out: {', '.join(named)}"


def _opening(facts: ModelFacts, theme: Theme, height: float) -> Iterator[str]:
    source = shortened(facts.source, 48)
    return opening(
        theme,
        height,
        title=f"Mean KL against stored size of {source}",
        description=(
            "A plot: stored bits per weight from left to right, mean KL divergence to the "
            "original upwards, on a logarithmic axis. The card lists the same figures in a table."
        ),
        heading="Quality against size",
        subtitle=f"{source} · lower is closer to the original · bars are ± one standard error",
    )


def _x_scale(points: Iterable[_Point]) -> Scale:
    values = [point.bpw for point in points]
    room = max(0.03 * (max(values) - min(values)), 0.25)
    start, end = _LEFT + _TICK_ROOM, WIDTH - MARGIN - _TICK_ROOM
    low = max(min(values) - room, 0.0)
    return Scale(low=low, high=max(values) + room, start=start, end=end)


def _y_scale(points: Iterable[_Point]) -> Scale:
    values = []
    for point in points:
        low, high = point.ends_nats
        # The lower end of a bar near 0 is below the logarithmic axis: it is cut at the bottom.
        values += [max(low, point.kl_nats / 10), high]
    return log_scale(values, start=_BOTTOM, end=_TOP)


def _axes(plot: _Plot, this: QuantizedRow) -> Iterator[str]:
    """Grid and ticks; sizes are those of a model with as many weights as `this`."""
    theme = plot.theme
    yield small_text(theme, "mean KL (nats)", x=MARGIN, y=_TOP - 14)
    for value in log_ticks(plot.y):
        y = plot.height(value)
        yield _stroke(f"M{_LEFT} {trimmed(y)}H{WIDTH - MARGIN}", theme.border)
        yield small_text(theme, significant(value, 1), x=_LEFT - 12, y=y + 4, anchor="end")
    yield _stroke(f"M{_LEFT} {_BOTTOM}H{WIDTH - MARGIN}", theme.muted)
    yield small_text(theme, "bits/weight", x=_LEFT - 12, y=_BOTTOM + 22, anchor="end")
    bytes_per_bpw = this.num_bytes / this.stored_bpw if this.stored_bpw >= _MIN_BPW else 0
    if bytes_per_bpw:
        yield small_text(theme, "size", x=_LEFT - 12, y=_BOTTOM + 40, anchor="end")
    for value in linear_ticks(plot.x):
        x = plot.x.place(value)
        yield _stroke(f"M{trimmed(x)} {_BOTTOM}v5", theme.muted)
        yield small_text(theme, trimmed(value), x=x, y=_BOTTOM + 22, anchor="middle")
        if bytes_per_bpw:
            num_bytes = round(value * bytes_per_bpw)
            yield small_text(theme, size(num_bytes), x=x, y=_BOTTOM + 40, anchor="middle")


def _line(plot: _Plot, points: Iterable[_Point]) -> Iterator[str]:
    places = [plot.place(point) for point in sorted(points, key=lambda point: point.bpw)]
    if len(places) > 1:
        path = "L".join(f"{trimmed(x)} {trimmed(y)}" for x, y in places)
        yield _stroke(f"M{path}", plot.theme.accent, width=2, extra=' stroke-opacity="0.5"')


def _marks(plot: _Plot, point: _Point) -> Iterator[str]:
    """A point with its error bar and all figures as a tooltip."""
    x, y = plot.place(point)
    low, high = map(plot.height, point.ends_nats)
    color, background = plot.color(point), plot.theme.background
    yield f"<g><title>{escaped(point.tooltip)}</title>"
    if low != high:
        bar = f"M{trimmed(x)} {trimmed(low)}V{trimmed(high)}"
        ends = (end for end in (low, high) if end < _BOTTOM)
        caps = (f"M{trimmed(x - _CAP)} {trimmed(end)}h{2 * _CAP}" for end in ends)
        yield _stroke("".join((bar, *caps)), color, width=1.5)
    radius = _BIG_RADIUS if point.is_this else _RADIUS
    fill, rim = (color, background) if point.is_ours else (background, color)
    yield (
        f'<circle cx="{trimmed(x)}" cy="{trimmed(y)}" r="{radius}" fill="{fill}" '
        f'stroke="{rim}" stroke-width="1.5"/>'
    )
    if point.is_this:
        yield (
            f'<circle cx="{trimmed(x)}" cy="{trimmed(y)}" r="{_RING_RADIUS}" fill="none" '
            f'stroke="{color}" stroke-width="1.5"/>'
        )
    yield "</g>"


def _labels(plot: _Plot, points: Sequence[_Point]) -> Iterator[str]:
    """The labels that fit, this model's first; tooltips show all of them."""
    bounds = Box(left=_LEFT, top=_TOP - 24, right=WIDTH - 8, bottom=_BOTTOM - 2)
    labels = Labels(bounds=bounds)
    ours = sorted((point for point in points if point.is_ours), key=lambda point: point.bpw)
    for before, after in pairwise(ours):
        labels.line(*plot.place(before), *plot.place(after))
    for point in points:
        x, y = plot.place(point)
        reach = _RING_RADIUS if point.is_this else _RADIUS
        labels.taken.append(Box.around(x, y, reach + 1))
        low, high = map(plot.height, point.ends_nats)
        labels.line(x, low, x, high)
    for point in sorted(points, key=lambda point: (not point.is_this, point.is_ours)):
        width = len(point.caption) * _CHAR_WIDTH * (1.08 if point.is_this else 1)
        box = labels.beside(*plot.place(point), width=width, height=_LABEL_SIZE + 2)
        if box is not None:
            yield _label(plot, point, box)


def _label(plot: _Plot, point: _Point, box: Box) -> str:
    color = plot.theme.text if point.is_ours else plot.theme.muted
    weight = ' font-weight="600"' if point.is_this else ""
    center = (box.left + box.right) / 2
    return (
        f'<text x="{trimmed(center)}" y="{trimmed(box.bottom - 3)}" font-size="{_LABEL_SIZE}"'
        f'{weight} text-anchor="middle" fill="{color}" stroke="{plot.theme.background}" '
        f'stroke-width="3" paint-order="stroke">{escaped(point.caption)}</text>'
    )


def _stroke(path: str, color: str, *, width: float = 1, extra: str = "") -> str:
    return f'<path d="{path}" fill="none" stroke="{color}" stroke-width="{width}"{extra}/>'
