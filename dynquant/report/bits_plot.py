"""The picture on the card: the stored bits per weight of each layer."""

from __future__ import annotations

from bisect import bisect_right
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

from dynquant.report.facts import ModelFacts
from dynquant.report.layer_grid import GridCell, LayerGrid, layer_grid
from dynquant.report.numbers import count, percent
from dynquant.report.svg import (
    DARK,
    LIGHT,
    MARGIN,
    MONOSPACED,
    WIDTH,
    Theme,
    escaped,
    opening,
    shortened,
    small_text,
    trimmed,
)
from dynquant.texts.markdown import clean

__all__ = ["layer_bits_svg"]

_LABEL_SIZE = 12
_CHAR_WIDTH = 0.6 * _LABEL_SIZE  # of a monospaced font
_MAX_LABEL_CHARS = 32
_LABEL_GAP = 12
_HEADER_HEIGHT = 74
_GROUP_GAP = 8
_MAX_CELL_WIDTH = 96
_TICK_SPACING = 30
_TICK_STEPS = (1, 2, 5, 10, 20, 25, 50, 100, 200, 500, 1000)
_MAX_OUTSIDE_ROWS = 16
_MIN_OUTSIDE_WIDTH = 44
_MAX_TOOLTIP_LAYERS = 3
_MIN_CELL_FONT, _MAX_CELL_FONT = 8, 11
_LEGEND_ENTRY_WIDTH = 104
_LEGEND_LINE = 24

_INK_LUMA = 120  # above it black has more contrast than white

# Stored bits of the colours of a theme; between them colours are mixed.
_COLOR_BITS = (2.0, 3.0, 4.0, 5.0, 6.0, 8.0, 16.0)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Canvas:
    """Layout and colours of the picture, and the elements drawn so far."""

    theme: Theme
    left: float
    cell_width: float
    row_height: int
    drawn: list[str] = field(default_factory=list)

    @property
    def gap(self) -> int:
        """Space between two cells."""
        return _by_size(self.cell_width, {12: 2, 5: 1, 0: 0})

    def cell(self, cell: GridCell, *, x: float, y: float, width: float) -> None:
        """A cell: its colour, its bits where they fit, and its layers as a tooltip."""
        bits = trimmed(cell.bits_per_weight)
        color = _color(cell.bits_per_weight, self.theme)
        hidden = len(cell.names) - _MAX_TOOLTIP_LAYERS
        names = "; ".join(cell.names[:_MAX_TOOLTIP_LAYERS]) + (f" and {hidden} more" * (hidden > 0))
        tooltip = f"<title>{escaped(f'{names}: {bits} bits per weight')}</title>"
        self.rect(x=x, y=y, width=width, height=self.row_height - 2, color=color, inner=tooltip)
        # The largest size at which `4.25` fits; a digit is about 0.56 of it wide.
        font_size = min(int((width - 1) / (4 * 0.56)), _MAX_CELL_FONT)
        if font_size >= _MIN_CELL_FONT:
            center, base = x + width / 2, y + self.row_height / 2 - 1 + 0.36 * font_size
            self.drawn.append(
                f'<text x="{trimmed(center)}" y="{trimmed(base)}" font-size="{font_size}" '
                f'text-anchor="middle" fill="{_ink(color)}" pointer-events="none">{bits}</text>'
            )

    def rect(
        self, *, x: float, y: float, width: float, height: float, color: str, inner: str = ""
    ) -> None:
        """A rectangle, rounded where it is wide enough."""
        radius = _by_size(width, {9: 3, 4: 1, 0: 0})
        self.drawn.append(
            f'<rect x="{trimmed(x)}" y="{trimmed(y)}" width="{trimmed(width)}" '
            f'height="{trimmed(height)}" rx="{radius}" fill="{color}">{inner}</rect>'
        )

    def label(self, label: str, *, y: float) -> None:
        """Name of a row."""
        self.drawn.append(
            f'<text x="{trimmed(self.left - _LABEL_GAP)}" '
            f'y="{trimmed(y + self.row_height / 2 + 3)}" font-family="{MONOSPACED}" '
            f'font-size="{_LABEL_SIZE}" text-anchor="end" fill="{self.theme.text}">'
            f"{escaped(shortened(label, _MAX_LABEL_CHARS))}</text>"
        )

    def small(self, text: str, *, x: float, y: float, anchor: str = "start") -> None:
        """A line beside the data."""
        self.drawn.append(small_text(self.theme, text, x=x, y=y, anchor=anchor))


def layer_bits_svg(facts: ModelFacts, *, dark: bool) -> str:
    """Draw the stored bits of each layer: blocks from left to right, roles from top to bottom.

    The SVG is self-contained and depends on `facts` alone.

    Args:
        facts: The model.
        dark: For a dark page.
    """
    grid = layer_grid(facts)
    canvas = _canvas(grid, DARK if dark else LIGHT)
    y: float = _HEADER_HEIGHT
    if grid.rows:
        y = _draw_blocks(canvas, grid, y)
    if grid.outside:
        y = _draw_outside(canvas, grid, y)
    y = _draw_legend(canvas, facts, y)
    return "\n".join([*_opening(facts, canvas.theme, y), *canvas.drawn, "</svg>", ""])


def _canvas(grid: LayerGrid, theme: Theme) -> _Canvas:
    labels = [row.label for row in grid.rows] + [label for label, _ in grid.outside]
    num_chars = min(max([len(clean(label)) for label in labels], default=0), _MAX_LABEL_CHARS)
    left = MARGIN + max(num_chars, len("block")) * _CHAR_WIDTH + _LABEL_GAP
    cell_width = (WIDTH - MARGIN - left) / max(len(grid.blocks), 1)
    return _Canvas(
        theme=theme,
        left=left,
        cell_width=min(cell_width, _MAX_CELL_WIDTH),
        row_height=_by_size(len(grid.rows), {17: 20, 9: 24, 0: 28}),
    )


def _opening(facts: ModelFacts, theme: Theme, height: float) -> Iterator[str]:
    name = shortened(facts.name, 72)
    return opening(
        theme,
        height,
        title=f"Stored bits per weight of each layer of {name}",
        description=(
            "A heat map: one column per block, one row per role of a layer, coloured by stored "
            "bits per weight. The card lists the same figures in a table."
        ),
        heading="Bits of each layer",
        subtitle=f"{name} · {facts.plan.stored_bpw:.2f} bits per weight over the whole model",
    )


def _draw_blocks(canvas: _Canvas, grid: LayerGrid, top: float) -> float:
    """Draw the heat map with its ticks; return where the next part starts."""
    y = top
    parent = grid.rows[0].parent
    columns = {block: column for column, block in enumerate(grid.blocks)}
    width = canvas.cell_width - canvas.gap
    for row in grid.rows:
        y += _GROUP_GAP if row.parent != parent else 0
        parent = row.parent
        canvas.label(row.label, y=y)
        if len(row.cells) < len(grid.blocks):  # a track behind the blocks without this role
            canvas.rect(
                x=canvas.left,
                y=y,
                width=canvas.cell_width * len(grid.blocks) - canvas.gap,
                height=canvas.row_height - 2,
                color=canvas.theme.empty,
            )
        for block, cell in row.cells.items():
            x = canvas.left + columns[block] * canvas.cell_width
            canvas.cell(cell, x=x, y=y, width=width)
        y += canvas.row_height
    y += 14
    canvas.small("block", x=canvas.left - _LABEL_GAP, y=y, anchor="end")
    fitting = (step for step in _TICK_STEPS if step * canvas.cell_width >= _TICK_SPACING)
    for column in range(0, len(grid.blocks), next(fitting, _TICK_STEPS[-1])):
        center = canvas.left + column * canvas.cell_width + width / 2
        canvas.small(str(grid.blocks[column]), x=center, y=y, anchor="middle")
    return y + 24


def _draw_outside(canvas: _Canvas, grid: LayerGrid, top: float) -> float:
    """Draw the layers outside of the blocks; return where the next part starts."""
    canvas.small("outside the blocks", x=canvas.left, y=top)
    y = top + 9
    width = max(canvas.cell_width - canvas.gap, _MIN_OUTSIDE_WIDTH)
    for label, cell in grid.outside[:_MAX_OUTSIDE_ROWS]:
        canvas.label(label, y=y)
        canvas.cell(cell, x=canvas.left, y=y, width=width)
        weights = f"{count(cell.num_weights)} weights"
        canvas.small(weights, x=canvas.left + width + 10, y=y + canvas.row_height / 2 + 3)
        y += canvas.row_height
    if (hidden := len(grid.outside) - _MAX_OUTSIDE_ROWS) > 0:
        canvas.small(f"and {hidden} more", x=canvas.left, y=y + 14)
        y += canvas.row_height
    return y + 8


def _draw_legend(canvas: _Canvas, facts: ModelFacts, top: float) -> float:
    """Draw the legend of colours; return the height of the picture."""
    theme = canvas.theme
    num_weights: Counter[str] = Counter()
    colors: dict[str, str] = {}
    for layer in facts.layers:
        bits = layer.stored_bits(facts.plan.formats[layer.path]) / layer.num_weights
        num_weights[trimmed(bits)] += layer.num_weights
        colors[trimmed(bits)] = _color(bits, theme)
    canvas.drawn.append(
        f'<path d="M{MARGIN} {trimmed(top)}H{WIDTH - MARGIN}" stroke="{theme.border}"/>'
    )
    title = "Stored bits per weight, and the share of these weights"
    canvas.small(title, x=MARGIN, y=top + 22)
    per_line = (WIDTH - 2 * MARGIN) // _LEGEND_ENTRY_WIDTH
    y = top + 34
    for i, label in enumerate(sorted(num_weights, key=float)):
        x = MARGIN + i % per_line * _LEGEND_ENTRY_WIDTH
        line_y = y + i // per_line * _LEGEND_LINE
        share = percent(num_weights[label] / num_weights.total())
        canvas.rect(x=x, y=line_y, width=14, height=14, color=colors[label])
        canvas.drawn.append(
            f'<text x="{x + 20}" y="{trimmed(line_y + 11.5)}" font-size="12" '
            f'fill="{theme.text}">{label} <tspan fill="{theme.muted}">· {escaped(share)}</tspan>'
            "</text>"
        )
    num_lines = -(-len(num_weights) // per_line)
    return y + num_lines * _LEGEND_LINE + 8


def _color(bits: float, theme: Theme) -> str:
    """Colour of `bits`, mixed from the two nearest anchors."""
    place = min(max(bits, _COLOR_BITS[0]), _COLOR_BITS[-1])
    upper = min(bisect_right(_COLOR_BITS, place), len(_COLOR_BITS) - 1)
    lower = upper - 1
    share = (place - _COLOR_BITS[lower]) / (_COLOR_BITS[upper] - _COLOR_BITS[lower])
    mixed = (
        round(low + share * (high - low))
        for low, high in zip(_rgb(theme.bits[lower]), _rgb(theme.bits[upper]), strict=True)
    )
    return "#" + "".join(f"{channel:02x}" for channel in mixed)


def _ink(color: str) -> str:
    """Black or white, whichever is easier to read on `color` (weights of Rec. 601)."""
    red, green, blue = _rgb(color)
    return "#10151f" if 0.299 * red + 0.587 * green + 0.114 * blue > _INK_LUMA else "#ffffff"


def _rgb(color: str) -> tuple[int, int, int]:
    return int(color[1:3], 16), int(color[3:5], 16), int(color[5:7], 16)


def _by_size(size: float, choices: Mapping[int, int]) -> int:
    """The choice of the largest limit that `size` reaches; limits descend to 0."""
    return next(choice for limit, choice in choices.items() if size >= limit)
