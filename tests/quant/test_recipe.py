from __future__ import annotations

import math
from typing import Any

import pytest

from dynquant.errors import InvalidOptionError
from dynquant.quant.formats import QuantFormat, parse_menu
from dynquant.quant.recipe import EFFORTS, Alignment, Recipe, command_of


def command(recipe: Recipe, **overrides: Any) -> str:
    fields = {"source": "org/M", "revision_sha": "", "calibration": "a.txt", "evaluation": "b.txt"}
    return command_of(recipe, **fields | overrides)


def test_the_command_names_model_texts_and_options_that_differ_from_the_default():
    assert command(Recipe(targets_bpw=(3.5, 4.0))) == (
        "dynquant quantize org/M --bpw 3.5,4 --out quants --calibration a.txt --eval b.txt"
    )


def test_everything_that_changes_the_model_is_in_the_command():
    recipe = Recipe(
        targets_bpw=(4.25,),
        menu=parse_menu("4g64,8g32"),
        encoder="wls",
        effort="max",
        distil=True,
        time_budget_mins=30,
        calibration_tokens=512,
        evaluation_tokens=1024,
        context_tokens=100,
        seed=7,
        dequantize=True,
        dtype="float32",
    )
    assert command(recipe, revision_sha="c0ffee") == (
        "dynquant quantize org/M --bpw 4.25 --out quants --revision c0ffee --formats 4g64,8g32 "
        "--calibration a.txt --eval b.txt --encoder wls --effort max --time-budget 30 "
        "--calibration-tokens 512 --eval-tokens 1024 --context 100 --seed 7 --dtype float32 "
        "--distil --dequantize"
    )


def test_the_alignment_method_has_its_own_options():
    alignment = Alignment(low=QuantFormat(4, 64), high=QuantFormat(8, 64), tolerance=0.1)
    said = command(Recipe(targets_bpw=(5.0,), alignment=alignment, menu=parse_menu("4g64,8g64")))
    assert "--method alignment --low 4g64 --high 8g64 --tolerance 0.1 --calibration" in said
    assert "--formats" not in said


def test_names_are_quoted_for_the_shell():
    assert "'my model; rm'" in command(Recipe(targets_bpw=(4.0,)), source="my model; rm")


def test_more_effort_is_more_of_every_work():
    fast, normal, most = (EFFORTS[name] for name in ("fast", "normal", "max"))
    assert not fast.probes
    assert normal.probes
    assert most.probes
    assert fast.num_sweeps < normal.num_sweeps < most.num_sweeps
    assert normal.num_polish_rounds == normal.num_distil_steps == 0
    assert most.num_polish_rounds
    assert most.num_distil_steps


@pytest.mark.parametrize(
    ("options", "ratio"),
    [
        ({}, 4),
        ({"encoder": "wls"}, 0),
        ({"encoder": "wls", "distil": True}, 24),
        ({"effort": "fast"}, 0),
    ],
)
def test_more_text_is_cut_only_where_weights_are_fitted(options, ratio):
    assert Recipe(targets_bpw=(), calibration_tokens=7, **options).fitting_tokens == 7 * ratio


def test_distillation_can_be_asked_for_with_any_effort():
    plain, distilled = (Recipe(targets_bpw=(), effort="fast", distil=r).work for r in (False, True))
    assert plain == EFFORTS["fast"]
    assert distilled.num_distil_steps == EFFORTS["max"].num_distil_steps
    assert not distilled.probes


@pytest.mark.parametrize("effort", ["", "best", None, ("max",)])
def test_an_unknown_effort_is_refused_with_the_known_ones(effort):
    with pytest.raises(InvalidOptionError, match=r"Choose one of fast, normal, max\."):
        Recipe(targets_bpw=(), effort=effort)


@pytest.mark.parametrize("budget", [-1, float("nan"), float("inf"), 1e9, True, "ten"])
def test_a_time_budget_that_is_no_number_of_minutes_is_refused(budget):
    with pytest.raises(InvalidOptionError, match="minutes"):
        Recipe(targets_bpw=(), time_budget_mins=budget)


@pytest.mark.parametrize(
    "targets", [(math.nan,), (math.inf,), (0.0,), (-4.0,), (32.1,), (True,), ("4",), (4.5, 0.0)]
)
def test_a_target_out_of_range_for_every_model_is_refused(targets):
    with pytest.raises(InvalidOptionError, match="positive number of bits per weight, at most 32"):
        Recipe(targets_bpw=targets)


def test_targets_whose_models_would_have_one_name_are_refused():
    for targets in ((4.0, 4.0), (4.5, 4.500001)):
        with pytest.raises(InvalidOptionError, match="Two of the targets are the same"):
            Recipe(targets_bpw=targets)
    with pytest.raises(InvalidOptionError, match="at most 32 targets"):
        Recipe(targets_bpw=tuple(3 + i / 100 for i in range(33)))
    assert len(Recipe(targets_bpw=tuple(3 + i / 100 for i in range(32))).targets_bpw) == 32


@pytest.mark.parametrize("name", ["calibration_tokens", "evaluation_tokens", "context_tokens"])
@pytest.mark.parametrize("value", [0, -1, 10**10, 1.5, True, "512"])
def test_a_number_of_tokens_that_makes_no_sense_is_refused(name, value):
    with pytest.raises(InvalidOptionError, match=r"must be a whole number from 1 to "):
        Recipe(targets_bpw=(4.5,), **{name: value})


@pytest.mark.parametrize("seed", [-1, 2**32, 0.5, None])
def test_a_seed_is_a_whole_number_of_32_bits(seed):
    with pytest.raises(InvalidOptionError, match="The seed must be a whole number from 0 to 4,294"):
        Recipe(targets_bpw=(4.5,), seed=seed)


@pytest.mark.parametrize("tolerance", [-0.1, 1.5, math.nan])
def test_a_tolerance_is_a_share(tolerance):
    with pytest.raises(InvalidOptionError, match="tolerance must lie between 0 and 1"):
        Alignment(low=QuantFormat(4, 64), high=QuantFormat(8, 64), tolerance=tolerance)


@pytest.mark.parametrize("tower", ["", "4", "Keep", "all"])
def test_a_tower_is_stored_in_a_known_way(tower):
    with pytest.raises(InvalidOptionError, match="Choose one of keep, 8, none"):
        Recipe(targets_bpw=(4.0,), tower=tower)


def test_the_command_names_a_tower_that_is_not_kept_as_it_is():
    assert "--tower" not in command(Recipe(targets_bpw=(4.0,)))
    assert command(Recipe(targets_bpw=(4.0,), tower="none")).endswith("--tower none")
