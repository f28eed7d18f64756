"""Every family that mlx-lm has goes through the whole path, from a folder to a folder.

`make families` and CI take all of them; `make test` one of each kind. Families that are excluded,
refused or take a side path are in `tests.families`, each with its reason, and are listed at the end
of the session.
"""

from __future__ import annotations

import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import cast

import mlx.core as mx
import mlx.nn as nn
import mlx_lm
import numpy as np
import pytest
from mlx.utils import tree_flatten
from mlx_lm.utils import compute_bits_per_weight, load_model

from dynquant.errors import UnsupportedModelError
from dynquant.quant.allocate import allocate
from dynquant.quant.formats import UNQUANTIZED, QuantFormat
from dynquant.quant.mlx.arrays import scalar
from dynquant.quant.mlx.calibration import Windows
from dynquant.quant.mlx.encoding import Encoded, decode
from dynquant.quant.mlx.hessians import HessianObserver
from dynquant.quant.mlx.importance import Importance
from dynquant.quant.mlx.model_inputs import Batch, run_model
from dynquant.quant.mlx.observing import Observation, observed, squares
from dynquant.quant.mlx.parameters import clear_parameters, quantizable, set_parameter
from dynquant.quant.mlx.quantizer import MlxQuantizer
from dynquant.quant.mlx.sensitivity import (
    FisherDiagonal,
    Measurement,
    _importance,
    _key,
    _sampled_log_likelihood,
    measure_importance,
)
from dynquant.quant.mlx.streaming import BlockModel
from dynquant.quant.plan import CostTable, QuantPlan, TextFacts
from dynquant.quant.recipe import EFFORTS, Effort
from dynquant.texts.overlap import Sketch
from tests.families import (
    EXCLUDED,
    FAMILIES,
    MASKED_LOGITS,
    NO_GRADIENT,
    REFUSED,
    STOCK_CANNOT_RELOAD,
    WHOLE,
    all_model_modules,
    build,
    module_of,
    save,
    vocab_size_of,
)

MENU = tuple(map(QuantFormat.from_name, ("2g32", "4g32", "4g64", "8g32", "unquantized")))
EVERY_FAMILY = "DYNQUANT_FAMILIES" in os.environ
NOT_REFUSED = [family for family in FAMILIES if family not in REFUSED]
DIFFERENTIABLE = [family for family in NOT_REFUSED if family not in NO_GRADIENT]
IN_A_FRESH_PROCESS = ("llama", "qwen3_next", "gemma3n")
# Probes and sweeps take most of the time: here for one family of each kind, with `make families`
# for all.
THOROUGH = (*IN_A_FRESH_PROCESS, *WHOLE, "gpt2", "mixtral", "qwen3_5-tied")
PECULIAR = (*THOROUGH, *NO_GRADIENT, *MASKED_LOGITS, *STOCK_CANNOT_RELOAD)
USUAL = (
    *(
        "qwen2",
        "qwen3",
        "qwen3_moe",
        "qwen3_vl",
        "llama-tied",
        "llama4",
        "mistral3",
        "phi3",
        "phimoe",
    ),
    *("gemma2", "gemma3", "gemma3_text", "deepseek_v3", "glm4_moe", "gpt_oss", "kimi_linear"),
    *("mamba2", "jamba", "nemotron_h", "granitemoehybrid", "falcon_h1", "rwkv7", "recurrent_gemma"),
    *("lfm2", "dbrx", "cohere2", "olmoe", "longcat_flash", "seed_oss", "minicpm3"),
)
"""Beside the peculiar ones: a family of each kind of attention, recurrence, experts and head."""
QUANTIZED = [f for f in NOT_REFUSED if EVERY_FAMILY or f in (*PECULIAR, *USUAL)]


def effort_for(family: str) -> Effort:
    return EFFORTS["normal" if EVERY_FAMILY or family in THOROUGH else "fast"]


def random_tokens(family: str, num_windows: int, window_tokens: int) -> np.ndarray:
    rng = np.random.default_rng(0)
    return rng.integers(0, vocab_size_of(family), (num_windows, window_tokens), dtype=np.int32)


def random_windows(family: str) -> Windows:
    tokens = random_tokens(family, 12, 32)
    facts = TextFacts(
        name="random", sha256="0" * 64, num_tokens=tokens.size, window_tokens=tokens.shape[1]
    )
    sketch = Sketch(np.zeros(0, dtype=np.uint64))
    return Windows(tokens=tokens, more=tokens[:0], sketch=sketch, facts=facts)


@dataclass
class Run:
    """One family on its way from folder to folder."""

    family: str
    source: Path
    out: Path
    quantizer: MlxQuantizer = field(init=False)
    windows: Windows = field(init=False)
    table: CostTable = field(init=False)
    plan: QuantPlan = field(init=False)

    def __post_init__(self) -> None:
        save(self.family, self.source)
        self.out.mkdir()
        self.quantizer = MlxQuantizer(self.source, name=self.family)
        self.windows = random_windows(self.family)

    def quantize(self) -> None:
        inventory = self.quantizer.inventory(MENU)
        self.table = self.quantizer.measure(
            self.windows,
            menu=MENU,
            encoder="gptq",
            effort=effort_for(self.family),
            seed=0,
            on_step=lambda _step, _amount=1: None,
        )
        target = inventory.min_bpw + 0.4 * (inventory.max_bpw - inventory.min_bpw)
        self.plan = allocate(self.table.inventory, target_bpw=target)
        self.quantizer.encode(
            {self.out: self.plan},
            self.windows,
            encoder="gptq",
            effort=effort_for(self.family),
            importance=self.table.importance,
            on_step=lambda _step, _amount=1: None,
        )
        if effort_for(self.family).num_reconstruction_epochs:
            self.quantizer.reconstruct(
                {self.out: self.plan},
                self.windows,
                effort=effort_for(self.family),
                on_step=lambda _step, _amount=1: None,
            )

    def load(self) -> nn.Module:
        """The written folder as stock mlx-lm loads it, with its tokenizer where it can."""
        if self.family in STOCK_CANNOT_RELOAD:
            return load_model(self.out)[0]
        model: nn.Module = mlx_lm.load(str(self.out))[0]
        return model

    def dequantized(self) -> nn.Module:
        """The source with the numbers that dynquant meant to write in the place of its weights."""
        model, _ = load_model(self.source)
        arrays: dict[str, mx.array] = {}
        for file in self.out.glob("*.safetensors"):
            arrays.update(cast("dict[str, mx.array]", mx.load(str(file))))
        for path, fmt in self.plan.formats.items():
            names = ("weight", "scales", "biases")
            own = {name: arrays[f"{path}.{name}"] for name in names if f"{path}.{name}" in arrays}
            assert ("scales" in own) == (fmt != UNQUANTIZED)
            set_parameter(model, f"{path}.weight", decode(Encoded(own, fmt)))
        return model


# transformers warns so about every config.json with a `rope_scaling` whose model it does not know
@pytest.mark.filterwarnings("ignore:`rope_scaling` is deprecated:FutureWarning")
@pytest.mark.parametrize("family", QUANTIZED)
def test_a_family_is_quantized_to_its_plan_and_stock_mlx_lm_runs_it(
    family, tmp_path, record_property
):
    run = Run(family, tmp_path / "source", tmp_path / "out")
    assert run.quantizer._blocks.is_whole == (family in WHOLE)
    assert not run.quantizer._model.left_out
    if family in IN_A_FRESH_PROCESS or EVERY_FAMILY:
        run.quantizer.check_source(run.windows)
    run.quantize()
    record_property("method", run.table.method)
    assert run.table.method == ("block_output" if family in NO_GRADIENT else "fisher")
    check_costs(run.table)

    source, loaded = load_model(run.source)[0], run.load()
    assert compute_bits_per_weight(source) == pytest.approx(
        run.table.inventory.max_bpw, abs=1e-9, rel=0
    )
    assert compute_bits_per_weight(loaded) == pytest.approx(run.plan.stored_bpw, abs=1e-9, rel=0)
    assert run.plan.stored_bpw <= run.plan.target_bpw
    assert any(fmt != UNQUANTIZED for fmt in run.plan.formats.values())
    check_logits(family, loaded, run.dequantized(), mx.array(run.windows.tokens[-1:]))
    if family in IN_A_FRESH_PROCESS:
        assert run.quantizer.verify(run.out, run.plan, run.windows, effort=EFFORTS["fast"]).sample


def check_costs(table: CostTable) -> None:
    """Finite, and nothing that may be quantized is free to quantize."""
    for layer in table.inventory.layers:
        for fmt, cost in zip(layer.formats, layer.costs_nats, strict=True):
            assert math.isfinite(cost), layer.path
            assert (cost > 0) == (fmt != UNQUANTIZED), layer.path
    assert all(0 < scale < math.inf for scale in table.scales.values())


def check_logits(family: str, loaded: nn.Module, expected: nn.Module, ids: mx.array) -> None:
    for model in (loaded, expected):
        model.set_dtype(mx.float32)
    got, wanted = loaded(ids), expected(ids)
    finite = mx.isfinite(wanted)
    assert mx.array_equal(mx.isfinite(got), finite).item()
    assert mx.all(finite).item() == (family not in MASKED_LOGITS)
    error = scalar(mx.where(finite, mx.abs(got - wanted), 0.0).max())
    assert error <= 2e-5 * scalar(mx.where(finite, mx.abs(wanted), 0.0).max())


@pytest.mark.parametrize("family", DIFFERENTIABLE)
def test_the_streamed_backward_pass_equals_plain_autograd(family):
    plain, streamed = build(family)[0], build(family)[0]
    weights = dict(tree_flatten(plain.parameters()))
    clear_parameters(streamed)
    blocks = BlockModel(streamed)
    if not blocks.survey(dict(weights)):
        blocks = blocks.treat_as_whole()
    tokens = random_tokens(family, 4, 24)
    measurement = Measurement(
        blocks=blocks,
        load=lambda: dict(weights),
        batches=[mx.array(tokens[:2]), mx.array(tokens[2:])],
        shapes={path: weights[f"{path}.weight"].shape for path in quantizable(plain)},
        gptq=False,
        seed=0,
    )
    found: dict[str, Importance] = {}
    measure_importance(measurement, on_layers=lambda layers, _held: found.update(layers))
    expected = plain_importance(plain, measurement)
    assert found.keys() == expected.keys()
    assert any(importance.terms for importance in expected.values())
    for path, importance in expected.items():
        for ours, theirs in zip(found[path].terms, importance.terms, strict=True):
            assert relative_error(ours.rows, theirs.rows) < 1e-4, path
            assert relative_error(ours.cols, theirs.cols) < 1e-4, path


def plain_importance(model: nn.Module, measurement: Measurement) -> Mapping[str, Importance]:
    """The same from `mx.grad` of the whole model, for a zero added to each layer's output."""
    moments = HessianObserver(measurement.shapes, gram=False)
    targets = FisherDiagonal(measurement.blocks, measurement.layers, measurement.shapes, [])
    layers = {p: each for p, each in quantizable(model).items() if p in measurement.shapes}
    model.train()
    for index, batch in enumerate(measurement.batches):
        calls = observed_calls(model, layers, batch)
        for call in calls:
            moments(call)
        mx.eval(moments.pending())
        gradients = output_gradients(model, layers, calls, batch, seed=measurement.seed + index)
        for call, gradient in zip(calls, gradients, strict=True):
            lead = measurement.shapes[call.path][:-2]
            ones = mx.ones((*gradient.shape[:-1], 1))
            sums = [squares(each, call.role, call.experts, lead) for each in (gradient, ones)]
            targets.take({_key(call.path, call.role): mx.concatenate(sums, axis=-1)})
    return {
        path: _importance(measurement, path, moments, targets, {}) for path in measurement.shapes
    }


def observed_calls(
    model: nn.Module, layers: Mapping[str, nn.Module], batch: Batch
) -> list[Observation]:
    calls: list[Observation] = []

    def note(call: Observation) -> mx.array:
        calls.append(call)
        return call.y

    with observed(layers, note):
        mx.eval(run_model(model, batch))
    return calls


def output_gradients(
    model: nn.Module,
    layers: Mapping[str, nn.Module],
    calls: Sequence[Observation],
    batch: Batch,
    *,
    seed: int,
) -> Sequence[mx.array]:
    def loss(*zeros: mx.array) -> mx.array:
        following = iter(zeros)
        with observed(layers, lambda call: call.y + next(following)):
            return _sampled_log_likelihood(run_model(model, batch), seed)

    zeros = [mx.zeros_like(call.y) for call in calls]
    gradients: Sequence[mx.array] = mx.grad(loss, argnums=list(range(len(zeros))))(*zeros)
    return gradients


def relative_error(found: mx.array, expected: mx.array) -> float:
    return scalar(mx.abs(found - expected).max() / (mx.abs(expected).max() + 1e-30))


def test_a_block_that_the_model_never_calls_is_measured_and_written_too(tmp_path, monkeypatch):
    """Such as a layer for multi-token prediction, which only some programs use."""

    def without_last(self: nn.Module, inputs: mx.array, *_others: object) -> mx.array:
        h = self.embed_tokens(inputs)
        for layer in self.layers[:-1]:
            h = layer(h, None, None)
        return cast("mx.array", self.norm(h))

    monkeypatch.setattr("mlx_lm.models.qwen3.Qwen3Model.__call__", without_last)
    run = Run("qwen3", tmp_path / "source", tmp_path / "out")
    run.quantize()
    assert run.table.method == "fisher"
    assert list(run.quantizer._blocks.num_calls.values()) == [1, 0]
    check_costs(run.table)
    loaded = run.load()
    assert compute_bits_per_weight(loaded) == pytest.approx(run.plan.stored_bpw, abs=1e-9, rel=0)
    check_logits("qwen3", loaded, run.dequantized(), mx.array(run.windows.tokens[-1:]))


@pytest.mark.parametrize("family", REFUSED)
@pytest.mark.parametrize("dequantize", [False, True])
def test_a_family_that_exists_only_quantized_is_refused(family, dequantize, tmp_path):
    save(family, tmp_path)
    with pytest.raises(UnsupportedModelError, match="quantized"):
        MlxQuantizer(tmp_path, name=family, dequantize=dequantize)


def test_every_module_of_mlx_lm_has_a_family_or_a_reason():
    covered = {module_of(family) for family in FAMILIES}
    assert covered.isdisjoint(EXCLUDED)
    assert covered | EXCLUDED.keys() == set(all_model_modules())


def test_every_note_is_about_a_family():
    for notes in (NO_GRADIENT, WHOLE, REFUSED, MASKED_LOGITS, STOCK_CANNOT_RELOAD):
        assert notes.keys() <= FAMILIES.keys()
        assert all(notes.values())
