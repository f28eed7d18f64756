"""Time the matrix products of all formats on this machine, and what a block takes beside them."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from importlib.metadata import version
from itertools import islice, pairwise
from statistics import median
from typing import Any

import mlx.core as mx
import mlx.nn as nn
from mlx_lm.generate import generate_step
from mlx_lm.models.llama import Model, ModelArgs

from dynquant.quant.formats import DEFAULT_MENU, FLOAT_FORMATS, UNQUANTIZED, QuantFormat
from dynquant.quant.kernel_times import KernelTime, KernelTimes
from dynquant.quant.mlx.generation_speed import machine_name

__all__ = ["FORMATS", "measure_kernels", "num_kinds"]

FORMATS = (*DEFAULT_MENU, *FLOAT_FORMATS)

_WIDTHS = {mx.cpu: (256, 512, 1024, 2048), mx.gpu: (512, 1024, 2048, 4096, 8192)}
_BATCHES = {mx.cpu: (1, 8), mx.gpu: (1, 8, 64, 512)}
_WORKING_SET_BYTES = {mx.cpu: 64 << 20, mx.gpu: 512 << 20}
"""More than caches hold: while generating, each weight comes from memory."""

_MAX_MATRICES = {mx.cpu: 2, mx.gpu: 32}  # a CPU is bound by arithmetic, not by its memory
_MIN_SECS, _MIN_ROUNDS = 0.05, 3
_TOO_LONG_SECS = 0.1  # a larger product would take four times as long
_NUM_EXPERTS, _NUM_CHOSEN = 16, 4

_FOUR = QuantFormat.from_name("4g64")
_BLOCK_WIDTH, _BLOCK_HEAD = 512, 64
_NUM_BLOCKS = (2, 10)
_NUM_GENERATED = 24

OnKernel = Callable[[], None]
_Matrix = tuple[mx.array, mx.array | None, mx.array | None]
"""Codes or weights, scales, biases."""


def num_kinds(formats: Sequence[QuantFormat]) -> int:
    """How often `measure_kernels` calls `on_kernel` for these formats on this device."""
    return 2 * len(formats) * len(_BATCHES[mx.default_device().type])


def measure_kernels(
    formats: Sequence[QuantFormat] = FORMATS,
    *,
    widths: Sequence[int] | None = None,
    batches: Sequence[int] | None = None,
    on_kernel: OnKernel = lambda: None,
) -> KernelTimes:
    """Time products with square matrices of `widths`; takes minutes for all.

    A product that takes long is not measured in the next larger size.

    Args:
        formats: Formats to time.
        widths: Sides of the matrices; usual ones for this device by default.
        batches: Rows of the other factor; usual ones for this device by default.
        on_kernel: Called after each format, batch and kind.
    """
    device = mx.default_device().type
    widths, batches = widths or _WIDTHS[device], batches or _BATCHES[device]
    times: list[KernelTime] = []
    for fmt in formats:
        for by_experts in (False, True):
            for batch in batches:
                times.extend(_times(fmt, widths, batch=batch, by_experts=by_experts))
                on_kernel()
    per_block, per_token = _beside_products(KernelTimes(**_own(), times=tuple(times)))
    return KernelTimes(**_own(per_block, per_token), times=tuple(times))


def _own(per_block: float = 0.0, per_token: float = 0.0) -> dict[str, Any]:
    return {
        "machine": machine_name(),
        "mlx_version": version("mlx"),
        "secs_per_block": per_block,
        "secs_per_token": per_token,
    }


def _times(
    fmt: QuantFormat, widths: Sequence[int], *, batch: int, by_experts: bool
) -> Iterator[KernelTime]:
    """From the smallest width up, until a product takes too long."""
    for width in widths:
        if not fmt.fits((width, width)) or (by_experts and _unable(fmt)):
            continue
        secs = _experts_secs(fmt, width, batch) if by_experts else _dense_secs(fmt, width, batch)
        chosen = _NUM_CHOSEN if by_experts else 1
        yield KernelTime(
            fmt=fmt,
            num_weights=chosen * width * width,
            batch=batch,
            by_experts=by_experts,
            secs=secs,
        )
        if secs > _TOO_LONG_SECS:
            return


def _unable(fmt: QuantFormat) -> bool:
    """On a CPU MLX multiplies unquantized experts in float32 only, which no model does."""
    return fmt == UNQUANTIZED and mx.default_device() == mx.Device(mx.cpu)


def _dense_secs(fmt: QuantFormat, width: int, batch: int) -> float:
    matrices = _stored(fmt, _num_matrices(fmt, width), width)

    def chain(x: mx.array) -> mx.array:
        for matrix in matrices:
            x = _product(x, matrix, fmt)
        return x

    return _secs(chain, _random(batch, width)) / len(matrices)


def _experts_secs(fmt: QuantFormat, width: int, batch: int) -> float:
    """One product of `batch` rows, each with some of the experts."""
    stacks = _num_matrices(fmt, width) // _NUM_EXPERTS or 1
    matrices = _stored(fmt, stacks, width, _NUM_EXPERTS)
    chosen = mx.random.randint(0, _NUM_EXPERTS, (batch, _NUM_CHOSEN))

    def chain(x: mx.array) -> mx.array:
        for matrix in matrices:
            rows = x.reshape(batch, 1, 1, width)
            x = _gathered(rows, matrix, chosen, fmt).mean(axis=(1, 2))
        return x

    return _secs(chain, _random(batch, width)) / len(matrices)


def _product(x: mx.array, matrix: _Matrix, fmt: QuantFormat) -> mx.array:
    weight, scales, biases = matrix
    if scales is None:
        return x @ weight.T
    return mx.quantized_matmul(
        x, weight, scales, biases, group_size=fmt.group_size, bits=fmt.bits, mode=fmt.mode
    )


def _gathered(x: mx.array, matrix: _Matrix, chosen: mx.array, fmt: QuantFormat) -> mx.array:
    weight, scales, biases = matrix
    if scales is None:
        return mx.gather_mm(x, weight.swapaxes(-1, -2), rhs_indices=chosen)
    return mx.gather_qmm(
        x,
        weight,
        scales,
        biases,
        rhs_indices=chosen,
        group_size=fmt.group_size,
        bits=fmt.bits,
        mode=fmt.mode,
    )


def _num_matrices(fmt: QuantFormat, width: int) -> int:
    num_bytes = fmt.stored_bits((width, width), 16) // 8
    device = mx.default_device().type
    return max(2, min(_MAX_MATRICES[device], _WORKING_SET_BYTES[device] // num_bytes))


def _stored(fmt: QuantFormat, num: int, width: int, *lead: int) -> list[_Matrix]:
    """Matrices that keep the size of what they are multiplied with, as a model's do."""
    found: list[_Matrix] = []
    for _ in range(num):
        weight = _random(*lead, width, width) / width**0.5
        if fmt == UNQUANTIZED:
            found.append((weight, None, None))
            continue
        codes, scales, *biases = mx.quantize(
            weight, group_size=fmt.group_size, bits=fmt.bits, mode=fmt.mode
        )
        found.append((codes, scales, biases[0] if biases else None))
    mx.eval([part for matrix in found for part in matrix if part is not None])
    return found


def _random(*shape: int) -> mx.array:
    return mx.random.normal(shape).astype(mx.bfloat16)


def _secs(work: Callable[[mx.array], mx.array], x: mx.array) -> float:
    """Median time of `work`, which runs once untimed: kernels are compiled at their first use."""
    mx.eval(work(x))
    found: list[float] = []
    while len(found) < _MIN_ROUNDS or sum(found) < _MIN_SECS:
        start = time.perf_counter()
        mx.eval(work(x))
        found.append(time.perf_counter() - start)
    return median(found)


def _beside_products(products: KernelTimes) -> tuple[float, float]:
    """Seconds of a block, and of a token, that products do not explain; never negative.

    Two models that differ in the number of their blocks alone generate by stock mlx-lm.
    """
    few, many = (_token_secs(num_blocks) for num_blocks in _NUM_BLOCKS)
    square = _BLOCK_WIDTH * _BLOCK_WIDTH
    # q, o and k, v of one width; gate, up and down of one width: a block has seven products.
    in_block = 7 * products.secs(_FOUR, square)
    per_block = (many - few) / (_NUM_BLOCKS[1] - _NUM_BLOCKS[0])
    per_token = few - _NUM_BLOCKS[0] * per_block - products.secs(_FOUR, square)
    return max(0.0, per_block - in_block), max(0.0, per_token)


def _token_secs(num_blocks: int) -> float:
    """Median time of a token of a model whose matrices are all of one size."""
    heads = _BLOCK_WIDTH // _BLOCK_HEAD
    model = Model(
        ModelArgs(
            model_type="llama",
            hidden_size=_BLOCK_WIDTH,
            num_hidden_layers=num_blocks,
            intermediate_size=_BLOCK_WIDTH,
            num_attention_heads=heads,
            num_key_value_heads=heads,
            rms_norm_eps=1e-5,
            vocab_size=_BLOCK_WIDTH,
            tie_word_embeddings=False,
        )
    )
    model.set_dtype(mx.bfloat16)
    nn.quantize(model, group_size=_FOUR.group_size, bits=_FOUR.bits)
    mx.eval(model.parameters())
    steps = generate_step(mx.array([1, 2, 3]), model, max_tokens=_NUM_GENERATED)
    stamps = [time.perf_counter() for _ in islice(steps, _NUM_GENERATED)]
    return median(b - a for a, b in pairwise(stamps))
