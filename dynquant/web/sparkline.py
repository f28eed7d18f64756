"""A small plot of mean KL against bits per weight."""

from __future__ import annotations

import math
from collections.abc import Sequence

from dynquant.report.axes import Scale, log_scale
from dynquant.report.facts import SizeVariant
from dynquant.report.numbers import significant
from dynquant.report.svg import trimmed
from dynquant.web.markup import text

__all__ = ["sparkline"]

_WIDTH, _HEIGHT = 240, 84
_LEFT, _RIGHT, _TOP, _BOTTOM = 14, 226, 14, 60


def sparkline(rungs: Sequence[SizeVariant]) -> str:
    """The plot, in the colours of the page around it; empty where no figure can be drawn."""
    shown = [rung for rung in rungs if math.isfinite(rung.mean_kl_nats) and rung.mean_kl_nats > 0]
    if not shown:
        return ""
    y = log_scale((rung.mean_kl_nats for rung in shown), start=_BOTTOM, end=_TOP)
    sizes = [rung.stored_bpw for rung in shown]
    x = Scale(low=min(sizes) - 0.5, high=max(sizes) + 0.5, start=_LEFT, end=_RIGHT)
    places = [
        (x.place(rung.stored_bpw), y.place(math.log10(rung.mean_kl_nats)), rung)
        for rung in sorted(shown, key=lambda rung: rung.stored_bpw)
    ]
    line = " ".join(f"{trimmed(left)},{trimmed(top)}" for left, top, _ in places)
    dots = "".join(_dot(left, top, rung) for left, top, rung in places)
    best, worst = places[-1][2], places[0][2]
    description = (
        f"Mean KL from {significant(worst.mean_kl_nats, 2)} nats at {worst.stored_bpw:.2f} bits "
        f"per weight to {significant(best.mean_kl_nats, 2)} at {best.stored_bpw:.2f}."
    )
    return (
        f'<svg class="dq-spark" viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img" '
        f'aria-label="{text(description)}"><line x1="{_LEFT}" x2="{_RIGHT}" y1="{_BOTTOM + 4}" '
        f'y2="{_BOTTOM + 4}"/><polyline points="{line}"/>{dots}</svg>'
    )


def _dot(left: float, top: float, rung: SizeVariant) -> str:
    label = f"{rung.stored_bpw:.2f} bits per weight: {significant(rung.mean_kl_nats, 2)} nats"
    return (
        f'<circle cx="{trimmed(left)}" cy="{trimmed(top)}" r="4"><title>{text(label)}</title>'
        f'</circle><text x="{trimmed(left)}" y="{_HEIGHT - 6}">{rung.target_bpw:g}</text>'
    )
