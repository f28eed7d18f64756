"""Which share of each layer's weights a generated token reads."""

from __future__ import annotations

import logging
from collections import defaultdict

import mlx.core as mx

from dynquant.quant.mlx.loading import ModelFolder
from dynquant.quant.mlx.observing import Observation, Role, observed
from dynquant.quant.mlx.parameters import filled, quantizable
from dynquant.quant.mlx.runtimes.ports import MODEL_CODE_ERRORS

__all__ = ["read_shares"]

logger = logging.getLogger(__name__)


def read_shares(model: ModelFolder) -> dict[str, float]:
    """Path → share of the layer's weights that one token reads, by the model's own code.

    A dense layer is read whole, in each call. Of E experts a token reads the k that its router
    chooses; of an embedding that is looked up, one row, which counts as nothing. The graph of one
    token is built and not evaluated, so no weight is read. Empty if the model's code fails on it.
    """
    skeleton = model.skeleton
    weights = model.lazy_weights()
    layers = {
        path: layer
        for path, layer in quantizable(skeleton).items()
        if f"{path}.weight" in weights and model.runtime.is_language(path)
    }
    shares: dict[str, float] = defaultdict(float, dict.fromkeys(layers, 0.0))

    def count(call: Observation) -> mx.array:
        if call.role is Role.SWITCH:
            assert call.experts is not None
            shares[call.path] += call.experts.size / weights[f"{call.path}.weight"].shape[0]
        elif call.role is not Role.LOOKUP:
            shares[call.path] += 1.0
        return call.y

    try:
        with filled(skeleton, weights), observed(layers, count):
            skeleton(mx.zeros((1, 1), dtype=mx.int32))
    except MODEL_CODE_ERRORS as error:
        logger.info("what a token reads is not known: %s", error)
        return {}
    return dict(shares)
