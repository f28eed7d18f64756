"""`cost_table.json`: the cost of every format of every layer, for all targets of a model."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from dynquant.errors import DynquantError, SensitivitiesError
from dynquant.quant.formats import UNQUANTIZED, QuantFormat
from dynquant.quant.kl_calibration import KlCalibration
from dynquant.quant.plan import CostTable, LayerProfile, ModelInventory
from dynquant.quant.recipe import RECIPE_VERSION, Recipe
from dynquant.report.artefacts.fields import (
    copies_to_json,
    image_facts,
    images_to_json,
    num_copies_in,
    real,
    string,
    strings,
    text_facts,
    text_to_json,
    whole,
)
from dynquant.report.artefacts.json_text import MALFORMED, dumped, parsed

__all__ = [
    "check_measured_for",
    "cost_table_from_json",
    "cost_table_to_json",
    "is_cost_table",
    "matched_table",
    "measured_on_other_text",
]

_KIND = "dynquant-cost-table"
_VERSION = 3


def cost_table_to_json(table: CostTable) -> str:
    """The content of `cost_table.json`, which suffices to quantize the model to another target."""
    inventory, images = table.inventory, images_to_json(table.calibration_images)
    return dumped(
        {
            "kind": _KIND,
            "version": _VERSION,
            "source": table.source,
            "source_sha": table.source_sha,
            "model_type": inventory.model_type,
            "num_parameters": inventory.num_parameters,
            "fixed_bits": inventory.fixed_bits,
            "num_tower_parameters": inventory.num_tower_parameters,
            "tower_bits": inventory.tower_bits,
            "dtype": inventory.dtype,
            "method": table.method,
            "encoder": table.encoder,
            "effort": table.effort,
            "recipe_version": RECIPE_VERSION,
            "seed": table.seed,
            "calibration": text_to_json(table.calibration),
            **({} if images is None else {"calibration_images": images}),
            "scales": dict(table.scales),
            "together": list(map(list, inventory.together.probes)),
            "layers": [
                {
                    "path": layer.path,
                    "shape": list(layer.shape),
                    "dtype_bits": layer.dtype_bits,
                    **copies_to_json(layer),
                    "costs_nats": {
                        fmt.name: cost
                        for fmt, cost in zip(layer.formats, layer.costs_nats, strict=True)
                    },
                }
                for layer in inventory.layers
            ],
            "importance": {path: list(map(list, t)) for path, t in table.importance.items()},
            "versions": dict(table.versions),
            "polished": {
                repr(target): {path: fmt.name for path, fmt in formats.items()}
                for target, formats in table.polished.items()
            },
        }
    )


def cost_table_from_json(text: str, *, name: str) -> CostTable:
    """The table in `text`.

    Args:
        text: Contents of a `cost_table.json`.
        name: Name of the file for error messages.

    Raises:
        SensitivitiesError: It is not a cost table of this version.
    """
    try:
        raw = parsed(text, kind=_KIND, version=_VERSION)
        if raw["recipe_version"] != RECIPE_VERSION:
            raise ValueError(raw["recipe_version"])
        layers = tuple(map(_layer, raw["layers"]))
        return CostTable(
            inventory=ModelInventory(
                model_type=string(raw["model_type"]),
                layers=layers,
                num_parameters=whole(raw["num_parameters"]),
                fixed_bits=whole(raw["fixed_bits"]),
                num_tower_parameters=whole(raw.get("num_tower_parameters", 0)),
                tower_bits=whole(raw.get("tower_bits", 0)),
                dtype=string(raw["dtype"]),
                together=KlCalibration(tuple(map(_probe, raw["together"]))),
            ),
            method=string(raw["method"]),
            encoder=string(raw["encoder"]),
            effort=string(raw["effort"]),
            calibration=text_facts(raw["calibration"]),
            calibration_images=image_facts(raw.get("calibration_images")),
            seed=whole(raw["seed"]),
            source=string(raw["source"]),
            source_sha=string(raw["source_sha"]),
            scales={key: real(value) for key, value in raw["scales"].items()},
            importance={
                path: tuple((string(rows), string(cols)) for rows, cols in terms)
                for path, terms in raw["importance"].items()
            },
            versions=strings(raw["versions"]),
            polished={
                real(float(target)): _polished(formats, layers)
                for target, formats in raw.get("polished", {}).items()
            },
        )
    except (DynquantError, *MALFORMED) as error:
        raise SensitivitiesError(
            f"'{name}' is not a cost table of this version of dynquant. Measure again with "
            "'dynquant measure'."
        ) from error


def is_cost_table(text: str) -> bool:
    """Whether `text` is a cost table of any version."""
    try:
        return bool(json.loads(text)["kind"] == _KIND)
    except MALFORMED:
        return False


def matched_table(table: CostTable, inventory: ModelInventory, source_sha: str) -> CostTable:
    """`table` with only the formats of `inventory`.

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
    polished = {
        target: formats
        for target, formats in table.polished.items()
        if all(formats[layer.path] in layer.formats for layer in layers)
    }
    together = table.inventory.together
    dtype = table.inventory.dtype  # settled when the source was checked
    known = replace(inventory, layers=layers, together=together, dtype=dtype)
    return replace(table, inventory=known, polished=polished)


def check_measured_for(table: CostTable, recipe: Recipe) -> None:
    """Refuse a table that was measured with other options than those of `recipe`.

    Args:
        table: Of the same model.
        recipe: How to quantize.

    Raises:
        SensitivitiesError: The options differ; names the option of the table.
    """
    for option in ("encoder", "effort", "seed"):
        measured = getattr(table, option)
        if measured != getattr(recipe, option):
            raise SensitivitiesError(
                f"The cost table was measured with --{option} {measured}. Pass that here too, or "
                "measure again."
            )


def measured_on_other_text(table: CostTable) -> SensitivitiesError:
    """The error for a table of another calibration text."""
    return SensitivitiesError(
        f"The cost table was measured on another calibration text ('{table.calibration.name}', "
        f"{table.calibration.num_tokens:,} tokens). Pass the same text and number of tokens, or "
        "measure again."
    )


def _polished(raw: Mapping[str, Any], layers: tuple[LayerProfile, ...]) -> dict[str, QuantFormat]:
    formats = {layer.path: QuantFormat.from_name(string(raw[layer.path])) for layer in layers}
    if any(formats[layer.path] not in layer.formats for layer in layers):
        raise ValueError(raw)
    return formats


def _probe(raw: Sequence[Any]) -> tuple[float, float]:
    summed, measured = map(real, raw)
    if not (summed > 0 and measured > 0):
        raise ValueError(raw)
    return summed, measured


def _layer(raw: Mapping[str, Any]) -> LayerProfile:
    costs = {QuantFormat.from_name(name): real(cost) for name, cost in raw["costs_nats"].items()}
    if not costs:
        raise ValueError(raw["path"])
    return LayerProfile(
        path=string(raw["path"]),
        shape=tuple(map(whole, raw["shape"])),
        dtype_bits=whole(raw["dtype_bits"]),
        formats=tuple(costs),
        costs_nats=tuple(costs.values()),
        num_copies=num_copies_in(raw),
    )


def _with_costs(layer: LayerProfile, measured: LayerProfile) -> LayerProfile:
    costs = {UNQUANTIZED: 0.0} | dict(zip(measured.formats, measured.costs_nats, strict=True))
    if lost := [fmt.name for fmt in layer.formats if fmt not in costs]:
        raise SensitivitiesError(
            f"The cost table has no cost of '{lost[0]}' for layer '{layer.path}'. Pass --formats "
            "with those that were measured, or measure again."
        )
    return replace(layer, costs_nats=tuple(costs[fmt] for fmt in layer.formats))
