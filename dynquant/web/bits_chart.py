"""A bar chart of the bits of each layer: a strip for each role, a bar for each block."""

from __future__ import annotations

from collections.abc import Mapping

from dynquant.report.facts import ModelFacts
from dynquant.report.layer_grid import GridCell, layer_grid
from dynquant.report.svg import trimmed
from dynquant.web.markup import text

__all__ = ["bits_chart"]

_HEIGHT = 40
_PITCH, _BAR = 10, 8
_LEAST_SCALE_BITS = 8.5
"""Minimum scale of the chart, so that charts of two models are comparable."""


def bits_chart(facts: ModelFacts) -> str:
    """The chart, in the colours and at the width of the page around it."""
    grid = layer_grid(facts)
    strips = {row.label: row.cells for row in grid.rows}
    strips |= {label: {0: cell} for label, cell in grid.outside}
    bits = [cell.bits_per_weight for cells in strips.values() for cell in cells.values()]
    top = max([_LEAST_SCALE_BITS, *bits])
    num_blocks = len(grid.blocks)
    rows = "".join(_strip(label, cells, grid.blocks, top) for label, cells in strips.items())
    note = (
        f"one bar for each of {num_blocks} blocks" if num_blocks > 1 else "one bar for each layer"
    )
    return (
        '<figure class="dq-bits"><figcaption>Stored bits per weight of each layer, by role: '
        f"{note}; the number is the mean</figcaption>{rows}</figure>"
    )


def _strip(label: str, cells: Mapping[int, GridCell], blocks: tuple[int, ...], top: float) -> str:
    """One role; a block without this role has no bar."""
    places = {block: place for place, block in enumerate(blocks)} if len(cells) > 1 else {}
    width = _PITCH * max(1, len(blocks) if places else 1)
    bars = "".join(
        _bar(cell, left=_PITCH * places.get(block, 0), width=_BAR if places else width, top=top)
        for block, cell in sorted(cells.items())
    )
    weights = sum(cell.num_weights for cell in cells.values())
    mean = sum(cell.stored_bits for cell in cells.values()) / weights
    values = [cell.bits_per_weight for cell in cells.values()]
    spread = f", from {min(values):.3g} to {max(values):.3g}" if len(values) > 1 else ""
    described = text(f"{label}: {mean:.2f} bits per weight{spread}")
    return (
        f'<div class="dq-strip"><code>{text(label)}</code>'
        f'<svg viewBox="0 0 {width} {_HEIGHT}" preserveAspectRatio="none" role="img" '
        f'aria-label="{described}">{bars}</svg><span>{mean:.2f}</span></div>'
    )


def _bar(cell: GridCell, *, left: float, width: float, top: float) -> str:
    height = _HEIGHT * cell.bits_per_weight / top
    names = text(f"{cell.bits_per_weight:.3g} bits per weight: {', '.join(cell.names[:4])}")
    return (
        f'<rect x="{trimmed(left)}" y="{trimmed(_HEIGHT - height)}" width="{trimmed(width)}" '
        f'height="{trimmed(height)}"><title>{names}</title></rect>'
    )
