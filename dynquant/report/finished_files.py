"""Files of a finished model beside its weights: plan, report, plots and card."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping

from dynquant.quant.plan import CostTable
from dynquant.report.artefacts import cost_table_to_json, plan_to_json, report_to_json
from dynquant.report.bits_plot import layer_bits_svg
from dynquant.report.card import render_card
from dynquant.report.facts import ModelFacts
from dynquant.report.hub_address import HUB_URL
from dynquant.report.size_plot import size_plot_svg

__all__ = ["CARD", "PLAN", "REPORT", "card", "file_contents", "is_own_card"]

CARD = "README.md"
PLAN = "dynquant/plan.json"
REPORT = "dynquant/report.json"
COST_TABLE = "dynquant/cost_table.json"
BITS = ("dynquant/bits-light.svg", "dynquant/bits-dark.svg")
SIZE_PLOTS = ("dynquant/ladder-light.svg", "dynquant/ladder-dark.svg")

_MARK = "\n<!-- written by dynquant, sha256 "
"""Start of the card's last line, which pages do not show."""
_DIGITS = 16


def file_contents(facts: ModelFacts, table: CostTable | None) -> dict[str, str]:
    """File name → content. `plan.json` comes last but one: it marks a folder as dynquant's."""
    found = {name: layer_bits_svg(facts, dark=name == BITS[1]) for name in BITS}
    if _has_sizes(facts):
        found |= {name: size_plot_svg(facts, dark=name == SIZE_PLOTS[1]) for name in SIZE_PLOTS}
    if table is not None:
        found[COST_TABLE] = cost_table_to_json(table)
    return found | {
        REPORT: report_to_json(facts),
        PLAN: plan_to_json(facts),
        CARD: card(facts),
    }


def card(
    facts: ModelFacts,
    *,
    repo_id: str | None = None,
    repo_of: Mapping[str, str] | None = None,
    hub_url: str = HUB_URL,
) -> str:
    """The card, with links to the pictures beside it, and a hash that shows later edits.

    Args:
        facts: The model.
        repo_id: Repo that it is published as.
        repo_of: Name of another size of the model → repo that it is published as.
        hub_url: The Hub that the repos are on.
    """
    variants = SIZE_PLOTS if _has_sizes(facts) else ("", "")
    text = render_card(
        facts,
        picture_light=BITS[0],
        picture_dark=BITS[1],
        sizes_light=variants[0],
        sizes_dark=variants[1],
        repo_id=repo_id,
        repo_of=repo_of or {},
        hub_url=hub_url.rstrip("/"),
    )
    return text + _mark_of(text)


def is_own_card(text: str) -> bool:
    """Whether dynquant wrote this card, for any repo, and it has not been edited since."""
    body, _, _ = text.rpartition(_MARK)
    return text == body + _mark_of(body)


def _mark_of(text: str) -> str:
    digest = hashlib.sha256(text.encode()).hexdigest()[:_DIGITS]
    return f"{_MARK}{digest}; edit it, and it stays as you left it -->\n"


def _has_sizes(facts: ModelFacts) -> bool:
    return len(facts.variants) > 1
