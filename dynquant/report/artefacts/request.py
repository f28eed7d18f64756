"""The request behind a finished model, compared to avoid making the same model twice."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from dynquant.quant.formats import QuantFormat
from dynquant.quant.recipe import RECIPE_VERSION, Recipe
from dynquant.report.artefacts.fields import text_to_json
from dynquant.report.facts import ModelFacts

__all__ = ["request_of", "requested"]

_MEASURED, _ALIGNMENT = "fisher", "alignment"
"""Methods that can be requested; `fisher` becomes `block_output` on models without gradients."""


def request_of(facts: ModelFacts) -> dict[str, Any]:
    """The request that a finished model answers, as JSON types."""
    return {
        "recipe_version": RECIPE_VERSION,
        "source": facts.source,
        "revision_sha": facts.revision_sha,
        "target_bpw": facts.plan.target_bpw,
        "method": _ALIGNMENT if facts.method == _ALIGNMENT else _MEASURED,
        "encoder": facts.encoder,
        "effort": facts.effort,
        "refine": facts.refine,
        "time_budget_mins": facts.time_budget_mins,
        "seed": facts.seed,
        "menu": _names(facts.menu),
        "calibration": text_to_json(facts.calibration),
        "calibration_tokens": facts.calibration_tokens,
        "evaluation": text_to_json(facts.evaluation),
        "evaluation_tokens": facts.evaluation_tokens,
    }


def requested(
    *,
    source: str,
    revision_sha: str,
    target_bpw: float,
    recipe: Recipe,
    calibration: Mapping[str, str],
    evaluation: Mapping[str, str],
) -> dict[str, Any]:
    """A request, as far as it is known before its texts are read; see `same_request`.

    Args:
        source: Repo id.
        revision_sha: Commit of it.
        target_bpw: One of the recipe's targets.
        recipe: How to quantize.
        calibration: Fields of `TextFacts` by which the calibration text is known.
        evaluation: The same of the evaluation text.
    """
    return {
        "recipe_version": RECIPE_VERSION,
        "source": source,
        "revision_sha": revision_sha,
        "target_bpw": target_bpw,
        # Thresholds and sensitivities are in no plan, so such a model is never the same.
        "method": _MEASURED if recipe.alignment is None else None,
        "encoder": recipe.encoder,
        "effort": recipe.effort,
        "refine": recipe.refine,
        "time_budget_mins": recipe.time_budget_mins,
        "seed": recipe.seed,
        "menu": _names(recipe.menu),
        "calibration": dict(calibration),
        "calibration_tokens": recipe.calibration_tokens,
        "evaluation": dict(evaluation),
        "evaluation_tokens": recipe.evaluation_tokens,
    }


def _names(menu: Sequence[QuantFormat]) -> list[str]:
    return [fmt.name for fmt in sorted(set(menu))]
