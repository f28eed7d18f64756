from __future__ import annotations

import json

import mlx.core as mx
import pytest
from mlx.utils import tree_flatten
from mlx_lm.models.cache import make_prompt_cache
from mlx_lm.utils import load_model

from dynquant.errors import InvalidOptionError
from dynquant.quant.mlx.loading import open_model
from dynquant.quant.mlx.memory import cache_bytes, conversion_bytes
from tests.quant.mlx.factories import save_model


def bytes_after_running(folder, num_tokens: int) -> int:
    """Bytes of the cache after the model has read the prompt."""
    model, _ = load_model(folder)
    cache = make_prompt_cache(model)
    mx.eval(model(mx.zeros((1, num_tokens), dtype=mx.int32), cache=cache))
    leaves = [leaf for entry in cache for _, leaf in tree_flatten(entry.state)]
    return sum(leaf.nbytes for leaf in leaves if isinstance(leaf, mx.array))


# Plain attention, sliding windows, a compressed cache, a state space, both, blocks run twice.
@pytest.mark.parametrize(
    "family", ["qwen3", "gemma3_text", "deepseek_v3", "mamba2", "falcon_h1", "nanbeige"]
)
@pytest.mark.parametrize("num_tokens", [5, 60])
def test_the_cache_has_the_size_that_running_the_model_gives(tmp_path, family, num_tokens):
    folder = save_model(tmp_path / "model", family, dtype=mx.float32)
    found = cache_bytes(open_model(folder), num_tokens)
    assert found == bytes_after_running(folder, num_tokens)
    assert found > 0


def test_asking_reads_no_weight_and_leaves_the_skeleton_empty(model_folder):
    model = open_model(model_folder)
    start = mx.get_active_memory()
    cache_bytes(model, 4096)
    assert mx.get_active_memory() - start < 10**5
    assert all(array.size == 0 for _, array in tree_flatten(model.skeleton.parameters()))


def test_a_cache_of_attention_grows_with_the_context(model_folder):
    model = open_model(model_folder)
    one, two = cache_bytes(model, 512), cache_bytes(model, 1024)
    assert two == 2 * one
    assert one == 3 * 2 * 512 * 32 * 2  # blocks, keys and values, tokens, width, bfloat16


def test_a_model_whose_code_fails_is_estimated_from_its_config(model_folder):
    model = open_model(model_folder)
    model.skeleton.make_cache = lambda: [object()]  # a cache that its own code cannot use
    assert cache_bytes(model, 100) == 4 * 100 * 64 * 3
    config = json.loads((model_folder / "config.json").read_text())
    assert (config["hidden_size"], config["num_hidden_layers"]) == (64, 3)


def test_converting_takes_more_with_more_calibration_and_more_than_two_blocks(tmp_path):
    small = open_model(save_model(tmp_path / "small", num_hidden_layers=2))
    deep = open_model(save_model(tmp_path / "deep", num_hidden_layers=6))
    tokens = 2048
    assert conversion_bytes(small, 2 * tokens) > conversion_bytes(small, tokens)
    # Each further block adds the hidden states before it, and a little of the result waits with
    # that of the others to be written.
    added = conversion_bytes(deep, tokens) - conversion_bytes(small, tokens)
    sizes = [
        sum(array.nbytes for array in model.lazy_weights().values()) for model in (small, deep)
    ]
    assert added == 4 * (4 * tokens * 64) + sizes[1] - sizes[0]
    weights = small.lazy_weights().values()
    assert conversion_bytes(small, tokens) > sum(array.nbytes for array in weights)


def test_fitting_blocks_on_many_tokens_takes_memory_for_their_hidden_states(tmp_path):
    model = open_model(save_model(tmp_path / "model"))
    some, many = (conversion_bytes(model, 512, num_fitting_tokens=n << 20) for n in (1, 2))
    assert many - some == 4 * 4 * 64 << 20


def test_a_head_of_many_tokens_takes_memory_for_itself_and_its_logits(tmp_path):
    small, large = (
        conversion_bytes(open_model(save_model(tmp_path / str(vocab), vocab_size=vocab)), 512)
        for vocab in (4096, 8192)
    )
    copies = {mx.cpu: 3, mx.gpu: 2}[mx.default_device().type]
    element_bytes = 4 if mx.default_device() == mx.Device(mx.cpu) else 2
    assert large - small == 4096 * (copies * element_bytes * 64 + 3 * 4 * 512)


def test_a_cache_of_fewer_bits_has_the_size_of_the_cache_that_mlx_lm_quantizes(tmp_path):
    folder = save_model(tmp_path / "model", head_dim=64)
    model, _ = load_model(folder)
    cache = make_prompt_cache(model)
    mx.eval(model(mx.zeros((1, 256), dtype=mx.int32), cache=cache))
    quantized = [entry.to_quantized(group_size=64, bits=4) for entry in cache]
    expected = sum(entry.nbytes for entry in quantized)
    assert cache_bytes(open_model(folder), 256, kv_bits=4) == expected


@pytest.mark.parametrize("family", ["gemma3_text", "mamba2"])
def test_caches_that_mlx_lm_does_not_quantize_are_refused(tmp_path, family):
    model = open_model(save_model(tmp_path / "model", family))
    with pytest.raises(InvalidOptionError, match=f"'{family}' model takes no fewer bits"):
        cache_bytes(model, 100, kv_bits=8)
    assert all(array.size == 0 for _, array in tree_flatten(model.skeleton.parameters()))
