"""GPTQ: encode a weight column by column, each column's error mended by the columns after it.

Stock MLX groups are runs of neighbouring inputs, so columns cannot be sorted freely; the
groups, and the columns within each, are taken in order of falling second moment. A group's
scale and bias are fitted by least squares when its first column is reached, to the weights
as the feedback has moved them.

Source: GPTQ (arXiv 2210.17323), with the Cholesky form of its section 3.3.
"""

from __future__ import annotations

import mlx.core as mx

from dynquant.core.formats import QuantFormat
from dynquant.mlx_backend.encoding import Encoded, affine, fit_groups, quantize_to

__all__ = ["conditional_variances", "encode_with_feedback"]

_DAMPING = 0.01  # of the mean diagonal, as in the paper
_MAX_DAMPING = 10.0


def encode_with_feedback(weight: mx.array, covariance: mx.array, fmt: QuantFormat) -> Encoded:
    """Store `weight` as an affine format with error feedback.

    Args:
        weight: (..., out, in), in the dtype of the scales and biases.
        covariance: Second moments of the inputs, (..., in, in), float32; leading axes
            as the weight's, or none.
        fmt: An affine format that fits the weight.
    """
    order = _column_order(covariance, fmt.group_size)
    factor = _inverse_factor(covariance, order)
    columns = _taken(weight.astype(mx.float32), order[..., None, :])
    size = fmt.group_size
    codes, scales, biases = [], [], []
    for start in range(0, columns.shape[-1], size):
        end = start + size
        block = factor[..., start:end, start:end]
        group = columns[..., :size]
        matter = mx.square(1.0 / mx.diagonal(block, axis1=-2, axis2=-1))[..., None, :]
        scale, bias = fit_groups(group, matter, fmt.bits, weight.dtype)
        code, errors = _encode_group(group, block, scale, bias, bits=fmt.bits)
        columns = columns[..., size:]
        if columns.shape[-1]:
            columns = columns - errors @ factor[..., start:end, end:]
        mx.eval(columns, code, scale, bias)
        codes.append(code)
        scales.append(scale)
        biases.append(bias)
    back = mx.argsort(order, axis=-1)[..., None, :]
    groups_back = mx.argsort(order[..., ::size] // size, axis=-1)[..., None, :]
    return affine(
        _taken(mx.concatenate(codes, axis=-1), back).astype(mx.uint32),
        _taken(mx.stack(scales, axis=-1), groups_back).astype(weight.dtype),
        _taken(mx.stack(biases, axis=-1), groups_back).astype(weight.dtype),
        fmt,
    )


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
    pivots = mx.diagonal(_upper_factor(covariance, order), axis1=-2, axis2=-1)
    return _taken(mx.square(pivots), mx.argsort(order, axis=-1))


def _inverse_factor(covariance: mx.array, order: mx.array) -> mx.array:
    """Upper U with UᵀU = C⁻¹, C the damped covariance, columns in `order`."""
    with mx.stream(mx.cpu):
        return mx.linalg.tri_inv(_upper_factor(covariance, order), upper=True)


def _upper_factor(covariance: mx.array, order: mx.array) -> mx.array:
    """Upper R with R·Rᵀ = C: a Cholesky factorization that starts at the last column."""
    backwards = order[..., ::-1]
    rows = mx.broadcast_to(backwards[..., :, None], covariance.shape)
    flipped = _taken(mx.take_along_axis(covariance, rows, axis=-2), backwards[..., None, :])
    diagonal = mx.diagonal(flipped, axis1=-2, axis2=-1)
    mean = diagonal.mean(-1, keepdims=True)
    mean = mx.where(mean > 0, mean, 1.0)
    damping = _DAMPING
    while damping <= _MAX_DAMPING:
        ridge = mx.where(diagonal > 0, damping * mean, mean)
        with mx.stream(mx.cpu):
            lower = mx.linalg.cholesky(flipped + ridge[..., None] * mx.eye(flipped.shape[-1]))
        if mx.isfinite(lower.sum()).item():
            return lower[..., ::-1, ::-1]
        damping *= 10
    raise ValueError("the covariance is not positive definite")
