from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path

import mlx.core as mx
import numpy as np
import pytest

from dynquant.quant.formats import QuantFormat
from dynquant.quant.mlx.quantizer import MlxQuantizer
from dynquant.quant.plan import ModelInventory, QuantPlan
from dynquant.quant.recipe import Effort
from tests.quant.mlx.factories import make_windows, save_model, write_min_max

WINDOWS = make_windows(np.random.default_rng(0).integers(0, 512, (12, 24)))
DISTILLED = Effort(name="distilling", probes=False, num_sweeps=0, num_distil_steps=16)


def silent(_step: str, _amount: int = 1) -> None:
    pass


@pytest.fixture
def quantizer(tmp_path) -> MlxQuantizer:
    return MlxQuantizer(save_model(tmp_path / "model", vocab_size=512), name="model")


def in_turn(inventory: ModelInventory, formats: Sequence[QuantFormat]) -> QuantPlan:
    """A plan whose layers take `formats` in turn."""
    chosen = {
        layer.path: formats[index % len(formats)] for index, layer in enumerate(inventory.layers)
    }
    stored = sum(layer.stored_bits(chosen[layer.path]) for layer in inventory.layers)
    bpw = inventory.bpw(stored)
    return QuantPlan(
        formats=chosen,
        target_bpw=bpw,
        stored_bpw=bpw,
        predicted_kl_nats=float("nan"),
        lower_bound_nats=float("nan"),
    )


@pytest.fixture
def write(quantizer, tmp_path) -> Callable[..., tuple[Path, QuantPlan]]:
    """Writes the model with layers in the named formats in turn."""

    def written(*names: str) -> tuple[Path, QuantPlan]:
        formats = tuple(map(QuantFormat.from_name, names))
        plan = in_turn(quantizer.inventory(formats), formats)
        return write_min_max(quantizer, plan, WINDOWS, tmp_path / "quantized"), plan

    return written


@pytest.mark.parametrize("names", [("8g64",), ("3g32", "mxfp4", "6g64", "unquantized")])
def test_a_folder_has_the_figures_of_the_plan_that_it_was_written_by(quantizer, write, names):
    folder, plan = write(*names)
    _, found = quantizer.evaluate({"folder": folder}, {"plan": plan}, WINDOWS, on_step=silent)
    assert found["folder"].mean_kl_nats > 0
    assert found["folder"] == found["plan"]


def test_distilling_leaves_layers_without_biases_as_they_are(quantizer, write):
    folder, plan = write("2g32", "mxfp4", "unquantized")
    before = mx.load(str(folder / "model.safetensors"))
    mx.eval(before)  # the file is changed in place
    _, first = quantizer.evaluate({"it": folder}, {}, WINDOWS, on_step=silent)
    quantizer.distil(
        {folder: plan}, WINDOWS, effort=DISTILLED, keep_going=lambda: True, on_step=silent
    )
    after = mx.load(str(folder / "model.safetensors"))
    _, then = quantizer.evaluate({"it": folder}, {}, WINDOWS, on_step=silent)
    assert isinstance(before, dict)
    assert isinstance(after, dict)
    changed = {name for name in before if not mx.array_equal(before[name], after[name]).item()}
    affine = {path for path, fmt in plan.formats.items() if fmt.mode == "affine"}
    assert changed
    pairs = {f"{path}.{name}" for path in affine for name in ("scales", "biases")}
    assert changed <= pairs | {name for name, array in before.items() if array.ndim == 1}
    assert then["it"].mean_kl_nats < first["it"].mean_kl_nats


def test_what_of_a_folder_is_left_out_is_noted_for_the_card(tmp_path):
    folder = save_model(tmp_path / "model", vocab_size=512)
    assert MlxQuantizer(folder, name="model").notes == ()
    index = folder / "model.safetensors.index.json"
    content = json.loads(index.read_text())
    content["weight_map"]["mtp.fc.weight"] = "mtp.safetensors"
    index.write_text(json.dumps(content))
    (note,) = MlxQuantizer(folder, name="model").notes
    assert "'mtp.fc.weight'" in note
    assert "'mtp.safetensors'" in note
