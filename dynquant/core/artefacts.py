"""The JSON artefacts: cost table, plan, report and sensitivities, written and read back."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import asdict, replace
from typing import Any

from dynquant.core.facts import ModelFacts
from dynquant.core.formats import UNQUANTIZED, QuantFormat
from dynquant.core.plan import CostTable, LayerProfile, ModelInventory, QuantPlan, TextFacts
from dynquant.errors import DynquantError, SensitivitiesError

__all__ = [
    "cost_table_from_json",
    "cost_table_to_json",
    "formats_to_json",
    "is_cost_table",
    "matched_table",
    "plan_to_json",
    "report",
    "report_to_json",
    "sensitivities_from_json",
    "sensitivities_to_json",
]

_COST_TABLE = "dynquant-cost-table"
_VERSION = 1
_MALFORMED = (ValueError, KeyError, TypeError, AttributeError, OverflowError, RecursionError)


def cost_table_to_json(table: CostTable) -> str:
    """`cost_table.json`: everything that another target of the same model needs."""
    inventory = table.inventory
    return _dumped(
        {
            "kind": _COST_TABLE,
            "version": _VERSION,
            "source": table.source,
            "source_sha": table.source_sha,
            "model_type": inventory.model_type,
            "num_parameters": inventory.num_parameters,
            "fixed_bits": inventory.fixed_bits,
            "dtype": inventory.dtype,
            "method": table.method,
            "encoder": table.encoder,
            "seed": table.seed,
            "calibration": asdict(table.calibration),
            "scales": dict(table.scales),
            "layers": [
                {
                    "path": layer.path,
                    "shape": list(layer.shape),
                    "dtype_bits": layer.dtype_bits,
                    "costs_nats": {
                        fmt.name: cost
                        for fmt, cost in zip(layer.formats, layer.costs_nats, strict=True)
                    },
                }
                for layer in inventory.layers
            ],
            "importance": {path: list(map(list, t)) for path, t in table.importance.items()},
            "versions": dict(table.versions),
        }
    )


def cost_table_from_json(text: str, *, name: str) -> CostTable:
    """The table in `text`.

    Args:
        text: Contents of a `cost_table.json`.
        name: What to call the file in an error.

    Raises:
        SensitivitiesError: It is no cost table, or not one of this version.
    """
    try:
        raw = json.loads(text)
        if (raw["kind"], raw["version"]) != (_COST_TABLE, _VERSION):
            raise ValueError(raw["kind"])
        layers = tuple(map(_layer, raw["layers"]))
        return CostTable(
            inventory=ModelInventory(
                model_type=str(raw["model_type"]),
                layers=layers,
                num_parameters=int(raw["num_parameters"]),
                fixed_bits=int(raw["fixed_bits"]),
                dtype=str(raw["dtype"]),
            ),
            method=str(raw["method"]),
            encoder=str(raw["encoder"]),
            calibration=_text_facts(raw["calibration"]),
            seed=int(raw["seed"]),
            source=str(raw["source"]),
            source_sha=str(raw["source_sha"]),
            scales={str(key): float(value) for key, value in raw["scales"].items()},
            importance={
                str(path): tuple((str(rows), str(cols)) for rows, cols in terms)
                for path, terms in raw["importance"].items()
            },
            versions={str(key): str(value) for key, value in raw["versions"].items()},
        )
    except (DynquantError, *_MALFORMED) as error:
        raise SensitivitiesError(
            f"'{name}' is not a cost table of this version of dynquant. Measure again with "
            "'dynquant measure'."
        ) from error


def is_cost_table(text: str) -> bool:
    """Whether `text` is a cost table, of whichever version."""
    try:
        return bool(json.loads(text)["kind"] == _COST_TABLE)
    except _MALFORMED:
        return False


def matched_table(table: CostTable, inventory: ModelInventory, source_sha: str) -> CostTable:
    """`table` with the formats of `inventory` alone.

    Raises:
        SensitivitiesError: It is of another model, or was measured without these formats.
    """
    mine = {(layer.path, layer.shape, layer.dtype_bits) for layer in inventory.layers}
    theirs = {(layer.path, layer.shape, layer.dtype_bits) for layer in table.inventory.layers}
    if mine != theirs or table.source_sha != source_sha:
        raise SensitivitiesError(
            f"The cost table was measured on another model ('{table.source}'). "
            "Measure this one with 'dynquant measure'."
        )
    measured = {layer.path: layer for layer in table.inventory.layers}
    layers = tuple(_with_costs(layer, measured[layer.path]) for layer in inventory.layers)
    return replace(table, inventory=replace(inventory, layers=layers))


def plan_to_json(facts: ModelFacts) -> str:
    """`plan.json`: the format of every layer and where it came from."""
    plan = facts.plan
    return _dumped(
        {
            "source": facts.source,
            "revision_sha": facts.revision_sha,
            "model_type": facts.model_type,
            "method": facts.method,
            "encoder": facts.encoder,
            "seed": facts.seed,
            "target_bpw": plan.target_bpw,
            "stored_bpw": plan.stored_bpw,
            "predicted_kl_nats": _number(plan.predicted_kl_nats),
            "lower_bound_nats": _number(plan.lower_bound_nats),
            "calibration": asdict(facts.calibration),
            "formats": formats_to_json(plan),
            "versions": dict(facts.versions),
            "command": facts.command,
        }
    )


def report_to_json(facts: ModelFacts) -> str:
    """`report.json`: all figures."""
    return _dumped(report(facts))


def report(facts: ModelFacts) -> dict[str, Any]:
    """All figures of one model, as JSON types."""
    return {
        "name": facts.name,
        "source": facts.source,
        "revision_sha": facts.revision_sha,
        "target_bpw": facts.plan.target_bpw,
        "stored_bpw": facts.plan.stored_bpw,
        "predicted_kl_nats": _number(facts.plan.predicted_kl_nats),
        "evaluation": asdict(facts.evaluation),
        "calibration": asdict(facts.calibration),
        "memory_bytes": facts.memory_bytes,
        "context_tokens": facts.context_tokens,
        "rows": [
            {
                "label": row.label,
                "stored_bpw": row.stored_bpw,
                "num_bytes": row.num_bytes,
                **{key: _number(value) for key, value in asdict(row.quality).items()},
            }
            for row in facts.rows
        ],
        "notes": list(facts.notes),
    }


def formats_to_json(plan: QuantPlan) -> dict[str, str]:
    """Path → name of the layer's format."""
    return {path: fmt.name for path, fmt in plan.formats.items()}


def sensitivities_to_json(sensitivities: Mapping[str, float]) -> str:
    """The seed's own file: a list of `[path, sensitivity]`."""
    return json.dumps([[path, value] for path, value in sensitivities.items()], indent=1) + "\n"


def sensitivities_from_json(text: str, inventory: ModelInventory, *, name: str) -> dict[str, float]:
    """Sensitivities in `text`, one per layer of the model.

    Raises:
        SensitivitiesError: Malformed, of another model, or a layer is missing.
    """
    try:
        pairs = json.loads(text)
        values = {str(path): float(value) for path, value in pairs}
    except _MALFORMED as error:
        raise SensitivitiesError(
            f"'{name}' is not a sensitivities file: it must be a JSON list of [path, number]."
        ) from error
    if bad := [path for path, value in values.items() if not math.isfinite(value)]:
        raise SensitivitiesError(f"'{name}' has no finite sensitivity for '{bad[0][:100]}'.")
    paths = [layer.path for layer in inventory.layers]
    if unknown := [path for path in values if path not in set(paths)]:
        raise SensitivitiesError(
            f"'{name}' is of another model: this one has no layer '{unknown[0][:100]}'."
        )
    needed = [layer.path for layer in inventory.layers if len(layer.formats) > 1]
    if missing := [path for path in needed if path not in values]:
        raise SensitivitiesError(
            f"'{name}' has no sensitivity for {len(missing)} layer(s), such as "
            f"'{missing[0][:100]}'. Measure again."
        )
    return values


def _layer(raw: Mapping[str, Any]) -> LayerProfile:
    costs = {QuantFormat.from_name(name): float(cost) for name, cost in raw["costs_nats"].items()}
    if not costs or not all(map(math.isfinite, costs.values())):
        raise ValueError(raw["path"])
    return LayerProfile(
        path=str(raw["path"]),
        shape=tuple(int(size) for size in raw["shape"]),
        dtype_bits=int(raw["dtype_bits"]),
        formats=tuple(costs),
        costs_nats=tuple(costs.values()),
    )


def _text_facts(raw: Mapping[str, Any]) -> TextFacts:
    return TextFacts(
        name=str(raw["name"]),
        sha256=str(raw["sha256"]),
        num_tokens=int(raw["num_tokens"]),
        window_tokens=int(raw["window_tokens"]),
        chat_formatted=bool(raw["chat_formatted"]),
    )


def _with_costs(layer: LayerProfile, measured: LayerProfile) -> LayerProfile:
    costs = {UNQUANTIZED: 0.0} | dict(zip(measured.formats, measured.costs_nats, strict=True))
    if lost := [fmt.name for fmt in layer.formats if fmt not in costs]:
        raise SensitivitiesError(
            f"The cost table has no cost of '{lost[0]}' for layer '{layer.path}'. Pass --formats "
            "with those that were measured, or measure again."
        )
    return replace(layer, costs_nats=tuple(costs[fmt] for fmt in layer.formats))


def _number(value: float) -> float | None:
    """JSON knows no NaN."""
    return value if math.isfinite(value) else None


def _dumped(content: Mapping[str, Any]) -> str:
    return json.dumps(content, indent=1, allow_nan=False) + "\n"
