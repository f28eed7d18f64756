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

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate, groupby
from typing import NamedTuple

import mlx.core as mx
import numpy as np

from dynquant.quant.formats import QuantFormat
from dynquant.quant.mlx.encoding import Encoded, affine, fit_groups
from dynquant.quant.mlx.inverse_hessian import InverseHessian, taken

__all__ = ["encode_batch", "encode_with_feedback"]

_TINY = 1e-30
_RUN = 16
# Encoded at a time. More gain nothing on a CPU and take memory for numbers of 32 bits; a GPU has
# use for more.
_TOGETHER_WEIGHTS = {mx.cpu: 1 << 22, mx.gpu: 1 << 25}


def encode_with_feedback(
    weight: mx.array, feedback: InverseHessian, fmt: QuantFormat, *, num_sweeps: int = 0
) -> Encoded:
    """Store `weight` as an affine format with error feedback.

    Args:
        weight: (..., out, in), in the dtype of the scales and biases.
        feedback: Of the inputs, for the format's group size; leading axes as the weight's,
            or none.
        fmt: An affine format that fits the weight.
        num_sweeps: How often to go over all groups again.
    """
    return encode_batch([(weight, fmt)], feedback, num_sweeps=num_sweeps)[0]


def encode_batch(
    parts: Sequence[tuple[mx.array, QuantFormat]], feedback: InverseHessian, *, num_sweeps: int = 0
) -> list[Encoded]:
    """Store weights that share their inputs, each as a format of its own.

    The columns come one after the other, each in operations on one number per row: the more
    rows there are, the less the operations themselves cost. The rows do not touch each other,
    so those of a large weight are taken in several parts.

    Args:
        parts: Weights (..., out, in) of one dtype, which the scales and biases will have, and
            affine formats of one group size; neighbours of one width are fitted at once.
        feedback: As for `encode_with_feedback`.
        num_sweeps: How often to go over all groups again.
    """
    found = [list[Encoded]() for _ in parts]
    for batch in _of_bounded_size(parts, _TOGETHER_WEIGHTS[mx.default_device().type]):
        pieces = [(parts[index][0][..., rows, :], parts[index][1]) for index, rows in batch]
        encoded = _encoded_at_once(pieces, feedback, num_sweeps)
        mx.eval([list(each.arrays.values()) for each in encoded])
        for (index, _), each in zip(batch, encoded, strict=True):
            found[index].append(each)
    return [_below_each_other(pieces) for pieces in found]


def _of_bounded_size(
    parts: Sequence[tuple[mx.array, QuantFormat]], limit: int
) -> Iterator[list[tuple[int, slice]]]:
    """Batches of rows of `parts`, each the index of a part and rows of it, of `limit` weights."""
    batch, held = list[tuple[int, slice]](), 0
    for index, (weight, _) in enumerate(parts):
        num_rows = weight.shape[-2]
        per_row = weight.size // num_rows
        step = max(1, limit // per_row)
        for start in range(0, num_rows, step):
            rows = slice(start, min(start + step, num_rows))
            size = per_row * (rows.stop - rows.start)
            if batch and held + size > limit:
                yield batch
                batch, held = [], 0
            batch.append((index, rows))
            held += size
    yield batch


def _below_each_other(pieces: Sequence[Encoded]) -> Encoded:
    """One weight of the rows of all `pieces`."""
    if len(pieces) == 1:
        return pieces[0]
    names, fmt = pieces[0].arrays, pieces[0].fmt
    arrays = {name: mx.concatenate([p.arrays[name] for p in pieces], axis=-2) for name in names}
    mx.eval(arrays)
    return Encoded(arrays, fmt)


def _encoded_at_once(
    parts: Sequence[tuple[mx.array, QuantFormat]], feedback: InverseHessian, num_sweeps: int
) -> list[Encoded]:
    """As `encode_batch`, all rows at once; not yet evaluated."""
    size, order = parts[0][1].group_size, feedback.order
    widths = _Widths.of([(weight.shape[-2], fmt.bits) for weight, fmt in parts])
    wanted = _columns_first([weight for weight, _ in parts], order)
    dtype = parts[0][0].dtype
    groups = _gptq_pass(wanted, feedback, size, widths, dtype)
    for _ in range(num_sweeps):
        groups = _coordinate_descent(wanted, feedback, groups, widths, dtype)
    back = mx.argsort(order, axis=-1)[..., None, :]
    groups_back = mx.argsort(order[..., ::size] // size, axis=-1)[..., None, :]
    codes = taken(mx.concatenate([g.codes for g in groups], axis=-2).swapaxes(-1, -2), back)
    scales = taken(mx.stack([g.scale for g in groups], axis=-1), groups_back).astype(dtype)
    biases = taken(mx.stack([g.bias for g in groups], axis=-1), groups_back).astype(dtype)
    codes = codes.astype(mx.uint32)
    return [
        affine(codes[..., rows, :], scales[..., rows, :], biases[..., rows, :], fmt)
        for rows, (_, fmt) in zip(widths.spans, parts, strict=True)
    ]


def _columns_first(weights: Sequence[mx.array], order: mx.array) -> mx.array:
    """All rows, (..., in, out), float32: a column of many rows is then one run of memory."""
    ordered = [taken(weight.astype(mx.float32), order[..., None, :]) for weight in weights]
    return mx.contiguous(mx.concatenate(ordered, axis=-2).swapaxes(-1, -2))


@dataclass(frozen=True)
class _Widths:
    """Which rows are stored in how many bits.

    Attributes:
        spans: The rows of each part.
        bits: Width of a code in each part.
        top: The highest code of each row, (out,), float32.
    """

    spans: Sequence[slice]
    bits: Sequence[int]
    top: mx.array

    @classmethod
    def of(cls, parts: Sequence[tuple[int, int]]) -> _Widths:
        """For parts of so many rows in so many bits."""
        ends = list(accumulate(rows for rows, _ in parts))
        spans = [slice(end - rows, end) for end, (rows, _) in zip(ends, parts, strict=True)]
        tops = [mx.full((rows,), 2.0**bits - 1) for rows, bits in parts]
        return cls(spans, [bits for _, bits in parts], mx.concatenate(tops))

    def fit(self, group: mx.array, matter: mx.array, dtype: mx.Dtype) -> tuple[mx.array, mx.array]:
        """`fit_groups` of each part's rows in its width; `group` is (..., out, group_size)."""
        runs = [
            (bits, [s for _, s in run])
            for bits, run in groupby(
                zip(self.bits, self.spans, strict=True), key=lambda pair: pair[0]
            )
        ]
        found = [
            fit_groups(group[..., spans[0].start : spans[-1].stop, :], matter, bits, dtype)
            for bits, spans in runs
        ]
        scales, biases = zip(*found, strict=True)
        return mx.concatenate(list(scales), axis=-1), mx.concatenate(list(biases), axis=-1)


class _Group(NamedTuple):
    """A group as it is stored: codes (..., group_size, out), scale and bias (..., out), float32.

    The codes are bytes, as those of all groups are there at once.
    """

    codes: mx.array
    scale: mx.array
    bias: mx.array

    @property
    def levels(self) -> mx.array:
        return self.codes.astype(mx.float32)

    @property
    def weights(self) -> mx.array:
        return self.levels * self.scale[..., None, :] + self.bias[..., None, :]


def _gptq_pass(
    wanted: mx.array, feedback: InverseHessian, group_size: int, widths: _Widths, dtype: mx.Dtype
) -> list[_Group]:
    """The groups one after the other, the error of each mended by those that follow."""
    columns, groups = wanted, []
    for start in range(0, wanted.shape[-2], group_size):
        factor = feedback.factor(start, start + group_size)
        pivots = mx.diagonal(factor, axis1=-2, axis2=-1)
        onwards = factor / pivots[..., None]
        group = columns[..., :group_size, :]
        by_row = mx.contiguous(group.swapaxes(-1, -2))
        scale, bias = widths.fit(by_row, mx.square(1.0 / pivots)[..., None, :], dtype)
        targets = (group - bias[..., None, :]) / scale[..., None, :]
        codes, moves = _column_order(targets, onwards[..., :group_size], widths.top)
        columns = columns[..., group_size:, :]
        if columns.shape[-2]:
            moved = moves * scale[..., None, :]
            columns = columns + onwards[..., group_size:].swapaxes(-1, -2) @ moved
        found = _Group(codes.astype(mx.uint8), scale, bias)
        mx.eval(columns, *found)
        groups.append(found)
    return groups


def _coordinate_descent(
    wanted: mx.array,
    feedback: InverseHessian,
    groups: Sequence[_Group],
    widths: _Widths,
    dtype: mx.Dtype,
) -> list[_Group]:
    """The groups with less E[(error · input)²] in every row, each improved in its turn."""
    size, found = groups[0].codes.shape[-2], []
    spans = [slice(index * size, (index + 1) * size) for index in range(len(groups))]
    errors = [old.weights - wanted[..., span, :] for old, span in zip(groups, spans, strict=True)]
    slope = feedback.times(mx.concatenate(errors, axis=-2))  # half the gradient of the loss
    del errors
    for old, span in zip(groups, spans, strict=True):
        rows, mine = feedback.rows(span.start, span.stop), slope[..., span, :]
        block = rows[..., span]
        fitted = _refitted(old, mine, block, dtype)
        new = _recoded(fitted, mine + block @ (fitted.weights - old.weights), block, widths.top)
        slope = slope + rows.swapaxes(-1, -2) @ (new.weights - old.weights)
        mx.eval(slope, *new)
        found.append(new)
    return found


def _refitted(group: _Group, slope: mx.array, block: mx.array, dtype: mx.Dtype) -> _Group:
    """The scale and bias of least loss for these codes, as stored, in rows where they are better.

    Args:
        group: A group.
        slope: Half the gradient of the loss at its weights, (..., group_size, out).
        block: Its part of the covariance, (..., group_size, group_size).
        dtype: What scales and biases will be rounded to.
    """
    codes, scale, bias = group.levels, group.scale, group.bias
    by_codes = block @ codes
    cc, c1 = (by_codes * codes).sum(-2), by_codes.sum(-2)
    oo = block.sum((-2, -1))[..., None]
    c_slope, o_slope = (codes * slope).sum(-2), slope.sum(-2)
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
    return _Group(group.codes, mx.where(better, new_scale, scale), mx.where(better, new_bias, bias))


def _recoded(group: _Group, slope: mx.array, block: mx.array, top: mx.array) -> _Group:
    """Each code in its turn the one of least loss, given all others; arguments as `_refitted`."""
    diagonal = mx.diagonal(block, axis1=-2, axis2=-1)
    targets = group.levels - slope / (diagonal[..., None] * group.scale[..., None, :])
    codes, _ = _column_order(targets, -block / diagonal[..., None, :], top, group.levels)
    return _Group(codes.astype(mx.uint8), group.scale, group.bias)


def _column_order(
    targets: mx.array, coupling: mx.array, top: mx.array, old: mx.array | None = None
) -> tuple[mx.array, mx.array]:
    """Round column after column, and let what each moves by change where the later ones should go.

    Args:
        targets: Where each code should go, given those before it, (..., group_size, out).
        coupling: How far column j's target moves with column k, at [..., k, j].
        top: The highest code of each row, (out,).
        old: Codes that are moved from; without them it is their targets.

    Returns:
        Codes and by how much each moved, (..., group_size, out), float32.
    """
    on_cpu = mx.default_device() == mx.cpu
    return (_in_turn_by_numpy if on_cpu else _in_turn_by_mlx)(targets, coupling, top, old)


def _in_turn_by_numpy(
    targets: mx.array, coupling: mx.array, top: mx.array, old: mx.array | None
) -> tuple[mx.array, mx.array]:
    """As `_column_order`, in place: an operation of MLX costs 7 µs on a CPU, one of NumPy 1 µs."""
    mx.eval(targets, coupling, top)
    goals, factors, tops = np.array(targets), np.asarray(coupling), np.asarray(top)
    start_from = goals if old is None else np.asarray(old)
    codes, moves = np.empty_like(goals), np.empty_like(goals)
    for start, stop in _runs(goals.shape[-2]):
        for k in range(start, stop):
            code, move = codes[..., k, :], moves[..., k, :]
            np.clip(np.rint(goals[..., k, :], out=code), 0, tops, out=code)
            np.subtract(code, start_from[..., k, :], out=move)
            later = slice(k + 1, stop)
            goals[..., later, :] += factors[..., k, later, None] * move[..., None, :]
        onwards = factors[..., start:stop, stop:].swapaxes(-1, -2)
        goals[..., stop:, :] += onwards @ moves[..., start:stop, :]
    return mx.array(codes), mx.array(moves)


def _in_turn_by_mlx(
    targets: mx.array, coupling: mx.array, top: mx.array, old: mx.array | None
) -> tuple[mx.array, mx.array]:
    """As `_column_order`, on any device."""
    codes, moves = list[mx.array](), list[mx.array]()
    size = targets.shape[-2]
    for start, stop in _runs(size):
        run, targets = targets[..., : stop - start, :], targets[..., stop - start :, :]
        for k in range(start, stop):
            target = run[..., 0, :]
            code = mx.clip(mx.round(target), 0, top)
            move = code - (target if old is None else old[..., k, :])
            codes.append(code)
            moves.append(move)
            if k + 1 < stop:
                run = run[..., 1:, :] + coupling[..., k, k + 1 : stop, None] * move[..., None, :]
        if stop < size:
            onwards = coupling[..., start:stop, stop:].swapaxes(-1, -2)
            targets = targets + onwards @ mx.stack(moves[start:], axis=-2)
    return mx.stack(codes, axis=-2), mx.stack(moves, axis=-2)


def _runs(size: int) -> Iterator[tuple[int, int]]:
    """Starts and ends of runs of columns; what one does to all later ones is one product."""
    return ((start, min(start + _RUN, size)) for start in range(0, size, _RUN))
