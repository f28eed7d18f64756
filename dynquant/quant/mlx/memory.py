"""How much memory a model takes to run and to convert, without reading its weights."""

from __future__ import annotations

import logging
from collections.abc import Iterable

import mlx.core as mx
from mlx.utils import tree_flatten
from mlx_lm.models.cache import make_prompt_cache

from dynquant.quant.mlx.calibration import batch_tokens
from dynquant.quant.mlx.hessians import covariance_bytes
from dynquant.quant.mlx.loading import ModelFolder, compute_dtype, is_floating
from dynquant.quant.mlx.parameters import clear_parameters, set_parameter
from dynquant.quant.mlx.sensitivity import GRADIENT_TOKENS
from dynquant.quant.mlx.streaming import BlockModel
from dynquant.quant.mlx.writing import PART_BYTES

__all__ = ["cache_bytes", "conversion_bytes"]

logger = logging.getLogger(__name__)

_PROCESS_BYTES = 400 << 20  # Python, MLX and mlx-lm themselves
# How often a head is there as logits are compared: of the original and of one other model, which a
# CPU dequantizes in steps that are as large.
_HEAD_COPIES = {mx.cpu: 3, mx.gpu: 2}
_LOGITS_COPIES = 3  # of a batch, in float32


def cache_bytes(model: ModelFolder, context_tokens: int) -> int:
    """Bytes of everything that generation keeps per sequence, at `context_tokens`.

    The model's own code is asked: its graph is built for that many tokens and not
    evaluated, so shapes are exact for every kind of cache and no weight is read.
    """
    skeleton = model.skeleton
    try:
        for path, array in model.lazy_weights().items():
            set_parameter(skeleton, path, array)
        cache = make_prompt_cache(skeleton)
        skeleton(mx.zeros((1, context_tokens), dtype=mx.int32), cache=cache)
        states = [leaf for entry in cache for _, leaf in tree_flatten(entry.state)]
        return sum(leaf.nbytes for leaf in states if isinstance(leaf, mx.array))
    except (ValueError, TypeError, AttributeError, RuntimeError, IndexError) as error:
        logger.info("the cache's size is estimated from the config: %s", error)
        config = model.config.get("text_config") or model.config
        width = int(config.get("hidden_size") or 0)
        return 4 * context_tokens * width * int(config.get("num_hidden_layers") or 0)
    finally:
        clear_parameters(skeleton)


def conversion_bytes(model: ModelFolder, num_tokens: int) -> int:
    """Estimated peak memory of a conversion with `num_tokens` of calibration text.

    What is there at a block (two of them, the products of the widest layer's inputs with their
    factorization) or at the head (the head, some logits), whichever is more; and the hidden states
    before every block of the tokens that go backward, those of all tokens twice, and what waits to
    be written.
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
    products = max((covariance_bytes((*s[:-2], s[-1])) for s in matrices), default=0)
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
    return max(2 * (largest + products), at_head) + activations + waiting + _PROCESS_BYTES
