from __future__ import annotations

import math
from pathlib import Path

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dynquant.errors import NonFiniteError
from dynquant.quant.mlx.evaluation import compare, kl_divergences, scored_parts
from dynquant.quant.mlx.loading import open_model
from dynquant.quant.mlx.streaming import BlockModel, BlockWeights, Forward
from dynquant.quant.quality import Quality
from tests.quant.mlx.factories import TinyModel, make_batches, save_model


def log_softmax(logits: mx.array) -> np.ndarray:
    z = np.asarray(logits.astype(mx.float32), np.float64)[:, :-1]
    z = z - z.max(-1, keepdims=True)
    return z - np.log(np.exp(z).sum(-1, keepdims=True))


def standard_error(scores: np.ndarray) -> float:
    means = scores.mean(1)
    return float(means.std(ddof=1) / math.sqrt(len(means)))


def naive(original: TinyModel, other: TinyModel, batches: list[mx.array]) -> Quality:
    """All figures from whole-model logits in float64."""
    scores: tuple[list[np.ndarray], ...] = ([], [], [])
    for batch in batches:
        p, q = (log_softmax(model.plain(batch)) for model in (original, other))
        targets = np.asarray(batch)[:, 1:, None]
        scores[0].append(-np.take_along_axis(q, targets, -1)[..., 0])
        scores[1].append((np.exp(p) * (p - q)).sum(-1))
        scores[2].append(p.argmax(-1) == q.argmax(-1))
    nll, kl, agree = (np.concatenate(each) for each in scores)
    perplexity = math.exp(nll.mean())
    return Quality(
        perplexity=perplexity,
        perplexity_se=perplexity * standard_error(nll),
        mean_kl_nats=kl.mean(),
        mean_kl_se_nats=standard_error(kl),
        median_kl_nats=np.quantile(kl, 0.5),
        p99_kl_nats=np.quantile(kl, 0.99),
        p999_kl_nats=np.quantile(kl, 0.999),
        top1_agreement=agree.mean(),
        num_tokens=nll.size,
        num_windows=len(nll),
    )


def evaluated(
    original: TinyModel, others: dict[str, TinyModel], batches: list[mx.array]
) -> tuple[Quality, dict[str, Quality]]:
    blocks = original.blocks()
    return compare(
        blocks,
        original.streamed(blocks),
        {name: other.streamed(blocks) for name, other in others.items()},
        batches,
    )


def assert_same(found: Quality, expected: Quality, tolerance: float = 1e-4) -> None:
    for name in expected.to_json():
        assert getattr(found, name) == pytest.approx(
            getattr(expected, name), rel=tolerance, abs=1e-7
        ), name


def test_figures_equal_those_from_whole_model_logits(tied):
    batches = [*make_batches(2, shape=(3, 24)), *make_batches(1, shape=(1, 24), seed=1)]
    others = {"a bit off": tied.noisy(0.02), "far off": tied.noisy(0.2, seed=1)}
    original, found = evaluated(tied, others, batches)
    assert_same(original, naive(tied, tied, batches))
    for name, other in others.items():
        assert_same(found[name], naive(tied, other, batches), 1e-3)
    assert found["a bit off"].mean_kl_nats < found["far off"].mean_kl_nats
    assert found["a bit off"].num_windows == 7
    assert found["a bit off"].num_tokens == 7 * 23


@given(st.integers(1, 9), st.integers(2, 40), st.integers(1, 60))
def test_the_parts_of_a_batch_are_all_that_predicts_a_token_in_order(windows, positions, max_rows):
    where = np.arange(windows * positions).reshape(windows, positions)
    parts = [where[part].reshape(-1) for part in scored_parts(windows, positions, max_rows)]
    assert np.concatenate(parts).tolist() == where.reshape(-1).tolist()
    assert max(map(len, parts)) <= max_rows


def test_figures_of_a_trained_model_equal_those_from_its_logits(tiny_qwen3):
    """A vocabulary of 8,192 is scored in several chunks of rows."""
    batches, other = make_batches(2, shape=(2, 160), vocab=8192), tiny_qwen3.noisy(0.005)
    original, found = evaluated(tiny_qwen3, {"other": other}, batches)
    assert_same(original, naive(tiny_qwen3, tiny_qwen3, batches))
    assert_same(found["other"], naive(tiny_qwen3, other, batches), 1e-3)


def test_identical_models_differ_by_nothing(tied):
    original, found = evaluated(tied, {"same": tied}, make_batches())
    assert found["same"] == original
    assert original.top1_agreement == 1
    assert original.mean_kl_nats == original.p999_kl_nats == 0


def test_a_tiny_difference_has_a_tiny_divergence_that_is_never_negative(tied):
    batches, other = make_batches(), tied.noisy(1e-5)
    _, found = evaluated(tied, {"other": other}, batches)
    assert found["other"].mean_kl_nats == pytest.approx(
        naive(tied, other, batches).mean_kl_nats, rel=0.05
    )
    assert found["other"].median_kl_nats >= 0


def test_the_divergence_is_from_the_original_to_the_other(tied):
    """KL is not symmetric: the reference's probabilities are the weights."""
    batches, other = make_batches(), tied.noisy(0.1)
    forward = naive(tied, other, batches).mean_kl_nats
    assert forward != pytest.approx(naive(other, tied, batches).mean_kl_nats, rel=0.01)
    blocks = tied.blocks()
    original = Forward(blocks, tied.streamed(blocks), batches)
    changed = Forward(blocks, other.streamed(blocks), batches)
    while original.next_block is not None:
        original.step()
        changed.step()
    assert kl_divergences(original, {"x": changed})["x"] == pytest.approx(forward, rel=1e-3)


def test_one_window_has_no_standard_error(tied):
    original, _ = evaluated(tied, {}, make_batches(1, shape=(1, 24)))
    assert math.isnan(original.perplexity_se)
    assert original.num_windows == 1


def test_progress_is_told_after_each_block(tied):
    steps: list[int] = []
    blocks = tied.blocks()
    compare(blocks, tied.streamed(blocks), {}, make_batches(), on_step=lambda: steps.append(1))
    assert len(steps) == 3


@pytest.mark.parametrize("value", [math.nan, math.inf])
@pytest.mark.parametrize(
    ("damaged", "words"), [("original", "the original"), ("4-bit", "the 4-bit")]
)
def test_logits_that_are_not_finite_are_an_error_that_names_the_model(tied, damaged, words, value):
    broken = tied.with_weights(lambda path, a: a * value if path == "model.norm.weight" else a)
    original = broken if damaged == "original" else tied
    with pytest.raises(NonFiniteError, match=words) as raised:
        evaluated(original, {"4-bit": broken}, make_batches())
    assert raised.value.layer == "logits"


def masking(value: float, embedding: type[nn.Embedding]) -> type[nn.Embedding]:
    """Embeddings that give every token from 100 on a logit of `value`."""

    class Masking(embedding):  # type: ignore[valid-type, misc]
        def as_linear(self, x: mx.array) -> mx.array:
            return mx.where(mx.arange(128) < 100, super().as_linear(x), value)

    return Masking


def test_tokens_that_a_model_masks_out_count_for_nothing(tied):
    """Some models set the logits of unused tokens to -inf, original and quantized alike."""
    found = []
    for value in (-mx.inf, -50.0):
        blocks, other = tied.blocks(), tied.noisy(0.05)
        embedding = blocks.model.model.embed_tokens
        embedding.__class__ = masking(value, type(embedding))
        candidates = {"x": other.streamed(blocks)}
        found.append(compare(blocks, tied.streamed(blocks), candidates, make_batches(vocab=100)))
    (original, others), (expected, expected_others) = found
    assert_same(original, expected)
    assert_same(others["x"], expected_others["x"])


def steep(embedding: type[nn.Embedding]) -> type[nn.Embedding]:
    """Embeddings that give tokens from 100 on logits of a thousand times their first weight."""

    class Steep(embedding):  # type: ignore[valid-type, misc]
        def as_linear(self, x: mx.array) -> mx.array:
            unused = mx.broadcast_to(1000 * self.weight[100:, 0], (*x.shape[:-1], 28))
            return mx.concatenate([super().as_linear(x)[..., :100], unused], axis=-1)

    return Steep


@pytest.mark.parametrize(("now", "then"), [(-0.11, -0.01), (-0.11, 0.02)])
def test_a_token_that_becomes_e_to_the_hundredth_likelier_has_a_finite_divergence(tied, now, then):
    def with_first(value: float) -> TinyModel:
        unused = (mx.arange(128) >= 100)[:, None] & (mx.arange(64) == 0)
        model = tied.with_weights(
            lambda path, array: mx.where(unused, value, array) if "embed" in path else array
        )
        embedding = model.plain.model.embed_tokens
        embedding.__class__ = steep(type(embedding))
        return model

    original, other, batches = with_first(now), with_first(then), make_batches(vocab=100)
    blocks = original.blocks()
    _, found = compare(blocks, original.streamed(blocks), {"x": other.streamed(blocks)}, batches)
    assert_same(found["x"], naive(original, other, batches))


def peak_bytes(folder: Path, num_models: int) -> int:
    """Most memory that comparing a model to so many copies of itself takes."""
    model, batches = open_model(folder), make_batches()
    blocks = BlockModel(model.skeleton)
    copies = {str(n): BlockWeights(blocks, model.lazy_weights) for n in range(num_models)}
    mx.reset_peak_memory()
    _, found = compare(blocks, BlockWeights(blocks, model.lazy_weights), copies, batches)
    assert [quality.mean_kl_nats for quality in found.values()] == [0.0] * num_models
    return mx.get_peak_memory()


@pytest.mark.parametrize("tied", [True, False])
def test_of_many_models_one_embedding_is_in_memory_at_a_time(tmp_path, tied):
    vocab = 8192
    folder = save_model(tmp_path / "model", vocab_size=vocab, tie_word_embeddings=tied)
    embedding_bytes = 4 * 64 * vocab
    # The hidden states of six more models take a tenth of an embedding.
    assert peak_bytes(folder, 8) - peak_bytes(folder, 2) < embedding_bytes / 2
