from __future__ import annotations

from typing import Any

import pytest

from dynquant.core.formats import QuantFormat, parse_menu
from dynquant.core.recipe import EFFORTS, Alignment, Recipe, command_of
from dynquant.errors import InvalidOptionError


def command(recipe: Recipe, **overrides: Any) -> str:
    fields = {"source": "org/M", "revision_sha": "", "calibration": "a.txt", "evaluation": "b.txt"}
    return command_of(recipe, **fields | overrides)


def test_the_command_names_what_it_rests_on_and_nothing_that_is_as_by_default():
    assert command(Recipe(targets_bpw=(3.5, 4.0))) == (
        "dynquant quantize org/M --bpw 3.5,4 --out quants --calibration a.txt --eval b.txt"
    )


def test_everything_that_changes_the_model_is_in_the_command():
    recipe = Recipe(
        targets_bpw=(4.25,),
        menu=parse_menu("4g64,8g32"),
        encoder="wls",
        effort="max",
        refine=True,
        time_budget_mins=30,
        calibration_tokens=512,
        evaluation_tokens=1024,
        context_tokens=100,
        seed=7,
        dequantize=True,
    )
    assert command(recipe, revision_sha="c0ffee") == (
        "dynquant quantize org/M --bpw 4.25 --out quants --revision c0ffee --formats 4g64,8g32 "
        "--calibration a.txt --eval b.txt --encoder wls --effort max --time-budget 30 "
        "--calibration-tokens 512 --eval-tokens 1024 --context 100 --seed 7 --refine --dequantize"
    )


def test_the_seed_method_has_its_own_options():
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
    assert normal.num_polish_rounds == normal.num_refine_steps == 0
    assert most.num_polish_rounds
    assert most.num_refine_steps


def test_refinement_can_be_asked_for_with_any_effort():
    plain, refined = (Recipe(targets_bpw=(), effort="fast", refine=r).work for r in (False, True))
    assert plain == EFFORTS["fast"]
    assert refined.num_refine_steps == EFFORTS["max"].num_refine_steps
    assert not refined.probes


@pytest.mark.parametrize("effort", ["", "best", None, ("max",)])
def test_an_unknown_effort_is_refused_with_the_known_ones(effort):
    with pytest.raises(InvalidOptionError, match=r"Choose one of fast, normal, max\."):
        Recipe(targets_bpw=(), effort=effort)


@pytest.mark.parametrize("budget", [-1, float("nan"), float("inf"), "ten"])
def test_a_time_budget_that_is_no_number_of_minutes_is_refused(budget):
    with pytest.raises(InvalidOptionError, match="minutes"):
        Recipe(targets_bpw=(), time_budget_mins=budget)
