"""The Gram matrix XᵀX of a layer's inputs, summed up batch by batch in its lower half."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import mlx.core as mx

__all__ = ["GramMatrix"]

# Narrower matrices are made at once: there the copies for the slices cost as much as they save.
_WIDE = 4096
_PANEL_ROWS = 1024


class GramMatrix:
    """A symmetric matrix (..., n, n), float32; a wide one as runs of its rows up to the diagonal.

    Adding up panels takes half the operations, and the memory of one such matrix instead of two,
    since each panel is freed as the next is made.

    Args:
        panels: Consecutive runs of rows, each (..., rows, columns up to the diagonal).
    """

    def __init__(self, panels: Sequence[mx.array]) -> None:
        self._panels = list(panels)

    @classmethod
    def of(cls, x: mx.array) -> GramMatrix:
        """XᵀX of vectors (..., vectors, n), float32."""
        width, flipped = x.shape[-1], x.swapaxes(-1, -2)
        if width <= _WIDE:
            return cls([flipped @ x])
        flipped = mx.contiguous(flipped)  # one copy, instead of one for each slice
        ends = [min(start + _PANEL_ROWS, width) for start in range(0, width, _PANEL_ROWS)]
        return cls(
            [
                flipped[..., start:end, :] @ flipped[..., :end, :].swapaxes(-1, -2)
                for start, end in zip([0, *ends], ends, strict=False)
            ]
        )

    @classmethod
    def stacked(cls, parts: Sequence[GramMatrix]) -> GramMatrix:
        """(len(parts), ..., n, n)."""
        panels = zip(*(part.arrays() for part in parts), strict=True)
        return cls([mx.stack(list(same)) for same in panels])

    def mapped(self, change: Callable[[mx.array], mx.array]) -> GramMatrix:
        """With `change` applied to each panel; it must keep the last two axes."""
        return GramMatrix([change(panel) for panel in self._panels])

    def __add__(self, other: GramMatrix) -> GramMatrix:
        """Sums over both."""
        pairs = zip(self._panels, other.arrays(), strict=True)
        return GramMatrix([mine + added for mine, added in pairs])

    def arrays(self) -> list[mx.array]:
        """The panels, to be evaluated."""
        return self._panels

    @property
    def diagonal(self) -> mx.array:
        """(..., n)."""
        return mx.concatenate(
            [
                mx.diagonal(panel, panel.shape[-1] - panel.shape[-2], -2, -1)
                for panel in self._panels
            ],
            axis=-1,
        )

    def whole(self) -> mx.array:
        """(..., n, n); replaces the panels, so no further matrix can be added."""
        if len(self._panels) > 1:
            *lead, _, width = self._panels[-1].shape
            full = mx.zeros((*lead, width, width))
            for panel in self._panels:
                end = panel.shape[-1]
                start = end - panel.shape[-2]
                full[..., start:end, :end] = panel
                full[..., :start, start:end] = panel[..., :start].swapaxes(-1, -2)
            mx.eval(full)
            self._panels = [full]
        return self._panels[0]
