"""The facts of a finished model, from its `plan.json` and `report.json` alone."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from math import isfinite, prod
from typing import Any

from dynquant.errors import DynquantError, InvalidModelError
from dynquant.quant.cache_bits import cache_losses_in
from dynquant.quant.formats import QuantFormat
from dynquant.quant.plan import LayerProfile, QuantPlan
from dynquant.quant.quality import IMAGE_FIGURES, Quality
from dynquant.quant.recipe import EFFORTS
from dynquant.quant.speed import MeasuredSpeed, TokenReads
from dynquant.quant.verified import runtimes_in
from dynquant.report.artefacts.fields import (
    image_facts,
    num_copies_in,
    real,
    real_or_nan,
    string,
    strings,
    text_facts,
    whole,
)
from dynquant.report.artefacts.json_text import MALFORMED, parsed
from dynquant.report.artefacts.plan import PLAN_KIND, PLAN_VERSION
from dynquant.report.artefacts.report import REPORT_KIND, REPORT_VERSION
from dynquant.report.facts import ModelFacts, QuantizedRow, SizeVariant
from dynquant.report.gating import gate

__all__ = ["facts_from_json"]

_SHARED = ("source", "revision_sha", "target_bpw", "stored_bpw", "calibration")
"""Fields of both files; if they differ, the files belong to two models."""

_COUNTS = {"num_tokens", "num_windows", "num_images", "num_image_positions"}


def facts_from_json(plan: str, report: str, *, name: str) -> ModelFacts:
    """Restore the facts of a finished model, which its card and plots show.

    Only costs of the chosen formats come back; the others are in the cost table.

    Args:
        plan: Contents of `dynquant/plan.json`; empty if the file is missing.
        report: Contents of `dynquant/report.json`; empty if the file is missing.
        name: Name of the model for error messages.

    Raises:
        InvalidModelError: A file is missing or malformed, or they are of two models.
    """
    try:
        file = "plan.json"
        planned = parsed(plan, kind=PLAN_KIND, version=PLAN_VERSION)
        fields = _planned(planned)
        file = "report.json"
        reported = parsed(report, kind=REPORT_KIND, version=REPORT_VERSION)
        fields |= _reported(reported)
        is_one_model = all(planned[key] == reported[key] for key in _SHARED)
    except (DynquantError, *MALFORMED) as error:
        raise InvalidModelError(
            f"'{name}' has no readable dynquant/{file} of this version of dynquant. Quantize the "
            "model again."
        ) from error
    if not is_one_model:
        raise InvalidModelError(
            f"dynquant/plan.json and dynquant/report.json of '{name}' are of two models. "
            "Quantize the model again."
        )
    return ModelFacts(**fields)


def _planned(raw: Mapping[str, Any]) -> dict[str, Any]:
    """The fields of `ModelFacts` that a `plan.json` holds."""
    formats = {path: QuantFormat.from_name(string(fmt)) for path, fmt in raw["formats"].items()}
    if formats.keys() != raw["layers"].keys():
        raise ValueError(raw["formats"])
    request = raw["request"]
    budget = request["time_budget_mins"]
    return {
        "source": string(raw["source"]),
        "source_id": string(raw.get("source_id", "")),  # missing in earlier versions
        "source_is_repo": raw["source_is_repo"] is True,
        "source_is_private": raw.get("source_is_private") is True,  # missing in 0.4
        "revision_sha": string(raw["revision_sha"]),
        "model_type": string(raw["model_type"]),
        "num_parameters": whole(raw["num_parameters"]),
        **_tower(raw),
        "license_fields": strings(raw["license_fields"]),
        "gated": string(raw["gated"]),
        "gated_fields": gate(raw["gated_fields"]),
        "layers": tuple(
            _layer(path, formats[path], layer) for path, layer in raw["layers"].items()
        ),
        "plan": QuantPlan(
            formats=formats,
            target_bpw=real(raw["target_bpw"]),
            stored_bpw=real(raw["stored_bpw"]),
            predicted_kl_nats=real_or_nan(raw["predicted_kl_nats"]),
            lower_bound_nats=real_or_nan(raw["lower_bound_nats"]),
        ),
        "menu": tuple(QuantFormat.from_name(string(fmt)) for fmt in request["menu"]),
        "method": string(raw["method"]),
        "encoder": string(raw["encoder"]),
        "effort": EFFORTS[request["effort"]].name,
        "distil": request.get("distil", request.get("refine")) is True,  # the older name
        "time_budget_mins": None if budget is None else real(budget),
        "seed": whole(raw["seed"]),
        "calibration": replace(
            text_facts(raw["calibration"]), sketch=string(raw.get("calibration_sketch", ""))
        ),
        "calibration_images": image_facts(request.get("calibration_images")),
        "calibration_tokens": whole(request["calibration_tokens"]),
        "evaluation_tokens": whole(request["evaluation_tokens"]),
        "versions": strings(raw["versions"]),
        "command": string(raw["command"]),
    }


def _tower(raw: Mapping[str, Any]) -> dict[str, Any]:
    """Fields that are missing in versions that had no towers."""
    sizes = raw.get("tower", {"parameters": 0, "bytes": 0})
    parameters = whole(sizes["parameters"])
    if parameters and parameters >= whole(raw["num_parameters"]):
        raise ValueError(sizes)
    return {
        "runtimes": runtimes_in(raw.get("runtimes", ["mlx-lm"])),
        "num_tower_parameters": parameters,
        "tower_bytes": whole(sizes["bytes"]),
        "tower": string(raw["request"].get("tower", "keep")),
        "dtype": string(raw["request"].get("dtype", "auto")),
    }


def _layer(path: str, fmt: QuantFormat, raw: Mapping[str, Any]) -> LayerProfile:
    """A layer with its chosen format and the cost of it, and no other formats."""
    shape = tuple(map(whole, raw["shape"]))
    if not (whole(prod(shape)) > 0 and fmt.fits(shape)):
        raise ValueError(path)
    cost = real_or_nan(raw["cost_nats"])
    return LayerProfile(
        path=path,
        shape=shape,
        dtype_bits=whole(raw["dtype_bits"]),
        formats=(fmt,),
        costs_nats=(cost,) if isfinite(cost) else (),
        num_copies=num_copies_in(raw),
    )


def _reported(raw: Mapping[str, Any]) -> dict[str, Any]:
    """The fields of `ModelFacts` that a `report.json` holds."""
    rows = tuple(map(_row, raw["rows"]))
    if len(rows) < len(("original", "this model")):
        raise ValueError(rows)
    return {
        "name": string(raw["name"]),
        "rows": rows,
        "variants": tuple(map(_variant, raw["ladder"])),
        "memory_bytes": whole(raw["memory_bytes"]),
        "context_tokens": whole(raw["context_tokens"]),
        "evaluation": text_facts(raw["evaluation"]),
        "evaluation_images": image_facts(raw.get("evaluation_images")),
        "notes": tuple(map(string, raw["notes"])),
        **_speed(raw.get("speed", {})),  # missing in earlier versions, and this, too
        "cache_losses": cache_losses_in(raw.get("cache", ())),
    }


def _speed(raw: Mapping[str, Any]) -> dict[str, Any]:
    reads, measured = raw.get("reads"), raw.get("measured")
    return {
        "reads": None if reads is None else TokenReads.from_json(reads),
        "speed": None if measured is None else MeasuredSpeed.from_json(measured),
    }


def _row(raw: Mapping[str, Any]) -> QuantizedRow:
    figures: dict[str, Any] = {
        key: whole(raw[key]) if key in _COUNTS else real_or_nan(raw[key])
        for key in Quality.__slots__
        if key in raw or key not in IMAGE_FIGURES
    }
    return QuantizedRow(
        label=string(raw["label"]),
        stored_bpw=real(raw["stored_bpw"]),
        num_bytes=whole(raw["num_bytes"]),
        quality=Quality(**figures),
    )


def _variant(raw: Mapping[str, Any]) -> SizeVariant:
    return SizeVariant(
        name=string(raw["name"]),
        target_bpw=real(raw["target_bpw"]),
        stored_bpw=real(raw["stored_bpw"]),
        num_bytes=whole(raw["num_bytes"]),
        mean_kl_nats=real_or_nan(raw["mean_kl_nats"]),
        mean_kl_se_nats=real_or_nan(raw["mean_kl_se_nats"]),
        top1_agreement=real_or_nan(raw["top1_agreement"]),
    )
