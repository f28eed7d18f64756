"""Error feedback for an embedding that is the output head too.

As a head, row o of the weight costs row_o · δᵀ C δ, with C the second moments of the head's
inputs; as a table it costs freq_o · Σ grad_i δ_i², with freq_o how often the token occurs. The
sum is row_o · δᵀ (C + λ_o · diag(grad)) δ with λ_o = freq_o / row_o: rows of about the same λ
share a covariance, and there are few different ones.
"""

from __future__ import annotations

import mlx.core as mx
import numpy as np

from dynquant.quant.formats import QuantFormat
from dynquant.quant.mlx.encoding import Encoded
from dynquant.quant.mlx.gptq import encode_with_feedback
from dynquant.quant.mlx.importance import Term
from dynquant.quant.mlx.inverse_hessian import InverseHessian

__all__ = ["encode_tied"]

_NUM_BUCKETS = 8


def encode_tied(
    weight: mx.array,
    head: Term,
    table: Term,
    covariance: mx.array,
    fmt: QuantFormat,
    *,
    num_sweeps: int,
) -> Encoded:
    """Store a tied embedding as an affine format with error feedback.

    Args:
        weight: (vocab, width), in the dtype of the scales and biases.
        head: Importance as the output head.
        table: Importance as the table of tokens.
        covariance: Mean second moments of the head's inputs, (width, width), float32.
        fmt: An affine format that fits the weight.
        num_sweeps: How often to go over all groups again.
    """
    as_head = np.maximum(np.asarray(head.rows, np.float64), 1e-30)
    as_table = np.asarray(table.rows, np.float64)
    order = np.argsort(as_table / as_head, kind="stable")
    parts = []
    for rows in np.array_split(order, min(_NUM_BUCKETS, len(order))):
        ratio = float(as_table[rows].sum() / as_head[rows].sum())
        feedback = InverseHessian.of(covariance + mx.diag(ratio * table.cols), fmt.group_size)
        parts.append(
            encode_with_feedback(weight[mx.array(rows)], feedback, fmt, num_sweeps=num_sweeps)
        )
    back = mx.array(np.argsort(order, kind="stable"))
    return Encoded(
        {
            name: mx.concatenate([part.arrays[name] for part in parts])[back]
            for name in parts[0].arrays
        },
        fmt,
    )
