"""The needs of a conversion: never less than MLX's own forecast, and not far more."""

from __future__ import annotations

import pytest

from dynquant.hub.local import local_source
from dynquant.quant.header_inventory import header_inventory
from dynquant.quant.recipe import EFFORTS, Recipe
from dynquant.rented.needs import Needs, needs_of
from tests.command_line import SHARED, needs_shared

GB = 10**9


def needs(effort: str = "normal", targets: tuple[float, ...] = (4.5,)) -> Needs:
    source = local_source(str(SHARED / "models" / "tiny-qwen3"), None)
    assert source is not None
    recipe = Recipe(targets_bpw=targets, effort=effort)
    return needs_of(header_inventory(source).inventory, recipe)


@needs_shared
@pytest.mark.parametrize("effort", EFFORTS)
@pytest.mark.parametrize("name", ["sample-2m", "tiny-qwen3", "tiny-qwen3-moe"])
def test_memory_covers_what_mlx_foresees(name, effort):
    from dynquant.quant.mlx.quantizer import MlxQuantizer

    source = local_source(str(SHARED / "models" / name), None)
    assert source is not None
    recipe = Recipe(targets_bpw=(4.5,), effort=effort)
    found = needs_of(header_inventory(source).inventory, recipe).memory_bytes
    foreseen = MlxQuantizer(source.folder, name=name).conversion_bytes(
        recipe.calibration_tokens, num_fitting_tokens=recipe.fitting_tokens
    )
    assert foreseen <= found <= 2 * foreseen + 4 * GB


@needs_shared
def test_more_work_takes_more_time_and_more_targets_more_disk():
    fast, normal, most = map(needs, EFFORTS)
    assert fast.compute_secs < normal.compute_secs < most.compute_secs
    two = needs(targets=(4.5, 6.0))
    assert normal.compute_secs < two.compute_secs < 2 * normal.compute_secs
    assert two.disk_bytes > normal.disk_bytes
    assert two.transfer_secs > normal.transfer_secs
