"""How long a conversion takes here, from those that were done here."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from statistics import median

from dynquant.errors import DynquantError
from dynquant.quant.recipe import Recipe
from dynquant.report.facts import ModelFacts
from dynquant.report.outputs import read_text, write_file

__all__ = ["expected_secs", "record", "timed"]

_FILE = "speed.json"
_NUM_KEPT = 5


def expected_secs(home: Path, *, num_parameters: int, recipe: Recipe) -> float | None:
    """About how long converting takes on this machine; None before it has converted so.

    Every pass over the model costs time in proportion to parameters and tokens; how many passes
    there are depends on the method and the effort.
    """
    rates = _rates(home).get(_kind(recipe))
    return median(rates) * _work(num_parameters, recipe) if rates else None


@contextmanager
def timed(home: Path, recipe: Recipe) -> Iterator[list[ModelFacts]]:
    """Remember how long the conversion took whose facts are put into the list."""
    started, found = time.monotonic(), list[ModelFacts]()
    yield found
    if found:
        secs = time.monotonic() - started
        record(home, secs=secs, num_parameters=found[0].num_parameters, recipe=recipe)


def record(home: Path, *, secs: float, num_parameters: int, recipe: Recipe) -> None:
    """Remember how long a conversion took here."""
    rates, kind = _rates(home), _kind(recipe)
    rates[kind] = [*rates.get(kind, ()), secs / _work(num_parameters, recipe)][-_NUM_KEPT:]
    with suppress(DynquantError, OSError):  # a finished model is worth more than this figure
        write_file(home / _FILE, json.dumps({"secs_per_parameter_and_token": rates}) + "\n")


def _kind(recipe: Recipe) -> str:
    method = "alignment" if recipe.alignment else f"{recipe.encoder} {recipe.effort}"
    return method + " refined" * recipe.refine


def _work(num_parameters: int, recipe: Recipe) -> int:
    return num_parameters * (recipe.calibration_tokens + recipe.evaluation_tokens)


def _rates(home: Path) -> dict[str, list[float]]:
    try:
        found = json.loads(read_text(home / _FILE) or "")["secs_per_parameter_and_token"]
        return {
            kind: [float(rate) for rate in rates if 0 < float(rate) < 1]
            for kind, rates in found.items()
        }
    except (ValueError, KeyError, TypeError, AttributeError):
        return {}
