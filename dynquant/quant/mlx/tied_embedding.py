"""GPTQ for an embedding that is the output head too.

An error δ in row o of the weight costs row_o · δᵀ H δ as a head, with H the second moments of the
head's inputs, and freq_o · Σ_i grad_i δ_i² as a table, with freq_o the frequency of the token. The
sum is row_o · δᵀ (H + λ_o · diag(grad)) δ with λ_o = freq_o / row_o: rows of about the same λ
share an H, and there are few different ones.
"""

from __future__ import annotations

import mlx.core as mx
import numpy as np

from dynquant.quant.formats import QuantFormat
from dynquant.quant.mlx.encoding import Encoded
from dynquant.quant.mlx.gptq import encode_gptq
from dynquant.quant.mlx.importance import Term
from dynquant.quant.mlx.inverse_hessian import InverseHessian

__all__ = ["encode_tied"]

_NUM_BUCKETS = 8


def encode_tied(
    weight: mx.array,
    head: Term,
    table: Term,
    hessian: mx.array,
    fmt: QuantFormat,
    *,
    num_sweeps: int,
) -> Encoded:
    """Store a tied embedding as an affine format by GPTQ.

    Args:
        weight: (vocab, width), in the dtype of the scales and biases.
        head: Importance as the output head.
        table: Importance as the table of tokens.
        hessian: Mean second moments of the head's inputs, (width, width), float32.
        fmt: An affine format that fits the weight.
        num_sweeps: How often to go over all groups again.
    """
    as_head = np.maximum(np.asarray(head.rows, np.float64), 1e-30)
    as_table = np.asarray(table.rows, np.float64)
    order = np.argsort(as_table / as_head, kind="stable")
    parts = []
    for rows in np.array_split(order, min(_NUM_BUCKETS, len(order))):
        ratio = float(as_table[rows].sum() / as_head[rows].sum())
        inverse_hessian = InverseHessian.of(hessian + mx.diag(ratio * table.cols), fmt.group_size)
        parts.append(
            encode_gptq(weight[mx.array(rows)], inverse_hessian, fmt, num_sweeps=num_sweeps)
        )
    back = mx.array(np.argsort(order, kind="stable"))
    return Encoded(
        {
            name: mx.concatenate([part.arrays[name] for part in parts])[back]
            for name in parts[0].arrays
        },
        fmt,
    )
