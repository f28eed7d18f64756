from __future__ import annotations

import mlx.core as mx
import numpy as np
import pytest
from mlx_lm.models.cache import QuantizedKVCache
from mlx_lm.utils import load_model

from dynquant.quant.mlx.cache_losses import cache_losses
from tests.quant.mlx.factories import save_model

TOKENS = np.random.default_rng(0).integers(1, 100, 384).tolist()


def loaded(folder, family: str = "qwen3", **overrides):
    save_model(folder, family, dtype=mx.float32, **overrides)
    return load_model(folder)[0]


def test_fewer_bits_cost_more_and_hardly_anything_at_eight(tmp_path):
    eight, four = cache_losses(loaded(tmp_path / "model", head_dim=64), TOKENS)
    assert (eight.bits, four.bits) == (8, 4)
    assert eight.group_size == four.group_size == 64
    assert eight.num_tokens == 384 - 64
    assert 0 < 10 * eight.mean_kl_nats < four.mean_kl_nats


def test_the_loss_is_that_of_running_the_model_with_a_quantized_cache(tmp_path):
    """From the second stretch on; here the caches are quantized from the first token."""
    model = loaded(tmp_path / "model", head_dim=64)
    (found, _) = cache_losses(model, TOKENS[:256])
    caches = [QuantizedKVCache(group_size=64, bits=8) for _ in model.layers]
    full = model(mx.array([TOKENS[:256]]))[0]
    fewer = model(mx.array([TOKENS[:256]]), cache=caches)[0]
    log_p, log_q = (x - mx.logsumexp(x, axis=-1, keepdims=True) for x in (full, fewer))
    direct = (mx.exp(log_p) * (log_p - log_q)).sum(-1)[64:].mean().item()
    # The first stretch is computed with a full cache here, and with a quantized one there.
    assert found.mean_kl_nats == pytest.approx(direct, rel=0.5)


def test_narrow_heads_take_smaller_groups(tmp_path):
    losses = cache_losses(loaded(tmp_path / "model", head_dim=32), TOKENS)
    assert {loss.group_size for loss in losses} == {32}


@pytest.mark.parametrize("family", ["mamba2", "gemma3_text"])
def test_states_and_sliding_windows_take_no_fewer_bits(tmp_path, family):
    assert cache_losses(loaded(tmp_path / "model", family), TOKENS) == []


def test_a_short_window_tells_nothing(tmp_path):
    assert cache_losses(loaded(tmp_path / "model"), TOKENS[:255]) == []
