"""The MLX side of the pipeline: each step on an open model is one method."""

from __future__ import annotations

import dataclasses
import shutil
import tempfile
import weakref
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property, partial
from pathlib import Path

import mlx.core as mx

from dynquant.progress import OnStep
from dynquant.quant.formats import QuantFormat
from dynquant.quant.mlx.alignment import measure_alignment
from dynquant.quant.mlx.calibration import (
    Windows,
)
from dynquant.quant.mlx.comparing import streamed_logits
from dynquant.quant.mlx.conversion import write_models
from dynquant.quant.mlx.encoders import LayerEncoder, stored_by
from dynquant.quant.mlx.evaluation import compare
from dynquant.quant.mlx.fitting import Fitting
from dynquant.quant.mlx.hessians import HessianObserver
from dynquant.quant.mlx.importance import importance_from_stored
from dynquant.quant.mlx.measuring import measure_costs
from dynquant.quant.mlx.model_inputs import Batch
from dynquant.quant.mlx.opened import (
    OpenedModel,
    in_our_words,
    num_probe_windows,
    tool_versions,
)
from dynquant.quant.mlx.polish import polished
from dynquant.quant.mlx.reference import check_source, sample_windows
from dynquant.quant.mlx.sensitivity import Measurement
from dynquant.quant.mlx.streaming import BlockWeights
from dynquant.quant.mlx.verify import verify_folder
from dynquant.quant.mlx.written import WrittenFolder
from dynquant.quant.plan import CostTable, ModelInventory, QuantPlan
from dynquant.quant.quality import Quality
from dynquant.quant.recipe import EFFORTS, Effort
from dynquant.quant.verified import Verified

__all__ = ["MlxQuantizer"]

_NUM_LONG_TOKENS = {
    mx.gpu: {"fast": 512, "normal": 2048, "max": 2048},
    mx.cpu: {"fast": 0, "normal": 64, "max": 512},
}
"""Held-out tokens that a written model is timed on and, from 256 on, tries caches of fewer bits on.

A CPU takes a tenth of a second for each token of even a tiny model in 16 bits.
"""

_HALF, _WIDER = "float16", "bfloat16"
_NUM_RANGE_WINDOWS = 8


class MlxQuantizer(OpenedModel):
    """The work on an open model; implements `ports.Quantizer`."""

    @in_our_words
    def check_source(self, windows: Windows) -> None:
        """Refuse a source that would be another model in its runtime; settle the stored dtype."""
        batches = self._batches(windows, 0, _NUM_RANGE_WINDOWS)
        layers = [layer.path for layer in self.inventory(()).layers] if self._is_half else []
        is_sound = check_source(
            self._model, self._blocks, windows.tokens, batches, half=layers, home=self._stock_home
        )
        if not is_sound:
            self.store_as(_WIDER)

    def store_as(self, dtype: str) -> None:
        """Store the results of a float16 source in `dtype`; the source's own changes nothing."""
        if dtype == _WIDER and self._model.stored_as is None and self._is_half:
            self._model = dataclasses.replace(self._model, stored_as=dtype)
            for name in ("_dtypes", "_blocks"):
                self.__dict__.pop(name, None)

    @in_our_words
    def measure(
        self,
        windows: Windows,
        *,
        menu: Sequence[QuantFormat],
        encoder: str,
        effort: Effort = EFFORTS["normal"],
        seed: int,
        on_step: OnStep,
    ) -> CostTable:
        """The cost of every format of every layer."""
        inventory = self.inventory(menu)
        measurement = self._measurement(
            inventory, self._calibration(windows), gptq=encoder == "gptq", seed=seed
        )
        costs = measure_costs(
            measurement,
            inventory.layers,
            encoder=encoder,
            effort=effort,
            probe_windows=self._probes(windows),
            on_step=on_step,
        )
        return CostTable(
            inventory=dataclasses.replace(
                inventory, layers=costs.profiles, together=costs.together
            ),
            method=costs.method,
            encoder=encoder,
            effort=effort.name,
            calibration=windows.facts,
            calibration_images=None if windows.images is None else windows.images.facts,
            seed=seed,
            source=self._name,
            source_sha=self.revision_sha,
            scales=costs.scales,
            importance={path: i.to_stored() for path, i in costs.importance.items()},
            versions=tool_versions(),
        )

    @in_our_words
    def polish(
        self,
        table: CostTable,
        plans: Mapping[float, QuantPlan],
        windows: Windows,
        *,
        effort: Effort,
        keep_going: Callable[[], bool],
        on_step: OnStep,
    ) -> dict[float, QuantPlan]:
        """Plans of the same size with less KL divergence on the windows that probes use."""
        measurement = self._measurement(
            self.inventory(()),
            self._calibration(windows),
            gptq=table.encoder == "gptq",
            seed=table.seed,
        )
        encoder = LayerEncoder(table.encoder, measurement.observer(), num_sweeps=effort.num_sweeps)
        return polished(
            measurement,
            self._probes(windows),
            table.inventory,
            plans,
            encoder,
            num_rounds=effort.num_polish_rounds,
            keep_going=keep_going,
            on_step=lambda: on_step("polish"),
        )

    @in_our_words
    def reconstruct(
        self, plans: Mapping[Path, QuantPlan], windows: Windows, *, effort: Effort, on_step: OnStep
    ) -> None:
        """Fit the blocks of written folders to the original's, where that helps."""
        self._fitting(windows).reconstruct(
            plans,
            num_epochs=effort.num_reconstruction_epochs,
            on_block=lambda: on_step("reconstruct"),
        )

    @in_our_words
    def distil(
        self,
        plans: Mapping[Path, QuantPlan],
        windows: Windows,
        *,
        effort: Effort,
        keep_going: Callable[[], bool],
        on_step: OnStep,
    ) -> None:
        """Distil the original into scales, biases and norms of written folders, where it helps."""
        self._fitting(windows).distil(
            plans,
            num_steps=effort.num_distil_steps,
            keep_going=keep_going,
            on_step=lambda: on_step("distil"),
        )

    @in_our_words
    def align(
        self,
        windows: Windows,
        *,
        low: QuantFormat,
        high: QuantFormat,
        on_step: OnStep,
    ) -> dict[str, float]:
        """The seed's sensitivities: gradient times quantization error, per million weights."""
        inventory = self.inventory((low, high))
        measurement = self._measurement(inventory, self._all(windows), gptq=False, seed=0)
        return measure_alignment(
            measurement, inventory.layers, low=low, high=high, on_step=lambda: on_step("align")
        )

    @in_our_words
    def encode(
        self,
        plans: Mapping[Path, QuantPlan],
        windows: Windows,
        *,
        encoder: str,
        effort: Effort = EFFORTS["normal"],
        importance: Mapping[str, tuple[tuple[str, str], ...]],
        on_step: OnStep,
    ) -> dict[Path, int]:
        """Write one folder per plan, all in one streamed pass; folder → bytes of weights."""
        batches = self._calibration(windows) if encoder != "minmax" else []
        inventory = self.inventory(())
        return write_models(
            self._model,
            self._measurement(inventory, batches, gptq=encoder == "gptq", seed=0),
            inventory,
            plans,
            encoder=encoder,
            num_sweeps=effort.num_sweeps,
            importance=importance_from_stored(importance),
            on_step=lambda: on_step("encode"),
        )

    @in_our_words
    def verify(
        self, folder: Path, plan: QuantPlan, windows: Windows, *, effort: Effort
    ) -> Verified:
        """Run `folder` with its stock runtime in a fresh process."""
        written = self._written(folder).weights
        num_long_tokens = _NUM_LONG_TOKENS[mx.default_device().type][effort.name]
        return verify_folder(
            folder,
            stored_bpw=plan.stored_bpw,
            windows=sample_windows(windows.tokens),
            planned=partial(streamed_logits, self._blocks, written),
            original=partial(streamed_logits, self._blocks, self._model.lazy_weights),
            text=windows.tokens.reshape(-1)[:num_long_tokens].tolist(),
            runtime=self._model.runtime.name,
            home=self._stock_home,
        )

    @in_our_words
    def evaluate(
        self,
        folders: Mapping[str, Path],
        uniform: Mapping[str, QuantPlan],
        windows: Windows,
        *,
        on_step: OnStep,
    ) -> tuple[Quality, dict[str, Quality]]:
        """Figures of the original, of written folders and of uniform plans, in one pass."""
        blocks, load = self._blocks, self._model.lazy_weights
        candidates = {
            name: BlockWeights(blocks, self._written(folder).weights)
            for name, folder in folders.items()
        }
        stock = LayerEncoder("minmax", HessianObserver({}, gram=False))
        for name, plan in uniform.items():
            amend = stored_by(stock, plan.formats, self._dtypes)
            candidates[name] = BlockWeights(blocks, load, amend)
        return compare(
            blocks,
            BlockWeights(blocks, load),
            candidates,
            self._all(windows),
            on_step=lambda: on_step("evaluate"),
        )

    @cached_property
    def _stock_home(self) -> Path:
        """Where stock runtimes keep what they compile for this model; it goes with the object."""
        home = Path(tempfile.mkdtemp(prefix="dynquant-stock-"))
        weakref.finalize(self, shutil.rmtree, home, ignore_errors=True)
        return home

    @property
    def _is_half(self) -> bool:
        return self.inventory(()).dtype == _HALF

    @cached_property
    def _dtypes(self) -> dict[str, mx.Dtype]:
        return {path: array.dtype for path, array in self._model.lazy_weights().items()}

    def _written(self, folder: Path) -> WrittenFolder:
        return WrittenFolder(folder, self._model.copies)

    def _fitting(self, windows: Windows) -> Fitting:
        num_held_out = num_probe_windows(windows)
        return Fitting(self._model, self._blocks, windows, num_held_out=num_held_out)

    def _measurement(
        self, inventory: ModelInventory, batches: Sequence[Batch], *, gptq: bool, seed: int
    ) -> Measurement:
        return Measurement(
            blocks=self._blocks,
            load=self._model.lazy_weights,
            batches=batches,
            shapes={layer.path: layer.shape for layer in inventory.layers},
            gptq=gptq,
            seed=seed,
            is_language=self._model.runtime.is_language,
        )
