"""The request behind a finished model, compared to avoid making the same model twice."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from dynquant.quant.recipe import RECIPE_VERSION, Recipe
from dynquant.report.artefacts.fields import images_to_json, text_to_json
from dynquant.report.facts import ModelFacts

__all__ = ["images_of", "request_of", "requested"]

_MEASURED, _ALIGNMENT = "fisher", "alignment"
"""Methods that can be requested; `fisher` becomes `block_output` on models without gradients."""


def request_of(facts: ModelFacts) -> dict[str, Any]:
    """The request that a finished model meets, as JSON types."""
    return {
        "recipe_version": RECIPE_VERSION,
        "source": facts.source,
        "revision_sha": facts.revision_sha,
        "target_bpw": facts.plan.target_bpw,
        "method": _ALIGNMENT if facts.method == _ALIGNMENT else _MEASURED,
        **_options(facts),
        "calibration": text_to_json(facts.calibration),
        "evaluation": text_to_json(facts.evaluation),
        **images_of(facts),
    }


def images_of(facts: ModelFacts) -> dict[str, Any]:
    """The entries on images, where there are some."""
    named = {
        "calibration_images": images_to_json(facts.calibration_images),
        "evaluation_images": images_to_json(facts.evaluation_images),
    }
    return {name: found for name, found in named.items() if found is not None}


def requested(
    *,
    source: str,
    revision_sha: str,
    target_bpw: float,
    recipe: Recipe,
    calibration: Mapping[str, str],
    evaluation: Mapping[str, str],
    calibration_images: Mapping[str, str] | None = None,
    evaluation_images: Mapping[str, str] | None = None,
) -> dict[str, Any]:
    """A request, as far as it is known before its texts are read; see `same_request`.

    Args:
        source: Repo id.
        revision_sha: Commit of it.
        target_bpw: One of the recipe's targets.
        recipe: How to quantize.
        calibration: Fields of `TextFacts` that identify the calibration text.
        evaluation: The same of the evaluation text.
        calibration_images: Fields of `ImageFacts` that identify the images; None without.
        evaluation_images: The same of the images to evaluate on.
    """
    return {
        "recipe_version": RECIPE_VERSION,
        "source": source,
        "revision_sha": revision_sha,
        "target_bpw": target_bpw,
        # Thresholds and sensitivities are in no plan, so such a model is never the same.
        "method": _MEASURED if recipe.alignment is None else None,
        **_options(recipe),
        "calibration": dict(calibration),
        "evaluation": dict(evaluation),
        "calibration_images": calibration_images,
        "evaluation_images": evaluation_images,
    }


def _options(how: ModelFacts | Recipe) -> dict[str, Any]:
    return {
        "encoder": how.encoder,
        "effort": how.effort,
        "distil": how.distil,
        "time_budget_mins": how.time_budget_mins,
        "seed": how.seed,
        "dtype": how.dtype,
        "tower": how.tower,
        "menu": [fmt.name for fmt in sorted(set(how.menu))],
        "calibration_tokens": how.calibration_tokens,
        "evaluation_tokens": how.evaluation_tokens,
    }
