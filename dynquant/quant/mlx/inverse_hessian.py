"""The order of columns and the Cholesky factor of (H + λI)⁻¹ that GPTQ works with.

H are the second moments of a layer's inputs; λ is the damping, a share of their mean. With the
columns in the order in which they are encoded, the upper factor U of UᵀU = (H + λI)⁻¹ says by how
much later columns compensate for the error of an earlier one. In reverse order H + λI = L·Lᵀ, and
U is the mirror image of L⁻¹. Both are made in panels of rows, by products of matrices on the device
and small factors on the CPU. Beside H they take half a matrix, where LAPACK's routines as MLX calls
them take three (a layer of 14,336 inputs: 0.8 GB each).

Sources: GPTQ (arXiv 2210.17323), section 3.3, for the use of the factor; Higham, Accuracy and
Stability of Numerical Algorithms, chapters 10 and 14, for factors and inverses by blocks.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from math import prod
from typing import NamedTuple

import mlx.core as mx

__all__ = ["InverseHessian", "conditional_variances", "taken"]

_DAMPING = 0.01  # of the mean diagonal, as in the paper
_MAX_DAMPING = 10.0
_PANEL_ROWS = 512  # a multiple of every group size


@dataclass(frozen=True)
class InverseHessian:
    """Order and factor of one H; layers that share their input share it.

    Attributes:
        order: Columns as they are encoded, (..., in).
        hessian: H, (..., in, in), with the columns as in the weight; None where only the factor
            is needed.
        ridge: λ, added to its diagonal, (..., in), in the order of encoding.
        panels: L⁻¹ in runs of rows up to the diagonal, each (..., rows, columns).
    """

    order: mx.array
    hessian: mx.array | None
    ridge: mx.array
    panels: tuple[mx.array, ...]

    @property
    def nbytes(self) -> int:
        """Memory of all arrays."""
        arrays = (self.order, self.hessian, self.ridge, *self.panels)
        return sum(array.nbytes for array in arrays if array is not None)

    @classmethod
    def of(cls, hessian: mx.array, group_size: int) -> InverseHessian:
        """Factor the second moments of the inputs, (..., in, in), float32, for a group size."""
        order = _column_order(hessian, group_size)
        panels, ridge = _cholesky(hessian, order)
        return cls(order, hessian, ridge, _inverted(panels))

    def without_hessian(self) -> InverseHessian:
        """Without H, which only coordinate descent needs."""
        return replace(self, hessian=None)

    def factor(self, start: int, end: int) -> mx.array:
        """Rows of U from column `start` on, (..., end - start, in - start), of a whole group."""
        width = self.order.shape[-1]
        index, first = divmod(width - end, _PANEL_ROWS)
        panel = self.panels[index]
        rows = panel[..., first : first + end - start, : width - start]
        return rows[..., ::-1, ::-1]

    def rows(self, start: int, end: int) -> mx.array:
        """Rows of H + λI in the order of encoding, (..., end - start, in)."""
        assert self.hessian is not None
        rows = _part(self.hessian, self.order[..., start:end], self.order)
        index = mx.arange(end - start)
        return rows.at[..., index, index + start].add(self.ridge[..., start:end])

    def times(self, columns: mx.array) -> mx.array:
        """(H + λI) · `columns`, (..., in, n), both in the order of encoding."""
        assert self.hessian is not None
        back = mx.argsort(self.order, axis=-1)
        product = self.hessian @ _rows_taken(columns, back)
        mx.eval(product)  # otherwise the copies of many rows are in memory at once
        return _rows_taken(product, self.order) + self.ridge[..., None] * columns


def conditional_variances(hessian: mx.array, group_size: int) -> mx.array:
    """1 / U_kk² for each column k, (..., in), float32: its variance given the columns after it.

    In the cost of a format it takes the place of H_kk: the loss of GPTQ is Σ_k (error_k / U_kk)²,
    as later columns compensate for the rest.

    Args:
        hessian: Second moments of the inputs, (..., in, in), float32.
        group_size: The group size whose column order is taken.
    """
    order = _column_order(hessian, group_size)
    panels, _ = _cholesky(hessian, order)
    inverses = mx.concatenate([panel.inverse_pivots for panel in panels], axis=-1)[..., ::-1]
    return taken(1.0 / mx.square(inverses), mx.argsort(order, axis=-1))


def taken(array: mx.array, columns: mx.array) -> mx.array:
    """`array` (..., n) at the indices `columns` (..., m) of its last axis."""
    shape = (*array.shape[:-1], columns.shape[-1])
    return mx.take_along_axis(array, mx.broadcast_to(columns, shape), axis=-1)


class _Panel(NamedTuple):
    """Some rows of L: the part left of the block on the diagonal, and the inverse of that block."""

    before: mx.array
    inverse: mx.array

    @property
    def inverse_pivots(self) -> mx.array:
        return mx.diagonal(self.inverse, axis1=-2, axis2=-1)


def _cholesky(hessian: mx.array, order: mx.array) -> tuple[list[_Panel], mx.array]:
    """L, and λ in `order`; damping grows until the matrix has a factor."""
    diagonal = taken(mx.diagonal(hessian, axis1=-2, axis2=-1), order)
    mean = diagonal.mean(-1, keepdims=True)
    mean = mx.where(mean > 0, mean, 1.0)
    damping = _DAMPING
    while damping <= _MAX_DAMPING:
        ridge = mx.broadcast_to(damping * mean, diagonal.shape)
        panels = list[_Panel]()
        while len(panels) * _PANEL_ROWS < order.shape[-1]:
            panel = _next_panel(hessian, order[..., ::-1], ridge[..., ::-1], panels)
            pivots = panel.inverse_pivots
            if not mx.all(mx.isfinite(pivots) & (pivots > 0)).item():
                break
            panels.append(panel)
        else:
            return panels, ridge
        damping *= 10
    raise ValueError("H is not positive definite")


def _next_panel(
    hessian: mx.array, order: mx.array, ridge: mx.array, known: Sequence[_Panel]
) -> _Panel:
    """The rows of L after those `known`, evaluated step by step to bound the memory of copies.

    With A for the matrix in `order`: L_ij = (A_ij - Σ_k L_ik·L_jkᵀ)·L_jj⁻ᵀ, k before j, from left
    to right, and L_ii·L_iiᵀ = A_ii - Σ_k L_ik·L_ikᵀ.
    """
    start = len(known) * _PANEL_ROWS
    end = min(start + _PANEL_ROWS, order.shape[-1])
    rows = _part(hessian, order[..., start:end], order[..., :end])
    before = rows[..., :0]
    for panel in known:
        done = before.shape[-1]
        block = rows[..., done : done + _PANEL_ROWS] - before @ panel.before.swapaxes(-1, -2)
        block = block @ panel.inverse.swapaxes(-1, -2)
        before = mx.concatenate([before, block], axis=-1)
        mx.eval(before)
    index = mx.arange(end - start)
    corner = rows[..., start:].at[..., index, index].add(ridge[..., start:end])
    corner = corner - before @ before.swapaxes(-1, -2)
    mx.eval(corner)
    with mx.stream(mx.cpu):
        inverse = mx.linalg.tri_inv(mx.linalg.cholesky(corner))
    mx.eval(inverse)
    return _Panel(before, inverse)


def _inverted(panels: list[_Panel]) -> tuple[mx.array, ...]:
    """L⁻¹ in runs of rows up to the diagonal; takes the rows of L out of `panels` as it goes.

    X = L⁻¹ has X_ii = L_ii⁻¹ and X_i = -X_ii · Σ_j L_ij·X_j, j before i.
    """
    found = list[mx.array]()
    while panels:
        before, inverse = panels.pop(0)
        total = mx.zeros_like(before)
        for index, rows in enumerate(found):
            start, end = index * _PANEL_ROWS, rows.shape[-1]
            total[..., :end] = total[..., :end] + before[..., start:end] @ rows
            mx.eval(total)
        found.append(mx.concatenate([-inverse @ total, inverse], axis=-1))
        mx.eval(found[-1])
    return tuple(found)


def _part(matrix: mx.array, rows: mx.array, columns: mx.array) -> mx.array:
    """`rows` (..., m) and `columns` (..., n) of `matrix`, (..., m, n)."""
    return taken(_rows_taken(matrix, rows), columns[..., None, :])


def _rows_taken(matrix: mx.array, rows: mx.array) -> mx.array:
    """`rows` (..., m) of `matrix`, (..., m, n); runs of memory, which `take_along_axis` misses."""
    *lead, height, width = matrix.shape
    rows = mx.broadcast_to(rows, (*lead, rows.shape[-1]))
    firsts = height * mx.arange(prod(lead)).reshape(*lead, 1)
    return matrix.reshape(-1, width)[rows + firsts]


def _column_order(hessian: mx.array, group_size: int) -> mx.array:
    """Columns, (..., in): whole groups by falling mass, within each by falling second moment."""
    diagonal = mx.diagonal(hessian, axis1=-2, axis2=-1)
    masses = diagonal.reshape(*diagonal.shape[:-1], -1, group_size)
    groups = mx.argsort(-masses.sum(-1), axis=-1)[..., None]
    within = mx.take_along_axis(mx.argsort(-masses, axis=-1), groups, axis=-2)
    return (groups * group_size + within).reshape(diagonal.shape)
