"""Small records for tests: every argument has a default, name only what the test is about."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from dynquant.quant.formats import QuantFormat
from dynquant.quant.plan import LayerProfile, ModelInventory

__all__ = ["make_inventory", "make_layer", "make_layers"]


def make_layer(
    costs: Mapping[str, float] | None = None, *, formats: str = "2g64,4g64,8g64", **overrides: Any
) -> LayerProfile:
    """A layer of 64 x 64 weights; `costs` maps the names of its formats to nats."""
    names = list(costs) if costs is not None else formats.split(",")
    fields: dict[str, Any] = {
        "path": "model.layers.0.mlp.up_proj",
        "shape": (64, 64),
        "dtype_bits": 16,
        "formats": tuple(map(QuantFormat.from_name, names)),
        "costs_nats": tuple(costs.values()) if costs is not None else (),
    }
    return LayerProfile(**fields | overrides)


def make_layers(*costs: Mapping[str, float], **overrides: Any) -> tuple[LayerProfile, ...]:
    """One layer per mapping of costs, at the paths `layers.0`, `layers.1` and so on."""
    return tuple(
        make_layer(costs_of_layer, path=f"layers.{i}", **overrides)
        for i, costs_of_layer in enumerate(costs)
    )


def make_inventory(
    layers: Sequence[LayerProfile] | None = None, **overrides: Any
) -> ModelInventory:
    """A model of `layers` alone, unless `num_parameters` and `fixed_bits` add more to it."""
    layers = (make_layer(),) if layers is None else tuple(layers)
    fields: dict[str, Any] = {
        "model_type": "llama",
        "layers": layers,
        "num_parameters": sum(layer.num_weights for layer in layers),
        "fixed_bits": 0,
        "dtype": "bfloat16",
    }
    return ModelInventory(**fields | overrides)
