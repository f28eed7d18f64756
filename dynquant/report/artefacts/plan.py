"""`plan.json`: source and recipe of a model, and the format of every layer."""

from __future__ import annotations

import json
from collections.abc import Mapping

from dynquant.model.origin import Origin
from dynquant.quant.plan import QuantPlan
from dynquant.report.artefacts.fields import copies_to_json, string, text_to_json
from dynquant.report.artefacts.json_text import MALFORMED, dumped, number_or_null, parsed
from dynquant.report.artefacts.request import request_of
from dynquant.report.facts import ModelFacts
from dynquant.report.gating import gate

__all__ = [
    "PLAN_KIND",
    "PLAN_VERSION",
    "formats_to_json",
    "origin_in",
    "plan_to_json",
    "same_request",
]

PLAN_KIND = "dynquant-plan"
PLAN_VERSION = 1
_ABSENT = {
    "dtype": "auto",
    "tower": "keep",
    "calibration_images": None,
    "evaluation_images": None,
}


def origin_in(text: str) -> Origin | None:
    """The model that a `plan.json` names as its source; None where it names no model."""
    try:
        found = json.loads(text)
        return Origin(name=string(found["source"]), hub_id=string(found.get("source_id", "")))
    except MALFORMED:
        return None


def plan_to_json(facts: ModelFacts) -> str:
    """The content of `plan.json`."""
    plan = facts.plan
    return dumped(
        {
            "kind": PLAN_KIND,
            "version": PLAN_VERSION,
            "source": facts.source,
            "source_id": facts.source_id,
            "source_is_repo": facts.source_is_repo,
            "source_is_private": facts.source_is_private,
            "revision_sha": facts.revision_sha,
            "model_type": facts.model_type,
            "num_parameters": facts.num_parameters,
            "runtimes": list(facts.runtimes),
            "tower": {"parameters": facts.num_tower_parameters, "bytes": facts.tower_bytes},
            "license_fields": dict(facts.license_fields),
            "gated": facts.gated,
            "gated_fields": gate(facts.gated_fields),
            "method": facts.method,
            "encoder": facts.encoder,
            "seed": facts.seed,
            "target_bpw": plan.target_bpw,
            "stored_bpw": plan.stored_bpw,
            "predicted_kl_nats": number_or_null(plan.predicted_kl_nats),
            "lower_bound_nats": number_or_null(plan.lower_bound_nats),
            "calibration": text_to_json(facts.calibration),
            "calibration_sketch": facts.calibration.sketch,
            "versions": dict(facts.versions),
            "command": facts.command,
            "request": request_of(facts),
            "formats": formats_to_json(plan),
            "layers": {
                layer.path: {
                    "shape": list(layer.shape),
                    "dtype_bits": layer.dtype_bits,
                    **copies_to_json(layer),
                    "cost_nats": number_or_null(facts.cost_nats(layer)),
                }
                for layer in facts.layers
            },
        }
    )


def formats_to_json(plan: QuantPlan) -> dict[str, str]:
    """Path → name of the layer's format."""
    return {path: fmt.name for path, fmt in plan.formats.items()}


def same_request(plan_json: str, request: Mapping[str, object]) -> bool:
    """Whether a finished model meets `request`.

    Args:
        plan_json: Its `plan.json`, untrusted.
        request: From `requested`; keys that it lacks are not compared.
    """
    try:
        made = parsed(plan_json, kind=PLAN_KIND, version=PLAN_VERSION)
        # Earlier versions had none of these options.
        options = {**_ABSENT, **made["request"]}
        return _answers(options, request)
    except MALFORMED:
        return False


def _answers(made: object, asked: object) -> bool:
    if not isinstance(asked, Mapping):
        return made == asked
    return isinstance(made, Mapping) and all(
        key in made and _answers(made[key], value) for key, value in asked.items()
    )
