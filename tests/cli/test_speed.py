from __future__ import annotations

from dataclasses import replace

import pytest

from dynquant.cli.speed import expected_secs, record
from dynquant.quant.formats import QuantFormat
from dynquant.quant.recipe import Alignment, Recipe

RECIPE = Recipe(targets_bpw=(4.5,), calibration_tokens=1000, evaluation_tokens=1000)
ALIGNMENT = Alignment(low=QuantFormat(4, 64), high=QuantFormat(8, 64))
LONGER = Recipe(targets_bpw=(4.5,), calibration_tokens=3000, evaluation_tokens=1000)


def test_nobody_can_tell_before_the_first_conversion(tmp_path):
    assert expected_secs(tmp_path, num_parameters=10**9, recipe=RECIPE) is None


def test_twice_the_parameters_or_tokens_take_twice_as_long(tmp_path):
    record(tmp_path, secs=60, num_parameters=10**9, recipe=RECIPE)
    for num_parameters, recipe, secs in (
        (10**9, RECIPE, 60),
        (2 * 10**9, RECIPE, 120),
        (10**9, LONGER, 120),
    ):
        found = expected_secs(tmp_path, num_parameters=num_parameters, recipe=recipe)
        assert found == pytest.approx(secs)


def test_what_took_other_passes_tells_nothing(tmp_path):
    record(tmp_path, secs=60, num_parameters=10**9, recipe=RECIPE)
    others = [replace(RECIPE, effort="max"), replace(RECIPE, encoder="wls")]
    others += [replace(RECIPE, distil=True), replace(RECIPE, alignment=ALIGNMENT)]
    for recipe in others:
        assert expected_secs(tmp_path, num_parameters=10**9, recipe=recipe) is None
    record(tmp_path, secs=300, num_parameters=10**9, recipe=others[0])
    for recipe, secs in ((RECIPE, 60), (others[0], 300)):
        found = expected_secs(tmp_path, num_parameters=10**9, recipe=recipe)
        assert found == pytest.approx(secs)


def test_one_slow_run_does_not_spoil_the_rest_and_old_ones_are_forgotten(tmp_path):
    for secs in (500, 500, 500, 500, 60, 9000, 61, 62, 63, 60, 61, 62, 62, 63):
        record(tmp_path, secs=secs, num_parameters=10**9, recipe=RECIPE)
    found = expected_secs(tmp_path, num_parameters=10**9, recipe=RECIPE)
    assert found == pytest.approx(62)


def test_a_run_of_another_size_tells_nothing(tmp_path):
    """A demo with a few tokens would foretell months for a large model."""
    record(tmp_path, secs=60, num_parameters=10**6, recipe=RECIPE)
    for num_parameters, is_known in ((10**5, True), (9 * 10**6, True), (10**8, False), (10, False)):
        found = expected_secs(tmp_path, num_parameters=num_parameters, recipe=RECIPE)
        assert (found is not None) is is_known


def test_a_place_that_cannot_be_written_costs_no_finished_model(tmp_path):
    (tmp_path / "file").write_text("")
    record(tmp_path / "file", secs=60, num_parameters=10**9, recipe=RECIPE)


@pytest.mark.parametrize(
    "content",
    [
        *("", "{", "[]"),
        '{"work_and_secs": [1e-12]}',
        '{"work_and_secs": {"gptq normal": ["x"]}}',
        '{"secs_per_parameter_and_token": {"gptq normal": [1e-12]}}',
    ],
)
def test_a_file_that_nobody_can_read_counts_as_none(tmp_path, content):
    (tmp_path / "speed.json").write_text(content)
    assert expected_secs(tmp_path, num_parameters=1, recipe=RECIPE) is None
