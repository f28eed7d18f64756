from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dynquant.quant.mlx.comparing import are_finite, mean_kl_nats, streamed_logits
from tests.quant.mlx.factories import make_model


def plain_kl(a: np.ndarray, b: np.ndarray) -> float:
    p, q = (np.exp(x) / np.exp(x).sum(-1, keepdims=True) for x in (a, b))
    return float((p * np.log(p / q)).sum(-1).mean())


@given(seed=st.integers(0, 1000), positions=st.integers(1, 5))
def test_the_divergence_is_that_of_the_definition(seed, positions):
    rng = np.random.default_rng(seed)
    a, b = rng.normal(size=(2, positions, 7))
    assert mean_kl_nats([a], [b]) == pytest.approx(plain_kl(a, b), abs=1e-12)
    assert mean_kl_nats([a], [a + 3]) == pytest.approx(0, abs=1e-12)


def test_windows_count_by_their_positions():
    a = np.zeros((3, 4))
    b = np.tile([5.0, 0, 0, 0], (3, 1))
    both = mean_kl_nats([a, a[:1]], [a, b[:1]])
    assert both == pytest.approx(plain_kl(a[:1], b[:1]) / 4)


def test_masked_tokens_do_not_count_and_are_finite():
    a = np.array([[0.0, 1.0, -np.inf]], dtype=np.float32)
    assert mean_kl_nats([a], [a]) == 0
    assert are_finite([a])


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_nan_and_infinity_are_not_finite(bad):
    assert not are_finite([np.zeros((1, 3)), np.array([[0.0, bad, 1.0]])])
    assert not are_finite([np.full((1, 3), -np.inf)])


def test_logits_of_another_vocabulary_are_refused():
    with pytest.raises(ValueError, match="in place of"):
        mean_kl_nats([np.zeros((2, 3))], [np.zeros((2, 4))])


def test_windows_of_several_lengths_are_streamed_together():
    import mlx.core as mx

    tiny = make_model()
    windows = [[3], [5, 6, 7], list(range(20))]
    found = streamed_logits(tiny.blocks(), tiny.load, windows)
    for ids, logits in zip(windows, found, strict=True):
        expected = np.asarray(tiny.plain(mx.array([ids]))[0])
        np.testing.assert_allclose(logits, expected, rtol=1e-4, atol=1e-5)
