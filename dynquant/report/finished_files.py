"""Files of a finished model beside its weights: plan, report, plots and card."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping

from dynquant.quant.plan import CostTable
from dynquant.report.artefacts import cost_table_to_json, plan_to_json, report_to_json
from dynquant.report.bits_plot import layer_bits_svg
from dynquant.report.card import render_card
from dynquant.report.facts import ModelFacts
from dynquant.report.size_plot import size_plot_svg

__all__ = ["CARD", "PLAN", "REPORT", "card", "file_contents", "is_own_card"]

CARD = "README.md"
PLAN = "dynquant/plan.json"
REPORT = "dynquant/report.json"
COST_TABLE = "dynquant/cost_table.json"
BITS = ("dynquant/bits-light.svg", "dynquant/bits-dark.svg")
LADDER = ("dynquant/ladder-light.svg", "dynquant/ladder-dark.svg")

_MARK = "\n<!-- written by dynquant, sha256 "
"""Begins the card's last line, which no page shows."""
_DIGITS = 16


def file_contents(facts: ModelFacts, table: CostTable | None) -> dict[str, str]:
    """File name → content. `plan.json` comes last but one: it marks a folder as dynquant's."""
    found = {name: layer_bits_svg(facts, dark=name == BITS[1]) for name in BITS}
    if _has_ladder(facts):
        found |= {name: size_plot_svg(facts, dark=name == LADDER[1]) for name in LADDER}
    if table is not None:
        found[COST_TABLE] = cost_table_to_json(table)
    return found | {
        REPORT: report_to_json(facts),
        PLAN: plan_to_json(facts),
        CARD: card(facts),
    }


def card(
    facts: ModelFacts, *, repo_id: str | None = None, repo_of: Mapping[str, str] | None = None
) -> str:
    """The card, with links to the pictures beside it, and a mark of who wrote it.

    Args:
        facts: The model.
        repo_id: Repo that it is published as.
        repo_of: Name of a model of the same ladder → repo that it is published as.
    """
    ladder = LADDER if _has_ladder(facts) else ("", "")
    text = render_card(
        facts,
        picture_light=BITS[0],
        picture_dark=BITS[1],
        ladder_light=ladder[0],
        ladder_dark=ladder[1],
        repo_id=repo_id,
        repo_of=repo_of or {},
    )
    return text + _mark_of(text)


def is_own_card(text: str) -> bool:
    """Whether dynquant wrote this card, for any repo, and it was not edited since."""
    body, _, _ = text.rpartition(_MARK)
    return text == body + _mark_of(body)


def _mark_of(text: str) -> str:
    digest = hashlib.sha256(text.encode()).hexdigest()[:_DIGITS]
    return f"{_MARK}{digest}; edit it, and it stays as you left it -->\n"


def _has_ladder(facts: ModelFacts) -> bool:
    return len(facts.ladder) > 1
