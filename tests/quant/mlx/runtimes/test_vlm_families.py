"""Every vision family of mlx-vlm goes from folder to folder, and both stock loaders open it.

`make families` and CI take all of them; `make test` one of each kind. The table of families is
written to docs/families.md by `DYNQUANT_UPDATE_FAMILIES=1`.
"""

from __future__ import annotations

import os

import mlx.core as mx
import numpy as np
import pytest
from mlx.utils import tree_flatten

pytest.importorskip("mlx_vlm")

from mlx_vlm.utils import load_model as load_in_mlx_vlm

from dynquant.errors import UnsupportedModelError
from dynquant.quant.allocate import allocate
from dynquant.quant.formats import QuantFormat
from dynquant.quant.mlx.comparing import mean_kl_nats, streamed_logits
from dynquant.quant.mlx.loading import open_model
from dynquant.quant.mlx.model_inputs import ModelInputs
from dynquant.quant.mlx.quantizer import MlxQuantizer
from dynquant.quant.mlx.runtimes.mlx_vlm import MlxVlm
from dynquant.quant.recipe import EFFORTS
from tests.quant.mlx.factories import make_windows
from tests.vlm_families import (
    FAMILIES,
    NO_TEXT,
    image_inputs,
    logits_of,
    save,
    text_inputs,
)

MENU = tuple(map(QuantFormat.from_name, ("4g32", "8g32", "unquantized")))
USUAL = ("qwen2_vl", "qwen3_vl", "gemma3", "mistral3", "llava", "qwen3_5_moe", "molmo")
EVERY_FAMILY = "DYNQUANT_FAMILIES" in os.environ

REFUSED = {
    "diffusion_gemma": "fills a canvas",
    "florence2": "an encoder with a decoder",
    "nemotron_parse": "an encoder with a decoder",
    "paligemma": "reads its prompt as a whole",
    "paligemma-gemma2": "reads its prompt as a whole",
}
"""Family id → why its next token is not defined."""

EXCLUDED_HERE = {
    "falcon_ocr": "its module computes cos_1d anew, so that tensor is refused as dropped",
    "falcon_perception": "as falcon_ocr",
    "deepseek_v41": "hashes of its memory rest on the real tokenizer",
}


SKIPPED = {*NO_TEXT, *REFUSED, *EXCLUDED_HERE}


def steps(_step: str, _amount: int = 1) -> None:
    """Progress that no test looks at."""


def to_inputs(arguments: dict) -> ModelInputs:
    others = {key: value for key, value in arguments.items() if key != "input_ids"}
    return ModelInputs(arguments["input_ids"].astype(mx.int32), others)


@pytest.mark.parametrize(
    "family", [f for f in FAMILIES if f not in SKIPPED and (EVERY_FAMILY or f in USUAL)]
)
def test_a_family_goes_from_folder_to_folder(family, tmp_path):
    source, out = save(family, tmp_path / "source"), tmp_path / "out"
    out.mkdir()
    vocab = int(FAMILIES[family].get("text_config", {}).get("vocab_size", 256))
    windows = make_windows(np.random.default_rng(0).integers(3, min(vocab, 256) - 8, (12, 24)))
    quantizer = MlxQuantizer(source, name=family)
    inventory = quantizer.inventory(MENU)
    table = quantizer.measure(
        windows, menu=MENU, encoder="gptq", effort=EFFORTS["fast"], seed=0, on_step=steps
    )
    target = (inventory.min_bpw + inventory.max_bpw) / 2
    plan = allocate(table.inventory, target_bpw=target)
    quantizer.encode(
        {out: plan},
        windows,
        encoder="gptq",
        effort=EFFORTS["fast"],
        importance=table.importance,
        on_step=steps,
    )
    if family in USUAL:
        quantizer.reconstruct({out: plan}, windows, effort=EFFORTS["normal"], on_step=steps)
    opened = open_model(source)
    assert isinstance(opened.runtime, MlxVlm)
    written = open_model(out, dequantize=True)
    tokens = text_inputs(family, mx.array(windows.tokens[:1, :12]))
    inputs = [tokens, *filter(None, [image_inputs(family)])]
    stock = load_in_mlx_vlm(out)
    stock.set_dtype(mx.float32)
    found = [np.asarray(logits_of(stock, each)[0].astype(mx.float32)) for each in inputs]
    expected = streamed_logits(
        quantizer._blocks,
        lambda: written.lazy_weights(exact=True),
        [to_inputs(each) for each in inputs],
    )
    for ours, theirs in zip(expected, found, strict=True):
        assert mean_kl_nats([ours], [theirs[-len(ours) :]]) < 1e-4
    stored = dict(tree_flatten(stock.parameters()))
    tower = [p for p in written.stored_weights() if not opened.runtime.is_language(p)]
    before = opened.stored_weights()
    assert all(mx.array_equal(before[p], written.stored_weights()[p]).item() for p in tower)
    assert stored


@pytest.mark.parametrize("family", sorted(REFUSED))
def test_a_family_that_continues_no_text_is_refused(family, tmp_path):
    source = save(family, tmp_path / "source")
    windows = make_windows(np.random.default_rng(0).integers(3, 200, (12, 24)))
    with pytest.raises(UnsupportedModelError, match="does not continue a text token by token"):
        MlxQuantizer(source, name=family).check_source(windows)
