from __future__ import annotations

import math

import numpy as np
import pytest

from dynquant.errors import NonFiniteError
from dynquant.quant.quality import IMAGE_FIGURES, summarize


def scores(rows: int = 4, columns: int = 50, *, seed: int = 0):
    rng = np.random.default_rng(seed)
    nll = rng.gamma(2.0, 1.0, (rows, columns)).astype(np.float32)
    kl = rng.gamma(0.5, 0.02, (rows, columns)).astype(np.float32)
    agree = (rng.random((rows, columns)) < 0.9).astype(np.float32)
    return nll, kl, agree


def test_figures_are_those_of_their_definitions():
    nll, kl, agree = scores()
    quality = summarize(nll, kl, agree)
    tokens = sorted(float(value) for value in kl.reshape(-1))
    assert quality.perplexity == pytest.approx(math.exp(sum(map(float, nll.reshape(-1))) / 200))
    assert quality.mean_kl_nats == pytest.approx(sum(tokens) / 200)
    assert quality.median_kl_nats == pytest.approx((tokens[99] + tokens[100]) / 2)
    # The 99 % point of 200 values lies 0.01 beyond the 198th of 0 to 199.
    assert quality.p99_kl_nats == pytest.approx(tokens[197] + 0.01 * (tokens[198] - tokens[197]))
    assert quality.p99_kl_nats < quality.p999_kl_nats <= tokens[-1]
    assert quality.top1_agreement == pytest.approx(float(agree.mean()))
    assert (quality.num_tokens, quality.num_windows) == (200, 4)


def test_standard_errors_are_over_windows_since_tokens_of_one_depend_on_each_other():
    nll = np.repeat([[1.0], [2.0], [3.0]], 100, axis=1)  # within a window all alike
    quality = summarize(nll, nll, np.ones_like(nll))
    expected = math.sqrt(((1 - 2) ** 2 + 0 + (3 - 2) ** 2) / 2) / math.sqrt(3)
    assert quality.mean_kl_se_nats == pytest.approx(expected)
    assert quality.perplexity_se == pytest.approx(math.exp(2.0) * expected)


def test_one_window_has_no_standard_error():
    quality = summarize(*scores(rows=1))
    assert math.isnan(quality.mean_kl_se_nats)
    assert math.isnan(quality.perplexity_se)


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("which", [0, 1])
def test_a_score_that_is_no_number_is_an_error_and_is_counted(which, bad):
    rows = scores()
    rows[which][2, 7] = bad
    rows[which][3, 0] = bad
    with pytest.raises(NonFiniteError, match="2 of 200 tokens") as caught:
        summarize(*rows)
    assert caught.value.layer == "logits"


def test_the_mean_on_images_is_over_all_tokens_and_its_error_over_images():
    kl = [np.array([1.0, 2.0]), np.array([3.0]), np.array([2.0, 2.0, 5.0])]
    quality = summarize(*scores(), image_kl=kl)
    assert quality.image_mean_kl_nats == pytest.approx(15 / 6)
    # Sums less the mean times the counts: 3 − 5, 3 − 2.5 and 9 − 7.5.
    expected = math.sqrt((2**2 + 0.5**2 + 1.5**2) * 3 / 2) / 6
    assert quality.image_mean_kl_se_nats == pytest.approx(expected)
    assert (quality.num_images, quality.num_image_positions) == (3, 6)


def test_of_images_with_as_many_tokens_each_the_error_is_that_of_their_means():
    kl = list(scores(6, 10)[1])
    expected = np.mean(kl, axis=1).std(ddof=1) / math.sqrt(6)
    assert summarize(*scores(), image_kl=kl).image_mean_kl_se_nats == pytest.approx(expected)


def test_without_images_there_are_no_figures_on_them():
    quality = summarize(*scores())
    assert quality.image_mean_kl_nats is None
    assert not set(quality.to_json()) & set(IMAGE_FIGURES)
    assert set(IMAGE_FIGURES) <= set(summarize(*scores(), image_kl=list(scores()[1])).to_json())


def test_a_score_on_an_image_that_is_no_number_is_an_error():
    with pytest.raises(NonFiniteError, match="1 of 203 tokens"):
        summarize(*scores(), image_kl=[np.array([1.0, math.inf]), np.array([1.0])])


def test_a_perplexity_that_overflows_is_an_error():
    _, kl, agree = scores()
    with pytest.raises(NonFiniteError, match="200 of 200 tokens"):
        summarize(np.full_like(kl, 1e4), kl, agree)
