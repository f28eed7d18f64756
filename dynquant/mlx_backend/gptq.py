"""GPTQ: encode a weight column by column, each column's error mended by the columns after it.

Stock MLX groups are runs of neighbouring inputs, so columns cannot be sorted freely; the
groups, and the columns within each, are taken in order of falling second moment. A group's
scale and bias are fitted by least squares when its first column is reached, to the weights
as the feedback has moved them. Sweeps over the groups follow: each fits its scale and bias
again, given everything else, and then takes its codes one by one to their nearest best.

Sources: GPTQ (arXiv 2210.17323), with the Cholesky form of its section 3.3; the sweeps are
coordinate descent as in QuantEase (arXiv 2309.01885), here over scales and biases too.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import mlx.core as mx

from dynquant.core.formats import QuantFormat
from dynquant.mlx_backend.encoding import Encoded, affine, fit_groups, quantize_to

__all__ = ["Feedback", "conditional_variances", "encode_with_feedback"]

_DAMPING = 0.01  # of the mean diagonal, as in the paper
_MAX_DAMPING = 10.0
_TINY = 1e-30


@dataclass(frozen=True)
class Feedback:
    """What encoding takes from a covariance; layers that share their input share it.

    Attributes:
        order: Columns as they are encoded, (..., in).
        covariance: Second moments of the inputs in that order, damped, (..., in, in).
        factor: Upper U with UᵀU the inverse of `covariance`.
    """

    order: mx.array
    covariance: mx.array
    factor: mx.array

    @property
    def nbytes(self) -> int:
        """Memory that it takes."""
        return self.order.nbytes + self.covariance.nbytes + self.factor.nbytes

    @classmethod
    def of(cls, covariance: mx.array, group_size: int) -> Feedback:
        """Factor the second moments of the inputs, (..., in, in), float32, for a group size."""
        order = _column_order(covariance, group_size)
        upper, ridge = _upper_factor(covariance, order)
        with mx.stream(mx.cpu):
            factor = mx.linalg.tri_inv(upper, upper=True)
        feedback = cls(order, _ordered(covariance, order) + ridge, factor)
        mx.eval(feedback.order, feedback.covariance, feedback.factor)
        return feedback


def encode_with_feedback(
    weight: mx.array, feedback: Feedback, fmt: QuantFormat, *, num_sweeps: int = 0
) -> Encoded:
    """Store `weight` as an affine format with error feedback.

    Args:
        weight: (..., out, in), in the dtype of the scales and biases.
        feedback: Of the inputs, for the format's group size; leading axes as the weight's,
            or none.
        fmt: An affine format that fits the weight.
        num_sweeps: How often to go over all groups again.
    """
    wanted = _taken(weight.astype(mx.float32), feedback.order[..., None, :])
    groups = _fed_back(wanted, feedback.factor, fmt, weight.dtype)
    for _ in range(num_sweeps):
        groups = _swept(wanted, feedback.covariance, groups, fmt, weight.dtype)
    codes, scales, biases = zip(*groups, strict=True)
    size, order = fmt.group_size, feedback.order
    back = mx.argsort(order, axis=-1)[..., None, :]
    groups_back = mx.argsort(order[..., ::size] // size, axis=-1)[..., None, :]
    return affine(
        _taken(mx.concatenate(list(codes), axis=-1), back).astype(mx.uint32),
        _taken(mx.stack(list(scales), axis=-1), groups_back).astype(weight.dtype),
        _taken(mx.stack(list(biases), axis=-1), groups_back).astype(weight.dtype),
        fmt,
    )


class _Group(NamedTuple):
    """A group as it is stored: codes (..., out, group_size), scale and bias (..., out), float32."""

    codes: mx.array
    scale: mx.array
    bias: mx.array

    @property
    def weights(self) -> mx.array:
        return self.codes * self.scale[..., None] + self.bias[..., None]


def _fed_back(
    wanted: mx.array, factor: mx.array, fmt: QuantFormat, dtype: mx.Dtype
) -> list[_Group]:
    """The groups one after the other, the error of each mended by those that follow."""
    columns, groups = wanted, []
    for start in range(0, wanted.shape[-1], fmt.group_size):
        end = start + fmt.group_size
        block = factor[..., start:end, start:end]
        group = columns[..., : fmt.group_size]
        matter = mx.square(1.0 / mx.diagonal(block, axis1=-2, axis2=-1))[..., None, :]
        scale, bias = fit_groups(group, matter, fmt.bits, dtype)
        codes, errors = _encode_group(group, block, scale, bias, bits=fmt.bits)
        columns = columns[..., fmt.group_size :]
        if columns.shape[-1]:
            columns = columns - errors @ factor[..., start:end, end:]
        mx.eval(columns, codes, scale, bias)
        groups.append(_Group(codes, scale, bias))
    return groups


def _swept(
    wanted: mx.array,
    covariance: mx.array,
    groups: Sequence[_Group],
    fmt: QuantFormat,
    dtype: mx.Dtype,
) -> list[_Group]:
    """The groups with less E[(error · input)²] in every row, each improved in its turn."""
    stored = mx.concatenate([group.weights for group in groups], axis=-1)
    slope = (stored - wanted) @ covariance  # half the gradient of the loss
    found = []
    for index, old in enumerate(groups):
        span = slice(index * fmt.group_size, (index + 1) * fmt.group_size)
        block, mine = covariance[..., span, span], slope[..., span]
        fitted = _refitted(old, mine, block, dtype)
        new = _recoded(fitted, mine + (fitted.weights - old.weights) @ block, block, fmt.bits)
        slope = slope + (new.weights - old.weights) @ covariance[..., span, :]
        mx.eval(slope, *new)
        found.append(new)
    return found


def _refitted(group: _Group, slope: mx.array, block: mx.array, dtype: mx.Dtype) -> _Group:
    """The scale and bias of least loss for these codes, as stored, in rows where they are better.

    Args:
        group: A group.
        slope: Half the gradient of the loss at its weights, (..., out, group_size).
        block: Its part of the covariance, (..., group_size, group_size).
        dtype: What scales and biases will be rounded to.
    """
    codes, scale, bias = group
    by_codes = codes @ block
    cc, c1 = (by_codes * codes).sum(-1), by_codes.sum(-1)
    oo = block.sum((-2, -1))[..., None]
    c_slope, o_slope = (codes * slope).sum(-1), slope.sum(-1)
    determinant = cc * oo - c1 * c1
    singular = determinant <= 1e-6 * cc * oo
    step = (c1 * o_slope - oo * c_slope) / mx.where(singular, 1.0, determinant)
    new_scale = (scale + mx.where(singular, 0.0, step)).astype(dtype).astype(mx.float32)
    new_scale = mx.where(mx.abs(new_scale) < _TINY, scale, new_scale)
    step = new_scale - scale
    new_bias = (bias - (o_slope + c1 * step) / oo).astype(dtype).astype(mx.float32)
    shift = new_bias - bias
    change = 2 * (step * c_slope + shift * o_slope + step * shift * c1)
    better = change + step * step * cc + shift * shift * oo < 0
    return _Group(codes, mx.where(better, new_scale, scale), mx.where(better, new_bias, bias))


def _recoded(group: _Group, slope: mx.array, block: mx.array, bits: int) -> _Group:
    """Each code in its turn the one of least loss, given all others; arguments as `_refitted`."""
    weights, codes = group.weights, []
    for k in range(weights.shape[-1]):
        best = weights[..., k] - slope[..., k] / block[..., None, k, k]
        code = quantize_to(best, group.scale, group.bias, bits)
        moved = code * group.scale + group.bias - weights[..., k]
        slope = slope + moved[..., None] * block[..., None, k, :]
        codes.append(code)
    return _Group(mx.stack(codes, axis=-1), group.scale, group.bias)


def _encode_group(
    group: mx.array,
    block: mx.array,
    scale: mx.array,
    bias: mx.array,
    *,
    bits: int,
) -> tuple[mx.array, mx.array]:
    """Codes (..., out, group_size) of one group, and its errors divided by the pivots."""
    codes, errors = [], []
    rest = group
    for k in range(group.shape[-1]):
        column = rest[..., 0]
        code = quantize_to(column, scale, bias, bits)
        error = (column - (code * scale + bias)) / block[..., None, k, k]
        rest = rest[..., 1:] - error[..., None] * block[..., None, k, k + 1 :]
        codes.append(code)
        errors.append(error)
    return mx.stack(codes, axis=-1), mx.stack(errors, axis=-1)


def _taken(array: mx.array, columns: mx.array) -> mx.array:
    """`array` (..., n) with its last axis in the order of `columns` (..., n)."""
    return mx.take_along_axis(array, mx.broadcast_to(columns, array.shape), axis=-1)


def _ordered(covariance: mx.array, order: mx.array) -> mx.array:
    """Rows and columns of `covariance` in `order`."""
    rows = mx.broadcast_to(order[..., :, None], covariance.shape)
    return _taken(mx.take_along_axis(covariance, rows, axis=-2), order[..., None, :])


def _column_order(covariance: mx.array, group_size: int) -> mx.array:
    """Columns, (..., in): whole groups by falling mass, within each by falling second moment."""
    diagonal = mx.diagonal(covariance, axis1=-2, axis2=-1)
    masses = diagonal.reshape(*diagonal.shape[:-1], -1, group_size)
    groups = mx.argsort(-masses.sum(-1), axis=-1)[..., None]
    within = mx.take_along_axis(mx.argsort(-masses, axis=-1), groups, axis=-2)
    return (groups * group_size + within).reshape(diagonal.shape)


def conditional_variances(covariance: mx.array, group_size: int) -> mx.array:
    """What of each input's second moment the feedback cannot mend, (..., in), float32.

    It is the squared pivot of the factorization, and takes the place of the second moment
    in the cost of a format: the loss of GPTQ is the sum over columns of pivot² · error².

    Args:
        covariance: Second moments of the inputs, (..., in, in), float32.
        group_size: The group size whose column order is taken.
    """
    order = _column_order(covariance, group_size)
    pivots = mx.diagonal(_upper_factor(covariance, order)[0], axis1=-2, axis2=-1)
    return _taken(mx.square(pivots), mx.argsort(order, axis=-1))


def _upper_factor(covariance: mx.array, order: mx.array) -> tuple[mx.array, mx.array]:
    """Upper R with R·Rᵀ = C + D: a Cholesky factorization that starts at the last column.

    Returns:
        R, and the diagonal matrix D that it took, both in `order`.
    """
    ordered = _ordered(covariance, order)
    diagonal = mx.diagonal(ordered, axis1=-2, axis2=-1)
    mean = diagonal.mean(-1, keepdims=True)
    mean = mx.where(mean > 0, mean, 1.0)
    damping = _DAMPING
    while damping <= _MAX_DAMPING:
        ridge = mx.where(diagonal > 0, damping * mean, mean)[..., None] * mx.eye(ordered.shape[-1])
        with mx.stream(mx.cpu):
            lower = mx.linalg.cholesky((ordered + ridge)[..., ::-1, ::-1])
        if mx.isfinite(lower.sum()).item():
            return lower[..., ::-1, ::-1], ridge
        damping *= 10
    raise ValueError("the covariance is not positive definite")
