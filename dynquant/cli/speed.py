"""Expected time of a conversion on this machine, from earlier conversions."""

from __future__ import annotations

import json
from contextlib import suppress
from pathlib import Path
from statistics import median

from dynquant.errors import DynquantError
from dynquant.quant.recipe import RECIPE_VERSION, Recipe
from dynquant.report.outputs import read_text, write_file

__all__ = ["expected_secs", "record"]

_FILE, _KEY = "speed.json", "work_and_secs"
_NUM_KEPT = 10
_MAX_RATIO = 10


def expected_secs(home: Path, *, num_parameters: int, recipe: Recipe) -> float | None:
    """Expected time of a conversion; None before one of about this size, method and effort.

    The time of a pass over the model is proportional to parameters and tokens; the number of passes
    depends on the method and the effort. Runs that did less than a tenth of the work, or more than
    ten times as much, tell nothing: starting processes takes as long for a small model as for a
    large one.
    """
    work = _work(num_parameters, recipe)
    near = [
        secs / done
        for done, secs in _runs(home).get(_kind(recipe), ())
        if work / _MAX_RATIO <= done <= work * _MAX_RATIO
    ]
    return median(near) * work if near else None


def record(home: Path, *, secs: float, num_parameters: int, recipe: Recipe) -> None:
    """Store the time that a conversion took."""
    runs, kind = _runs(home), _kind(recipe)
    runs[kind] = [*runs.get(kind, ()), (_work(num_parameters, recipe), secs)][-_NUM_KEPT:]
    with suppress(DynquantError, OSError):  # a finished model is worth more than this figure
        write_file(home / _FILE, json.dumps({_KEY: runs}) + "\n")


def _kind(recipe: Recipe) -> str:
    method = "alignment" if recipe.alignment else f"{recipe.encoder} {recipe.effort}"
    # The next version of a recipe may do other work.
    return f"{method}{' distilled' * recipe.distil}, version {RECIPE_VERSION}"


def _work(num_parameters: int, recipe: Recipe) -> int:
    return num_parameters * (recipe.calibration_tokens + recipe.evaluation_tokens)


def _runs(home: Path) -> dict[str, list[tuple[float, float]]]:
    """Kind of a conversion → parameters times tokens, and seconds, of the latest ones."""
    try:
        found = json.loads(read_text(home / _FILE) or "")[_KEY]
        return {
            kind: [(float(work), float(secs)) for work, secs in runs if work > 0 and secs > 0]
            for kind, runs in found.items()
        }
    except (ValueError, KeyError, TypeError, AttributeError):
        return {}
