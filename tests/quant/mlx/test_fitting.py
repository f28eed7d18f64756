from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import mlx.core as mx
import numpy as np
import pytest

from dynquant.quant.allocate import allocate
from dynquant.quant.formats import QuantFormat
from dynquant.quant.mlx import fitting
from dynquant.quant.mlx.loading import open_model
from dynquant.quant.mlx.quantizer import MlxQuantizer
from dynquant.quant.plan import QuantPlan
from dynquant.quant.recipe import EFFORTS
from tests.quant.mlx.factories import make_windows, save_model, write_min_max

MENU = (QuantFormat(3, 32), QuantFormat(4, 32))
WINDOWS = make_windows(np.random.default_rng(0).integers(0, 512, (44, 24)))


def silent(_step: str, _amount: int = 1) -> None:
    pass


@pytest.fixture
def quantizer(tmp_path) -> MlxQuantizer:
    return MlxQuantizer(save_model(tmp_path / "model", vocab_size=512), name="model")


@pytest.fixture
def written(quantizer, tmp_path) -> tuple[Path, QuantPlan]:
    """The model in three and four bits by `mx.quantize`, which leaves much to gain."""
    inventory = quantizer.inventory(MENU)
    table = quantizer.measure(
        WINDOWS, menu=MENU, encoder="minmax", effort=EFFORTS["fast"], seed=0, on_step=silent
    )
    plan = allocate(table.inventory, target_bpw=(inventory.min_bpw + inventory.max_bpw) / 2)
    return write_min_max(quantizer, plan, WINDOWS, tmp_path / "quantized"), plan


@pytest.fixture
def kl(quantizer, written) -> Callable[[], float]:
    def measured() -> float:
        _, found = quantizer.evaluate({"it": written[0]}, {}, WINDOWS, on_step=silent)
        return found["it"].mean_kl_nats

    return measured


def test_a_folder_whose_blocks_are_fitted_comes_nearer_to_the_original(quantizer, written, kl):
    folder, plan = written
    before, files, steps = kl(), sorted(folder.iterdir()), list[str]()
    quantizer.reconstruct({folder: plan}, WINDOWS, effort=EFFORTS["normal"], on_step=steps.append)
    assert kl() < 0.95 * before
    assert sorted(folder.iterdir()) == files
    assert steps == ["reconstruct"] * quantizer.num_blocks


def test_a_folder_stays_where_fitted_blocks_make_the_model_worse(quantizer, written, monkeypatch):
    folder, plan = written

    def spoil(*_models, write, **_options):
        """Each block alone may look better."""
        stored = open_model(folder, dequantize=True).stored_weights()
        path = next(path for path in plan.formats if ".layers." in path)
        names = [f"{path}.{name}" for name in ("weight", "scales", "biases")]
        write({name: stored[name] for name in names} | {names[1]: 3 * stored[names[1]]})

    monkeypatch.setattr(fitting, "reconstruct", spoil)
    before = open_model(folder, dequantize=True).stored_weights()
    mx.eval(before)
    quantizer.reconstruct({folder: plan}, WINDOWS, effort=EFFORTS["normal"], on_step=silent)
    after = open_model(folder, dequantize=True).stored_weights()
    assert all(mx.array_equal(before[name], after[name]).item() for name in before)


def test_weights_are_fitted_on_other_windows_of_the_text_too(quantizer, written, monkeypatch):
    folder, plan = written
    seen = list[int]()

    def count(*_models, batches, held_out, **_options):
        seen.extend((sum(map(len, batches)), sum(map(len, held_out))))

    monkeypatch.setattr(fitting, "reconstruct", count)
    more = make_windows(np.random.default_rng(1).integers(0, 512, (30, 24))).tokens
    windows = type(WINDOWS)(WINDOWS.tokens, more, WINDOWS.sketch, WINDOWS.facts)
    quantizer.reconstruct({folder: plan}, windows, effort=EFFORTS["normal"], on_step=silent)
    num_fitted, num_held_out = seen
    assert num_held_out >= 2
    assert num_fitted + num_held_out == len(WINDOWS.tokens) + len(more)
