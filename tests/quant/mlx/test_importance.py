from __future__ import annotations

import mlx.core as mx
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from dynquant.quant.mlx.importance import Importance, Term

vectors = hnp.arrays(
    np.float32,
    st.integers(1, 12),
    elements=st.floats(0, 2.0**100, width=32, allow_subnormal=False),
)


def random(*shape: int, seed: int = 0) -> mx.array:
    return mx.array(np.random.default_rng(seed).lognormal(0, 1, shape).astype(np.float32))


@pytest.mark.parametrize("lead", [(), (3,), (2, 3)])
def test_importance_is_the_sum_over_terms_of_row_times_column(lead):
    terms = tuple(Term(random(*lead, 4, seed=s), random(*lead, 6, seed=9 + s)) for s in range(2))
    importance = Importance(terms)
    full = sum(np.asarray(t.rows)[..., :, None] * np.asarray(t.cols)[..., None, :] for t in terms)
    full = np.asarray(full).reshape(-1, 6)
    rows = mx.array([len(full) - 1, 0, 2])
    np.testing.assert_allclose(importance.of_rows(rows), full[np.asarray(rows)], rtol=1e-6)
    np.testing.assert_allclose(importance.run_masses(3), full.reshape(-1, 3).sum(1), rtol=1e-6)
    assert importance.mass == pytest.approx(full.sum(), rel=1e-6)


def test_without_terms_every_weight_counts_the_same():
    assert Importance(()).of_rows(mx.arange(3)).tolist() == [[1.0]]


@settings(max_examples=50)
@given(vectors, vectors)
def test_terms_survive_being_stored_as_text(rows, cols):
    importance = Importance((Term(mx.array(rows), mx.array(cols)),))
    back = Importance.from_stored(importance.to_stored())
    assert np.array_equal(np.asarray(back.terms[0].rows), rows)
    assert np.array_equal(np.asarray(back.terms[0].cols), cols)


@pytest.mark.parametrize("text", ["no base64!", "AAA", "AAAA", "é"])
def test_damaged_text_is_refused(text):
    with pytest.raises(ValueError, match=r"."):
        Importance.from_stored(((text, text),))
