"""Check that the model which is quantized is the model that was uploaded, before any work.

The source is loaded a second time in a fresh process, by stock mlx-lm, with its own code and in
its own dtype. Logits that differ from those of the streamed engine by more than arithmetic
explains end the job. Where dynquant reads a config otherwise than stock mlx-lm on purpose
(`model.config`), stock mlx-lm is told so, and `ropes` checks that reading by itself.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence

import mlx.core as mx
import numpy as np
import psutil

from dynquant.errors import InvalidModelError, NonFiniteError
from dynquant.quant.mlx.comparing import are_finite, mean_kl_nats
from dynquant.quant.mlx.folder import as_loaded
from dynquant.quant.mlx.loading import ModelFolder, scalar
from dynquant.quant.mlx.observing import Observation, observed
from dynquant.quant.mlx.stock_run import StockFailedError, StockRequest, run_stock
from dynquant.quant.mlx.streaming import BlockModel, BlockWeights, Forward
from dynquant.quant.mlx.verify import same_kl_nats
from dynquant.sandbox.memory_limits import memory_limits

__all__ = ["check_reference", "leaves_float16", "sample_windows"]

logger = logging.getLogger(__name__)

_LENGTHS = (1, 7, 40)  # a prompt's first token, a short prompt, more than a chunk of any kernel
_MAX_FLOAT16 = 65504.0
_MARGIN = 4.0  # other texts go further than the one that was looked at
_SHARE_OF_MEMORY = 0.5


def sample_windows(tokens: np.ndarray) -> list[list[int]]:
    """A few windows of several lengths from `tokens`, (windows, seq)."""
    picked = (
        tokens[index % len(tokens), :length].tolist() for index, length in enumerate(_LENGTHS)
    )
    return list(picked)


def check_reference(
    model: ModelFolder, logits: Sequence[np.ndarray], windows: Sequence[Sequence[int]]
) -> bool:
    """Compare the engine's logits of the source with those of stock mlx-lm.

    Args:
        model: The source.
        logits: The engine's for `windows`.
        windows: Token ids.

    Returns:
        Whether the source is finite in its own dtype, as far as this machine can tell.

    Raises:
        InvalidModelError: Stock mlx-lm does not run it, or computes something else.
        NonFiniteError: The source itself computes NaN or infinity.
    """
    if not are_finite(logits):
        raise NonFiniteError(
            "The original computes NaN or infinity, so nothing can be compared with it. Download "
            "it again, or ask its author.",
            layer="logits",
        )
    if model.codes is not None:  # of which some classes of mlx-lm take the bytes for numbers
        return True
    request = StockRequest(
        windows=windows, settings=model.settings, by_blocks=not _fits_in_memory(model)
    )
    try:
        with as_loaded(model.folder) as folder:
            run = run_stock(folder, request)
    except StockFailedError as error:
        raise InvalidModelError(
            f"Stock mlx-lm cannot run the original: {error}. Ask its author, or look for the model "
            "in another layout."
        ) from error
    apart = mean_kl_nats(logits, run.computed)
    if not apart <= same_kl_nats(run):
        raise InvalidModelError(
            f"Stock mlx-lm computes something else from the original than dynquant does (mean KL "
            f"{apart:.2g} nats), so the result would be another model. Please report this model at "
            "dynquant's page."
        )
    if model.settings:
        logger.info("mlx-lm is told: %s", ", ".join(sorted(model.settings)))
    return run.own is None or are_finite(run.own)


def leaves_float16(
    blocks: BlockModel,
    load: Callable[[], Mapping[str, mx.array]],
    layers: Mapping[str, object],
    batches: Sequence[mx.array],
) -> bool:
    """Whether activations come near the end of float16's range, on these token batches.

    A quantized model computes as its scales are stored, and on a Mac that is what overflows. What
    goes into and out of layers and blocks is looked at in float32.

    Args:
        blocks: The model.
        load: Gives a fresh set of lazily loaded weights.
        layers: Path → module of the layers to watch.
        batches: Token batches, each (batch, seq), int32.
    """
    peaks: list[mx.array] = []
    largest = 0.0

    def note(call: Observation) -> mx.array:
        peaks.append(_peak(call.y))
        if mx.issubdtype(call.x.dtype, mx.floating):
            peaks.append(_peak(call.x))
        return call.y

    forward = Forward(blocks, BlockWeights(blocks, lambda: dict(load())), batches)
    with observed(layers, note):  # type: ignore[arg-type]
        while forward.next_block is not None:
            forward.step(peaks.copy)
            peaks.extend(_peak(each) for call in forward.last_calls for each in call.inputs())
            largest = max([largest, *map(scalar, peaks)])
            peaks.clear()
    return not largest * _MARGIN <= _MAX_FLOAT16


def _peak(array: mx.array) -> mx.array:
    return mx.abs(array.astype(mx.float32)).max()


def _fits_in_memory(model: ModelFolder) -> bool:
    """Whether stock mlx-lm, which holds the whole model, may do so beside this process."""
    free = min([psutil.virtual_memory().available, *memory_limits()])
    needed = sum(array.nbytes for array in model.lazy_weights().values())
    # In float32 on a CPU, where 16 bits are computed so.
    return 2 * needed <= _SHARE_OF_MEMORY * free
