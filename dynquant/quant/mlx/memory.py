"""Memory to run and to convert a model, without reading its weights."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Sequence
from typing import Any

import mlx.core as mx
from mlx.utils import tree_flatten
from mlx_lm.models.cache import KVCache, make_prompt_cache

from dynquant.errors import InvalidOptionError
from dynquant.quant.cache_bits import FULL_BITS, GROUP_SIZES, cache_share
from dynquant.quant.mlx.arrays import compute_dtype, is_floating
from dynquant.quant.mlx.calibration import batch_tokens
from dynquant.quant.mlx.hessians import gram_bytes
from dynquant.quant.mlx.loading import ModelFolder
from dynquant.quant.mlx.parameters import filled
from dynquant.quant.mlx.sensitivity import GRADIENT_TOKENS
from dynquant.quant.mlx.streaming import BlockModel
from dynquant.quant.mlx.writing import PART_BYTES

__all__ = ["cache_bytes", "conversion_bytes"]

logger = logging.getLogger(__name__)

_PROCESS_BYTES = 400 << 20  # Python, MLX and mlx-lm themselves
# Copies of a head in memory as logits are compared: of the original and of one other model, which a
# CPU dequantizes in steps that are as large.
_HEAD_COPIES = {mx.cpu: 3, mx.gpu: 2}
_LOGITS_COPIES = 3  # of a batch, in float32
_FITTED_COPIES = 4  # of a block while it is fitted: original, quantized, gradients, codes
_STATES_COPIES = 4  # of the hidden states of all tokens then


def cache_bytes(model: ModelFolder, context_tokens: int, *, kv_bits: int = 16) -> int:
    """Bytes of the cache of one sequence at `context_tokens`.

    The model's own code gives the answer: its graph is built for that many tokens and not
    evaluated, so shapes are exact for every kind of cache and no weight is read.

    Args:
        model: The open model.
        context_tokens: Tokens of the sequence.
        kv_bits: Width of keys and values, as mlx-lm's `--kv-bits`.

    Raises:
        InvalidOptionError: The model's caches take no fewer bits.
    """
    skeleton = model.skeleton
    try:
        with filled(skeleton, model.lazy_weights()):
            cache = make_prompt_cache(skeleton)
            if kv_bits < FULL_BITS:
                _require_fewer_bits(cache, str(model.config["model_type"]))
            skeleton(mx.zeros((1, context_tokens), dtype=mx.int32), cache=cache)
            return round(sum(_entry_bytes(entry, kv_bits) for entry in cache))
    except (ValueError, TypeError, AttributeError, RuntimeError, IndexError) as error:
        logger.info("the cache's size is estimated from the config: %s", error)
        config = model.config.get("text_config") or model.config
        width = int(config.get("hidden_size") or 0)
        return 4 * context_tokens * width * int(config.get("num_hidden_layers") or 0)


def _entry_bytes(entry: Any, kv_bits: int) -> float:
    leaves = [leaf for _, leaf in tree_flatten(entry.state) if isinstance(leaf, mx.array)]
    takes_fewer = hasattr(entry, "to_quantized")
    widths = {leaf.shape[-1] for leaf in leaves} if takes_fewer else set()
    group = next((size for size in GROUP_SIZES if all(w % size == 0 for w in widths)), 0)
    share = cache_share(kv_bits, group) if takes_fewer and group else 1.0
    return share * sum(leaf.nbytes for leaf in leaves)


def _require_fewer_bits(cache: Sequence[Any], family: str) -> None:
    """Refuse caches that mlx-lm does not quantize: it quantizes all that say they can be."""
    able = [entry for entry in cache if hasattr(entry, "to_quantized")]
    if not able or any(type(entry) is not KVCache for entry in able):
        raise InvalidOptionError(
            f"The cache of a '{family[:60]}' model takes no fewer bits than 16 in mlx-lm. Leave "
            "--kv-bits out."
        )


def conversion_bytes(model: ModelFolder, num_tokens: int, *, num_fitting_tokens: int = 0) -> int:
    """Estimated peak memory of a conversion with `num_tokens` of calibration text.

    While blocks are fitted on `num_fitting_tokens`: two blocks, the codes, offsets and gradients of
    one, and the hidden states of both models before and behind it. In all other steps:
    the larger of the memory at a block (two blocks, the Gram matrix of the widest layer with its
    factorization) and at the head (the head, some logits); plus the hidden states before every
    block of the tokens that go backward, the hidden states of all tokens twice, and the arrays that
    wait to be written.
    """
    blocks = BlockModel(model.skeleton)
    outer, inner = blocks.split(model.lazy_weights())

    def bytes_of(arrays: Iterable[mx.array]) -> int:
        return sum(
            array.size * (compute_dtype(array.dtype) if is_floating(array) else array.dtype).size
            for array in arrays
        )

    matrices = [array.shape for weights in inner.values() for array in weights.values()]
    matrices = [shape for shape in matrices if len(shape) > 1]
    outer_matrices = [array.shape for array in outer.values() if array.ndim == 2]
    width = max((shape[1] for shape in outer_matrices), default=0)
    products = max((gram_bytes((*s[:-2], s[-1])) for s in matrices), default=0)
    recorded = min(num_tokens, GRADIENT_TOKENS)
    activations = 4 * width * (recorded * len(inner) + 2 * num_tokens)
    largest = max((bytes_of(weights.values()) for weights in inner.values()), default=0)
    waiting = min(
        PART_BYTES, sum(array.nbytes for part in inner.values() for array in part.values())
    )
    vocab = max((shape[0] for shape in outer_matrices), default=1)
    logits = 4 * vocab * min(num_tokens, batch_tokens(vocab))
    head = max((bytes_of([array]) for array in outer.values()), default=0)
    copies = _HEAD_COPIES[mx.default_device().type]
    at_head = max(copies * head, bytes_of(outer.values())) + _LOGITS_COPIES * logits
    fitting = _FITTED_COPIES * largest + _STATES_COPIES * 4 * width * num_fitting_tokens
    others = max(2 * (largest + products), at_head) + activations + waiting
    return max(others, fitting) + _PROCESS_BYTES
