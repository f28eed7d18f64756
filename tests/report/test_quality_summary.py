from __future__ import annotations

import pytest

from dynquant.report.numbers import count, percent, significant, size, with_error
from dynquant.report.quality_summary import (
    choice,
    comparison,
    fitting_macs,
    prediction,
    recommendation,
)
from tests.report.card_factories import (
    NAN,
    make_facts,
    make_layers,
    make_original,
    make_plan,
    make_row,
    make_uniform,
    make_variant,
    make_variants,
)


def recommended(**overrides):
    return recommendation(make_facts(1, rows=(make_original(), make_row(**overrides))))


def test_the_recommendation_names_size_distance_and_use():
    assert recommended() == (
        "4.50 bits per weight, 28 % of the original size; mean KL 0.0065 nats, "
        "top-1 agreement 94 %: close to the original for most uses."
    )


@pytest.mark.parametrize(
    ("kl_nats", "top1", "words"),
    [
        (0.004, 0.97, "hardly distinguishable"),
        (0.004, 0.94, "close to the original"),
        (0.02, 0.92, "close to the original"),
        (0.03, 0.92, "noticeably different"),
        (0.004, 0.85, "noticeably different"),
        (0.09, 0.92, "clearly worse"),
        (0.004, 0.5, "clearly worse"),
    ],
)
def test_the_worse_of_kl_and_agreement_decides(kl_nats, top1, words):
    assert words in recommended(mean_kl_nats=kl_nats, top1_agreement=top1)


def test_what_was_not_measured_is_not_praised():
    assert "was not measured" in recommended(mean_kl_nats=NAN)
    assert "was not measured" in recommended(top1_agreement=NAN)


def test_a_source_of_unknown_size_gives_no_share():
    rows = (make_original(num_bytes=0), make_row())
    assert recommendation(make_facts(1, rows=rows)).startswith("4.50 bits per weight; mean KL")


def test_a_better_model_says_by_how_much_and_at_which_sizes():
    assert comparison(make_row(), make_uniform()) == (
        "The uniform model is 2.11 times as far from the original as this one, by mean KL "
        "(4.497 bits per weight here, 4.501 in “Uniform 4-bit, group 64”)."
    )


def test_a_worse_model_is_called_worse():
    worse = make_row(mean_kl_nats=0.03, stored_bpw=4.6)
    sentence = comparison(worse, make_uniform())
    assert sentence.startswith("This model is 2.17 times as far from the original")
    assert sentence.endswith("at this size the uniform model is the better choice.")


def test_a_worse_but_smaller_model_says_that_the_other_is_larger():
    smaller = make_row(mean_kl_nats=0.03, stored_bpw=4.1)
    assert "the uniform model is larger" in comparison(smaller, make_uniform())


def test_a_difference_within_the_error_is_none():
    ours = make_row(mean_kl_nats=0.0131, mean_kl_se_nats=0.0004)
    assert "within the error of the measurement" in comparison(ours, make_uniform())


def test_one_window_knows_no_error():
    ours, uniform = make_row(mean_kl_se_nats=NAN), make_uniform(mean_kl_se_nats=NAN)
    assert "2.11 times" in comparison(ours, uniform)
    same = make_row(mean_kl_nats=0.01381, mean_kl_se_nats=NAN)
    assert "within the error" in comparison(same, uniform)


def test_a_lossless_model_is_infinitely_closer():
    ours = make_row(mean_kl_nats=0.0, mean_kl_se_nats=0.0)
    assert "infinitely many times" in comparison(ours, make_uniform())
    assert "no measured KL" in comparison(make_row(mean_kl_nats=NAN), make_uniform())


def test_the_smallest_size_that_is_as_good_as_the_original_is_named():
    assert choice(make_variants()) == (
        "Qwen3-0.6B-MLX-6.0bpw is the smallest of these that is hardly distinguishable from the "
        "original."
    )


def test_without_one_it_is_the_smallest_that_does_for_most_uses():
    assert choice(make_variants()[:2]) == (
        "Qwen3-0.6B-MLX-4.5bpw is the smallest of these that is close to the original for most "
        "uses."
    )


def test_nothing_is_advised_that_the_figures_do_not_support():
    bad = (
        make_variant(2.5, 0.9),
        make_variant(3.0, NAN),
        make_variant(4.0, 0.001, top1_agreement=NAN),
    )
    assert choice(bad) == ""


def test_prediction_stands_beside_measurement_with_the_gap_to_the_best_plan():
    assert prediction(make_facts(1)) == (
        "Mean KL in nats: 0.00612 predicted from the costs of the layers, before blocks are "
        "fitted; 0.00653 ± 0.00021 "
        "measured. No plan of this size is predicted to lose less than 0.00611 nats "
        "(0.16 % below this one)."
    )


@pytest.mark.parametrize(
    ("overrides", "sentence"),
    [
        ({"predicted_kl_nats": NAN}, "Mean KL in nats: – predicted"),
        ({"lower_bound_nats": NAN}, "Mean KL in nats: 0.00612 predicted"),
        ({"predicted_kl_nats": 0.0}, "Mean KL in nats: 0 predicted"),
    ],
)
def test_without_a_prediction_or_bound_there_is_no_gap(overrides, sentence):
    layers = make_layers(1)
    text = prediction(make_facts(layers=layers, plan=make_plan(layers, **overrides)))
    assert text.startswith(sentence)
    assert "No plan" not in text


@pytest.mark.parametrize(
    ("memory_gib", "words"),
    [
        (5.3, "Macs with 8 GB of memory or more"),
        (5.4, "Macs with 16 GB of memory or more"),
        (21.4, "Macs with 36 GB of memory or more"),
        (27.0, "Macs with 36 GB of memory or more"),
        (385, "no single Mac: more than the GPU of one with 512 GB may use"),
    ],
)
def test_a_model_fits_where_the_gpu_may_hold_it(memory_gib, words):
    assert fitting_macs(int(memory_gib * 2**30)) == words


@pytest.mark.parametrize(
    ("shown", "expected"),
    [
        (significant(0.006534, 2), "0.0065"),
        (significant(1234.5, 3), "1234"),
        (significant(0.0, 3), "0"),
        (significant(-0.5, 1), "-0.5"),
        (significant(NAN, 3), "–"),
        (significant(1e-12, 3), "< 0.000000001"),
        (with_error(14.2371, 0.3124, digits=4), "14.24 ± 0.31"),
        (with_error(14.2371, NAN, digits=4), "14.24 ± –"),
        (with_error(0.0, 0.0, digits=3), "0"),
        (with_error(0.0, NAN, digits=3), "0"),
        (with_error(0.5, 0.0, digits=3), "0.500"),
        (with_error(123456.0, 5000.0, digits=3), "123456 ± 5000"),
        (with_error(NAN, 0.1, digits=3), "–"),
        (percent(0.2727), "27 %"),
        (percent(0.943, decimals=1), "94.3 %"),
        (percent(0.9999, decimals=1), "> 99.9 %"),
        (percent(0.0001), "< 1 %"),
        (percent(0.0), "0 %"),
        (percent(1.0), "100 %"),
        (percent(NAN), "–"),
        (size(4_610_000_000), "4.61 GB"),
        (size(434_000_000), "434 MB"),
        (size(999), "999 bytes"),
        (count(8_190_000_000), "8.19 B"),
        (count(999), "999"),
    ],
)
def test_figures_read_as_people_write_them(shown, expected):
    assert shown == expected
