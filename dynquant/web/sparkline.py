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


def sparkline(variants: Sequence[SizeVariant]) -> str:
    """The plot, in the colours of the page around it; empty where no figure can be drawn."""
    shown = [
        variant
        for variant in variants
        if math.isfinite(variant.mean_kl_nats) and variant.mean_kl_nats > 0
    ]
    if not shown:
        return ""
    y = log_scale((variant.mean_kl_nats for variant in shown), start=_BOTTOM, end=_TOP)
    sizes = [variant.stored_bpw for variant in shown]
    x = Scale(low=min(sizes) - 0.5, high=max(sizes) + 0.5, start=_LEFT, end=_RIGHT)
    places = [
        (x.place(variant.stored_bpw), y.place(math.log10(variant.mean_kl_nats)), variant)
        for variant in sorted(shown, key=lambda variant: variant.stored_bpw)
    ]
    line = " ".join(f"{trimmed(left)},{trimmed(top)}" for left, top, _ in places)
    dots = "".join(_dot(left, top, variant) for left, top, variant in places)
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


def _dot(left: float, top: float, variant: SizeVariant) -> str:
    label = f"{variant.stored_bpw:.2f} bits per weight: {significant(variant.mean_kl_nats, 2)} nats"
    return (
        f'<circle cx="{trimmed(left)}" cy="{trimmed(top)}" r="4"><title>{text(label)}</title>'
        f'</circle><text x="{trimmed(left)}" y="{_HEIGHT - 6}">{variant.target_bpw:g}</text>'
    )
