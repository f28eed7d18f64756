"""`report.json`: all figures of a model, and of its other sizes."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from dynquant.report.artefacts.fields import text_to_json
from dynquant.report.artefacts.json_text import dumped, number_or_null
from dynquant.report.artefacts.request import images_of
from dynquant.report.facts import ModelFacts, QuantizedRow, SizeVariant

__all__ = ["REPORT_KIND", "REPORT_VERSION", "report", "report_to_json"]

REPORT_KIND = "dynquant-report"
REPORT_VERSION = 1


def report_to_json(facts: ModelFacts) -> str:
    """The content of `report.json`."""
    return dumped(report(facts))


def report(facts: ModelFacts) -> dict[str, Any]:
    """All figures of one model, as JSON types."""
    return {
        "kind": REPORT_KIND,
        "version": REPORT_VERSION,
        "name": facts.name,
        "source": facts.source,
        "revision_sha": facts.revision_sha,
        "target_bpw": facts.plan.target_bpw,
        "stored_bpw": facts.plan.stored_bpw,
        "predicted_kl_nats": number_or_null(facts.plan.predicted_kl_nats),
        "evaluation": text_to_json(facts.evaluation),
        **images_of(facts),
        "calibration": text_to_json(facts.calibration),
        "memory_bytes": facts.memory_bytes,
        "context_tokens": facts.context_tokens,
        "speed": {
            "reads": None if facts.reads is None else asdict(facts.reads),
            "measured": None if facts.speed is None else asdict(facts.speed),
        },
        "cache": [asdict(each) for each in facts.cache_losses],
        "rows": list(map(_row, facts.rows)),
        "ladder": list(map(_variant, facts.variants)),
        "notes": list(facts.notes),
    }


def _row(row: QuantizedRow) -> dict[str, Any]:
    return {
        "label": row.label,
        "stored_bpw": row.stored_bpw,
        "num_bytes": row.num_bytes,
        **{key: number_or_null(value) for key, value in row.quality.to_json().items()},
    }


def _variant(variant: SizeVariant) -> dict[str, Any]:
    measured = {
        "mean_kl_nats": number_or_null(variant.mean_kl_nats),
        "mean_kl_se_nats": number_or_null(variant.mean_kl_se_nats),
        "top1_agreement": number_or_null(variant.top1_agreement),
    }
    return asdict(variant) | measured
