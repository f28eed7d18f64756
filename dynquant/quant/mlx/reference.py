"""Check that the model which is quantized is the model that was uploaded, before any work.

The source is loaded a second time in a fresh process, by its stock runtime, with that runtime's
code and in the source's dtype. Logits that differ from those of the streamed engine by more than
arithmetic explains end the job. Where dynquant reads a config otherwise than the runtime on purpose
(`model.config`), the runtime gets the same settings, and `ropes` checks that reading by itself.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection, Mapping, Sequence
from functools import partial
from pathlib import Path

import mlx.core as mx
import numpy as np
import psutil

from dynquant.errors import InvalidModelError, NonFiniteError
from dynquant.quant.mlx.arrays import check_finite, scalar
from dynquant.quant.mlx.comparing import are_finite, mean_kl_nats, streamed_logits
from dynquant.quant.mlx.folder import as_loaded, has_processor
from dynquant.quant.mlx.loading import ModelFolder
from dynquant.quant.mlx.model_inputs import ModelInputs
from dynquant.quant.mlx.next_token import require_causal
from dynquant.quant.mlx.observing import Observation, observed
from dynquant.quant.mlx.parameters import quantizable
from dynquant.quant.mlx.stock_run import StockFailedError, StockRequest, run_stock
from dynquant.quant.mlx.streaming import BlockModel, BlockWeights, Forward
from dynquant.quant.mlx.verify import same_kl_nats
from dynquant.sandbox.memory_limits import memory_limits

__all__ = ["check_reference", "check_source", "leaves_float16", "sample_windows"]

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


def check_source(
    model: ModelFolder,
    blocks: BlockModel,
    tokens: np.ndarray,
    batches: Sequence[mx.array],
    *,
    half: Collection[str],
    home: Path | None = None,
) -> bool:
    """Refuse a source that its runtime would make another model of.

    Args:
        model: The source.
        blocks: Its modules.
        tokens: Calibration windows, (windows, seq).
        batches: Some of them, each (batch, seq), int32.
        half: Paths of the layers of a float16 source; empty for another dtype.
        home: See `stock_run.answer_of`.

    Returns:
        Whether results may be stored in the source's dtype: False for a float16 source that is not
        finite in it, or whose activations leave its range.

    Raises:
        UnsupportedModelError: The loader drops a tensor whose values nothing else holds, or the
            model predicts no next token.
        InvalidModelError: The stock runtime does not run it, or computes something else.
        NonFiniteError: The source computes NaN or infinity.
    """
    model.require_nothing_lost()
    engine, sample = partial(streamed_logits, blocks, model.lazy_weights), sample_windows(tokens)
    logits = engine(sample)
    if not are_finite(logits):
        for path, array in model.lazy_weights().items():
            check_finite({path: array})  # names the layer whose weight is damaged
    if model.runtime.name == "mlx-vlm":
        require_causal(engine, tokens[0].tolist(), family=str(model.config["model_type"]))
    is_sound = check_reference(model, logits, sample, engine, home=home)
    if not half:
        return True
    watched = {p: m for p, m in quantizable(model.skeleton).items() if p in half}
    return is_sound and not leaves_float16(blocks, model.lazy_weights, watched, batches)


def check_reference(
    model: ModelFolder,
    logits: Sequence[np.ndarray],
    windows: Sequence[Sequence[int]],
    engine: Callable[[Sequence[ModelInputs]], list[np.ndarray]],
    *,
    home: Path | None = None,
) -> bool:
    """Compare the engine's logits of the source with those of its stock runtime.

    Args:
        model: The source.
        logits: The engine's for `windows`.
        windows: Token ids.
        engine: Logits of the source for other inputs.
        home: See `stock_run.answer_of`.

    Returns:
        Whether the source is finite in its own dtype, as far as this machine can tell.

    Raises:
        InvalidModelError: The stock runtime does not run it, or computes something else.
        NonFiniteError: The source itself computes NaN or infinity.
    """
    if not are_finite(logits):
        raise NonFiniteError(
            "The original computes NaN or infinity, so nothing can be compared with it. Download "
            "it again, or ask its author.",
            layer="logits",
        )
    if model.codes:  # of which some classes of mlx-lm take the bytes for numbers
        return True
    stock, sees = f"Stock {model.runtime.name}", has_processor(model.folder)
    request = StockRequest(
        runtime=model.runtime.name,
        windows=windows,
        image=model.has_tower and sees,
        settings=model.settings,
        by_blocks=not _fits_in_memory(model),
    )
    try:
        with as_loaded(model.folder, model.stock_config) as folder:
            run = run_stock(folder, request, home=home)
    except StockFailedError as error:
        text_only = ", or convert its language model alone (--text-only)" if model.has_tower else ""
        raise InvalidModelError(
            f"{stock} cannot run the original: {error}. Ask its author, or look for the model "
            f"in another layout{text_only}."
        ) from error
    if run.image is not None:
        logits = [*logits, *engine([run.image])]
    apart = mean_kl_nats(logits, run.computed)
    if not apart <= same_kl_nats(run):
        raise InvalidModelError(
            f"{stock} computes something else from the original than dynquant does (mean KL "
            f"{apart:.2g} nats), so the result would be another model. Please report this model at "
            "dynquant's page."
        )
    if model.settings:
        logger.info("%s is told: %s", stock, ", ".join(sorted(model.settings)))
    return run.own is None or are_finite(run.own)


def leaves_float16(
    blocks: BlockModel,
    load: Callable[[], Mapping[str, mx.array]],
    layers: Mapping[str, object],
    batches: Sequence[mx.array],
) -> bool:
    """Whether activations come near the end of float16's range, on these token batches.

    A quantized model computes as its scales are stored, and on a Mac that is what overflows. The
    inputs and outputs of layers and blocks are looked at in float32.

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
