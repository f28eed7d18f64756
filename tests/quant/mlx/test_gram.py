from __future__ import annotations

import mlx.core as mx
import numpy as np
import pytest

from dynquant.quant.mlx.gram import GramMatrix

NARROW, WIDE = 96, 4384  # the second is held in runs of rows, the last one shorter


def vectors(*shape: int, seed: int = 0) -> mx.array:
    return mx.array(np.random.default_rng(seed).normal(size=shape).astype(np.float32))


@pytest.mark.parametrize("width", [NARROW, WIDE])
def test_products_add_up_to_the_whole_matrix(width):
    first, second = vectors(6, width), vectors(3, width, seed=1)
    both = mx.concatenate([first, second])
    found = GramMatrix.of(first) + GramMatrix.of(second)
    assert (len(found.arrays()) > 1) == (width == WIDE)
    np.testing.assert_allclose(found.diagonal, mx.square(both).sum(0), rtol=1e-5)
    np.testing.assert_allclose(found.whole(), both.T @ both, atol=1e-4)
    np.testing.assert_allclose(found.diagonal, mx.square(both).sum(0), rtol=1e-5)


def test_a_wide_matrix_takes_half_the_memory_until_it_is_whole():
    found = GramMatrix.of(vectors(4, WIDE))
    assert sum(panel.size for panel in found.arrays()) < 0.65 * WIDE**2
    assert found.whole().shape == (WIDE, WIDE)
    assert [array.shape for array in found.arrays()] == [(WIDE, WIDE)]


@pytest.mark.parametrize("width", [NARROW, WIDE])
def test_experts_are_stacked_and_changed_one_by_one(width):
    parts = [vectors(num, width, seed=num) for num in (5, 0, 2)]
    found = GramMatrix.stacked([GramMatrix.of(part) for part in parts])
    scaled = found.mapped(lambda sums: sums * mx.array([1.0, 2.0, 3.0])[:, None, None])
    for e, part in enumerate(parts):
        np.testing.assert_allclose(scaled.whole()[e], (e + 1) * (part.T @ part), atol=1e-3)
