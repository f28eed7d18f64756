"""The sensitivities of the seed's method, in the seed's own file."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping

from dynquant.errors import SensitivitiesError
from dynquant.quant.plan import ModelInventory
from dynquant.report.artefacts.json_text import MALFORMED

__all__ = ["sensitivities_from_json", "sensitivities_to_json"]


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
    except MALFORMED as error:
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
