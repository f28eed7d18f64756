"""Checks a child's answers: its lines, the results of its steps, and the facts for cards.

A child that has read a malicious model may be controlled by the model's author. Its answers are
checked for size and types, and facts that the runner knows itself are not taken from the child.
"""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, fields, replace
from typing import Any, NoReturn

from dynquant.errors import DynquantError, NeverPublishError, Reason
from dynquant.jobs.type_validation import require_types
from dynquant.model.notes import MAX_NOTES, is_note
from dynquant.quant.quality import Quality
from dynquant.quant.recipe import Recipe, command_of
from dynquant.quant.verified import Verified
from dynquant.report.artefacts import (
    cost_table_from_json,
    cost_table_to_json,
    facts_from_json,
    requested,
    same_request,
)
from dynquant.report.facts import ModelFacts
from dynquant.report.facts_of import ORIGINAL, notes_on
from dynquant.report.forecast import Forecast
from dynquant.report.gating import gate

__all__ = ["Answer", "Asked", "distrusted"]

_MAX_PART_CHARS = 200
_MAX_LAYERS = 20_000
"""Of a model; a card for more layers takes minutes to draw."""

_MAX_NOTE_CHARS = 2_000
_MAX_ROWS = 100
"""In the table of a card, and of versions of tools; a card has three rows and a few versions."""

_MAX_FIGURES = 10_000
"""Above the number of targets and uniform formats of any job."""

_MALFORMED = (ArithmeticError, AttributeError, LookupError, RecursionError, TypeError, ValueError)

_logger = logging.getLogger(__name__)


def distrusted(what: str) -> NeverPublishError:
    """The error for a child that did `what`, which dynquant's own code never does."""
    _logger.warning("A child cannot be trusted: %s", what)
    return NeverPublishError(
        f"The process that converts this model left an answer that dynquant never gives: {what}. "
        "The model may have taken that process over. Report it if you trust the model."
    )


class Answer:
    """Gathers the lines of one step: progress, and then one answer.

    Attributes:
        result: Of the step, once it `has_result`.
        reason: Why the step failed, if it says so; `sentence` is its message.
    """

    def __init__(self, on_progress: Callable[[Mapping[str, Any]], None]) -> None:
        self._on_progress = on_progress
        self._is_over = False
        self.has_result = False
        self.result: Any = None
        self.reason: Reason | None = None
        self.sentence = ""

    def take(self, line: str) -> None:
        """Read a line.

        Raises:
            NeverPublishError: dynquant's steps do not write such a line.
        """
        try:
            said = json.loads(line)
            if self._is_over or not isinstance(said, dict):
                raise ValueError(said)
            if said.keys() == {"part", "fraction", "eta_secs"}:
                self._on_progress(_progress(said))
            elif said.keys() == {"result"}:
                self.result, self.has_result = said["result"], True
                self._is_over = True
            elif said.keys() == {"reason", "sentence"}:
                self.reason, self.sentence = Reason(said["reason"]), _text(said["sentence"])
                self._is_over = True
            else:
                raise ValueError(said)
        except _MALFORMED as error:
            raise distrusted("a line that no step writes") from error


@dataclass(frozen=True, kw_only=True)
class Asked:
    """The runner's own facts of a job, with which the answers of its child are compared.

    Attributes:
        source: Fields of the `ModelSource` without its folder.
        recipe: How to quantize.
        texts: Role → name of the text, or of the images.
        targets: Name of each model to make → its bits per weight.
    """

    source: Mapping[str, Any]
    recipe: Recipe
    texts: Mapping[str, str]
    targets: Mapping[str, float]

    def forecasts(self, raw: Any) -> list[dict[str, Any]]:
        """The result of `resolve`: a forecast for each target.

        Raises:
            NeverPublishError: The answer is malformed or of another job, here and below.
        """
        with _checking("forecasts"):
            found = [Forecast(**{**each, "notes": tuple(each["notes"])}) for each in raw]
            for each in found:
                require_types(each)
                _require(len(each.notes) <= MAX_NOTES)
                _require(all(len(note) <= _MAX_NOTE_CHARS for note in each.notes))
                named = asdict(each).values()
                numbers = [value for value in named if isinstance(value, int | float)]
                if not all(math.isfinite(value) and 0 <= value < 2**63 for value in numbers):
                    _refuse(each)
            _require([each.target_bpw for each in found] == list(self.recipe.targets_bpw))
            _require(all(each.model == self.source["name"] for each in found))
            _require(all(len(each.model_type) <= _MAX_PART_CHARS for each in found))
        return [asdict(each) for each in found]

    def cost_table(self, text: str) -> str:
        """The cost table that `measure` leaves, parsed and written again."""
        with _checking("a cost table"):
            table = cost_table_from_json(text, name="cost_table.json")
            _require(table.source == self.source["name"])
            _require(table.source_sha == self.source["revision_sha"])
            _require(len(table.inventory.layers) <= _MAX_LAYERS)
        return cost_table_to_json(table)

    def verified(self, raw: Any) -> dict[str, dict[str, Any]]:
        """The result of `verify`: a sample of each model, and the runtimes that run it."""
        with _checking("the result of verifying"):
            _require(raw.keys() == self.targets.keys())
            found = {name: Verified.from_json(each) for name, each in raw.items()}
        return {name: asdict(each) for name, each in found.items()}

    def figures(self, raw: Any) -> dict[str, dict[str, Any]]:
        """The result of `evaluate`: figures of each model, the original and uniform quants."""
        with _checking("figures"):
            _require(len(raw) <= _MAX_FIGURES and {*self.targets, ORIGINAL} <= raw.keys())
            found = {str(name)[:_MAX_PART_CHARS]: Quality(**each) for name, each in raw.items()}
            for quality in found.values():
                require_types(quality)
                # A single window has no standard error.
                _require(not any(math.isinf(value) for value in quality.to_json().values()))
                _require(bool(quality.num_images) == ("evaluation_images" in self.texts))
        return {name: quality.to_json() for name, quality in found.items()}

    def facts(self, name: str, plan: str, report: str) -> ModelFacts:
        """The facts of the model `name` in the files that `card` leaves.

        Source, license, gate, recipe and command must equal the runner's own facts: no model is
        published as a quant of another model, nor more openly than its original.
        """
        with _checking("facts"):
            facts = facts_from_json(plan, report, name=name)
            _require_bounds(facts)
            known = self._with_what_is_known(facts, name)
            for field in fields(facts):
                if getattr(facts, field.name) != getattr(known, field.name):
                    _refuse((field.name, getattr(facts, field.name), getattr(known, field.name)))
            asked = requested(
                source=self.source["name"],
                revision_sha=self.source["revision_sha"],
                target_bpw=self.targets[name],
                recipe=self.recipe,
                calibration={"name": self.texts["calibration"]},
                evaluation={"name": self.texts["evaluation"]},
                calibration_images=self._named("calibration_images"),
                evaluation_images=self._named("evaluation_images"),
            )
            _require(same_request(plan, asked))
            _require(sorted(variant.name for variant in facts.variants) == sorted(self.targets))
        return facts

    def _named(self, role: str) -> dict[str, str] | None:
        return {"name": self.texts[role]} if role in self.texts else None

    def _with_what_is_known(self, facts: ModelFacts, name: str) -> ModelFacts:
        """`facts` with the runner's own facts of the model `name` in place of the child's."""
        source = self.source
        command = command_of(
            self.recipe,
            source=source["name"],
            revision_sha=source["revision_sha"],
            **self.texts,
        )
        return replace(
            facts,
            name=name,
            source=source["name"],
            source_is_repo=source["is_repo"],
            source_is_private=source["is_private"],
            source_id=source["hub_id"],
            revision_sha=source["revision_sha"],
            license_fields=source["license_fields"],
            gated=source["gated"],
            gated_fields=gate(source["gated_fields"]),
            command=command,
            notes=(*filter(is_note, facts.notes[:MAX_NOTES]), *notes_on(facts.plan)),
        )


def _require_bounds(facts: ModelFacts) -> None:
    """Refuse facts whose card would be too large to write or to show."""
    _require(len(facts.layers) <= _MAX_LAYERS)
    _require(len(facts.rows) <= _MAX_ROWS and len(facts.versions) <= _MAX_ROWS)
    labels = (row.label for row in facts.rows)
    texts = (facts.model_type, facts.method, *map(str, facts.versions.items()), *labels)
    _require(all(len(each) <= _MAX_PART_CHARS for each in texts))


def _progress(said: Mapping[str, Any]) -> Mapping[str, Any]:
    fraction, eta_secs = said["fraction"], said["eta_secs"]
    _require(0 <= fraction <= 1)
    _require(eta_secs is None or 0 <= eta_secs < math.inf)
    part = "".join(filter(str.isprintable, _text(said["part"])[:_MAX_PART_CHARS]))
    return {"part": part, "fraction": float(fraction), "eta_secs": eta_secs}


def _text(raw: object) -> str:
    if not isinstance(raw, str):
        raise TypeError(raw)
    return raw


def _require(is_so: bool) -> None:  # noqa: FBT001
    if not is_so:
        raise ValueError


def _refuse(what: object) -> NoReturn:
    raise ValueError(what)


@contextmanager
def _checking(what: str) -> Iterator[None]:
    """End the job if `what` is malformed."""
    try:
        yield
    except (DynquantError, *_MALFORMED) as error:
        _logger.warning("Wrong %s: %r", what, error)
        raise distrusted(f"{what} of another kind than this job's") from error
