"""GPTQ with MLX's affine groups, then coordinate descent.

For a layer y = Wx with W (out, in) and H = E[x xᵀ] (in, in), quantizing row w to q costs

    loss(q) = (q - w) H (q - w)ᵀ,    q_j = scale_g · code_j + bias_g  for column j of group g.

1. `_gptq_pass` takes the columns in order. With UᵀU = (H + λI)⁻¹, U upper triangular, the error
   e = (w_k - q_k) / U_kk of column k is compensated by the later columns: w_j -= e · U_kj, j > k.
   A group's scale and bias are fitted by least squares when its first column is reached, to the
   weights as they are by then, with 1 / U_kk² as the weight of column k.
2. `_coordinate_descent` goes over the groups again, `num_sweeps` times. With the half gradient
   G = H (q - w)ᵀ it minimizes the loss first over scale and bias of one group (`_refitted`, two
   unknowns), then over one code after the other (`_recoded`), all else being fixed.

MLX's groups are runs of neighbouring inputs, so columns cannot be sorted freely: groups are sorted
by falling second moment, and so are the columns within each. Arrays are held columns first,
(..., in, out): one column of all rows is one run of memory. Both steps round by `_round_columns`.

Sources: GPTQ (arXiv 2210.17323), with the Cholesky form of its section 3.3; QuantEase (arXiv
2309.01885) for coordinate descent, here over scales and biases too.
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

__all__ = ["encode_batch", "encode_gptq"]

_TINY = 1e-30
_RUN = 16
# Weights to encode at a time. More are no faster on a CPU and take memory; a GPU needs more.
_TOGETHER_WEIGHTS = {mx.cpu: 1 << 22, mx.gpu: 1 << 25}


def encode_gptq(
    weight: mx.array, inverse_hessian: InverseHessian, fmt: QuantFormat, *, num_sweeps: int = 0
) -> Encoded:
    """Store `weight` as an affine format by GPTQ.

    Args:
        weight: (..., out, in), in the dtype of the scales and biases.
        inverse_hessian: Of the inputs, for the format's group size; leading axes as the weight's,
            or none at all.
        fmt: An affine format that fits the weight.
        num_sweeps: How often to go over all groups again.
    """
    return encode_batch([(weight, fmt)], inverse_hessian, num_sweeps=num_sweeps)[0]


def encode_batch(
    parts: Sequence[tuple[mx.array, QuantFormat]],
    inverse_hessian: InverseHessian,
    *,
    num_sweeps: int = 0,
) -> list[Encoded]:
    """Store weights that share their inputs, each as a format of its own.

    The columns are encoded one after the other, each by operations on one number per row: the more
    rows, the lower the overhead per weight. Rows are independent, so a large weight is encoded in
    several runs of rows.

    Args:
        parts: Weights (..., out, in) of one dtype, which the scales and biases will have, and
            affine formats of one group size; neighbours of one width are fitted at once.
        inverse_hessian: As for `encode_gptq`.
        num_sweeps: How often to go over all groups again.
    """
    found = [list[Encoded]() for _ in parts]
    for batch in _of_bounded_size(parts, _TOGETHER_WEIGHTS[mx.default_device().type]):
        pieces = [(parts[index][0][..., rows, :], parts[index][1]) for index, rows in batch]
        encoded = _encoded_at_once(pieces, inverse_hessian, num_sweeps)
        mx.eval([list(each.arrays.values()) for each in encoded])
        for (index, _), each in zip(batch, encoded, strict=True):
            found[index].append(each)
    return [_below_each_other(pieces) for pieces in found]


def _of_bounded_size(
    parts: Sequence[tuple[mx.array, QuantFormat]], limit: int
) -> Iterator[list[tuple[int, slice]]]:
    """Batches of about `limit` weights, each a list of (index in `parts`, rows of that part)."""
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
    """One weight with the rows of all `pieces`."""
    if len(pieces) == 1:
        return pieces[0]
    names, fmt = pieces[0].arrays, pieces[0].fmt
    arrays = {name: mx.concatenate([p.arrays[name] for p in pieces], axis=-2) for name in names}
    mx.eval(arrays)
    return Encoded(arrays, fmt)


def _encoded_at_once(
    parts: Sequence[tuple[mx.array, QuantFormat]], inverse_hessian: InverseHessian, num_sweeps: int
) -> list[Encoded]:
    """As `encode_batch`, all rows at once; not yet evaluated."""
    size, order = parts[0][1].group_size, inverse_hessian.order
    widths = _Widths.of([(weight.shape[-2], fmt.bits) for weight, fmt in parts])
    wanted = _columns_first([weight for weight, _ in parts], order)
    dtype = parts[0][0].dtype
    groups = _gptq_pass(wanted, inverse_hessian, size, widths, dtype)
    for _ in range(num_sweeps):
        groups = _coordinate_descent(wanted, inverse_hessian, groups, widths, dtype)
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
    """The width of the codes of each row.

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
        """From (number of rows, bits) of each part."""
        ends = list(accumulate(rows for rows, _ in parts))
        spans = [slice(end - rows, end) for end, (rows, _) in zip(ends, parts, strict=True)]
        tops = [mx.full((rows,), 2.0**bits - 1) for rows, bits in parts]
        return cls(spans, [bits for _, bits in parts], mx.concatenate(tops))

    def fit(
        self, group: mx.array, importances: mx.array, dtype: mx.Dtype
    ) -> tuple[mx.array, mx.array]:
        """`fit_groups` of each part's rows in its width; `group` is (..., out, group_size)."""
        runs = [
            (bits, [s for _, s in run])
            for bits, run in groupby(
                zip(self.bits, self.spans, strict=True), key=lambda pair: pair[0]
            )
        ]
        found = [
            fit_groups(group[..., spans[0].start : spans[-1].stop, :], importances, bits, dtype)
            for bits, spans in runs
        ]
        scales, biases = zip(*found, strict=True)
        return mx.concatenate(list(scales), axis=-1), mx.concatenate(list(biases), axis=-1)


class _Group(NamedTuple):
    """A group as it is stored: codes (..., group_size, out), scale and bias (..., out), float32.

    The codes are bytes, since those of all groups are in memory at once.
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
    wanted: mx.array,
    inverse_hessian: InverseHessian,
    group_size: int,
    widths: _Widths,
    dtype: mx.Dtype,
) -> list[_Group]:
    """Encode the groups one after the other; later groups compensate for the error of earlier ones.

    Within a group targets are in units of codes, t_j = (w_j - bias) / scale, and rounding column k
    by m_k = code_k - t_k moves t_j by U_kj / U_kk · m_k. Behind the group
    w_j moves by Σ_k U_kj / U_kk · m_k · scale.
    """
    columns, groups = wanted, []
    for start in range(0, wanted.shape[-2], group_size):
        factor = inverse_hessian.factor(start, start + group_size)
        pivots = mx.diagonal(factor, axis1=-2, axis2=-1)
        onwards = factor / pivots[..., None]
        group = columns[..., :group_size, :]
        by_row = mx.contiguous(group.swapaxes(-1, -2))
        scale, bias = widths.fit(by_row, mx.square(1.0 / pivots)[..., None, :], dtype)
        targets = (group - bias[..., None, :]) / scale[..., None, :]
        codes, moves = _round_columns(targets, onwards[..., :group_size], widths.top)
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
    inverse_hessian: InverseHessian,
    groups: Sequence[_Group],
    widths: _Widths,
    dtype: mx.Dtype,
) -> list[_Group]:
    """One sweep over the groups, each changed so that (q - w) H (q - w)ᵀ falls in every row.

    `slope` is G = H (q - w)ᵀ, (..., in, out), half the gradient of the loss; a group that changes
    by Δ changes it by H[:, group] Δ.
    """
    size, found = groups[0].codes.shape[-2], []
    spans = [slice(index * size, (index + 1) * size) for index in range(len(groups))]
    errors = [old.weights - wanted[..., span, :] for old, span in zip(groups, spans, strict=True)]
    slope = inverse_hessian.times(mx.concatenate(errors, axis=-2))
    del errors
    for old, span in zip(groups, spans, strict=True):
        rows, mine = inverse_hessian.rows(span.start, span.stop), slope[..., span, :]
        block = rows[..., span]
        fitted = _refitted(old, mine, block, dtype)
        new = _recoded(fitted, mine + block @ (fitted.weights - old.weights), block, widths.top)
        slope = slope + rows.swapaxes(-1, -2) @ (new.weights - old.weights)
        mx.eval(slope, *new)
        found.append(new)
    return found


def _refitted(group: _Group, slope: mx.array, block: mx.array, dtype: mx.Dtype) -> _Group:
    """The scale and bias of least loss for these codes, as stored, in rows where they are better.

    With codes c, ones 1 and the group's block B of H: the normal equations of changes (s, b) are
    [cᵀBc  cᵀB1; cᵀB1  1ᵀB1] (s, b)ᵀ = -(cᵀG, 1ᵀG)ᵀ.

    Args:
        group: A group.
        slope: Half the gradient of the loss at its weights, (..., group_size, out).
        block: Its part B of H, (..., group_size, group_size).
        dtype: Scales and biases will be rounded to it.
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
    """Set one code after the other to the value of least loss, given all others.

    Arguments as `_refitted`.

    Along code j the loss is least at code_j - G_j / (B_jj · scale); a move m of code k moves that
    of code j by -B_kj / B_jj · m.
    """
    diagonal = mx.diagonal(block, axis1=-2, axis2=-1)
    targets = group.levels - slope / (diagonal[..., None] * group.scale[..., None, :])
    codes, _ = _round_columns(targets, -block / diagonal[..., None, :], top, group.levels)
    return _Group(codes.astype(mx.uint8), group.scale, group.bias)


def _round_columns(
    targets: mx.array, coupling: mx.array, top: mx.array, old: mx.array | None = None
) -> tuple[mx.array, mx.array]:
    """Round column after column; each move shifts the targets of the columns after it.

    Args:
        targets: Real numbers to round, (..., group_size, out), before moves of earlier columns.
        coupling: At [..., k, j] the change of column j's target for a move of column k by 1.
        top: The highest code of each row, (out,).
        old: Codes from which moves are counted; without them, from the targets.

    Returns:
        Codes and the move of each, (..., group_size, out), float32.
    """
    on_cpu = mx.default_device() == mx.cpu
    return (_round_by_numpy if on_cpu else _round_by_mlx)(targets, coupling, top, old)


def _round_by_numpy(
    targets: mx.array, coupling: mx.array, top: mx.array, old: mx.array | None
) -> tuple[mx.array, mx.array]:
    """As `_round_columns`, in place: an operation of MLX costs 7 µs on a CPU, one of NumPy 1 µs."""
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


def _round_by_mlx(
    targets: mx.array, coupling: mx.array, top: mx.array, old: mx.array | None
) -> tuple[mx.array, mx.array]:
    """As `_round_columns`, on any device."""
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
    """Starts and ends of runs of columns; a run changes all later columns by one product."""
    return ((start, min(start + _RUN, size)) for start in range(0, size, _RUN))
