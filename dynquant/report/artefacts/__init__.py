from __future__ import annotations

from dynquant.report.artefacts.cost_table import (
    check_measured_for,
    cost_table_from_json,
    cost_table_to_json,
    is_cost_table,
    matched_table,
    measured_on_other_text,
)
from dynquant.report.artefacts.plan import formats_to_json, origin_in, plan_to_json, same_request
from dynquant.report.artefacts.report import report, report_to_json
from dynquant.report.artefacts.request import requested
from dynquant.report.artefacts.restoring import facts_from_json
from dynquant.report.artefacts.sensitivities import (
    sensitivities_from_json,
    sensitivities_to_json,
)

__all__ = [
    "check_measured_for",
    "cost_table_from_json",
    "cost_table_to_json",
    "facts_from_json",
    "formats_to_json",
    "is_cost_table",
    "matched_table",
    "measured_on_other_text",
    "origin_in",
    "plan_to_json",
    "report",
    "report_to_json",
    "requested",
    "same_request",
    "sensitivities_from_json",
    "sensitivities_to_json",
]
