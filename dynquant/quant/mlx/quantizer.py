"""The MLX side of the pipeline: one open model, and each step as one method."""

from __future__ import annotations

import dataclasses
import importlib.metadata
import platform
import shutil
import tempfile
import weakref
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property, partial, wraps
from pathlib import Path
from typing import Any, Concatenate, ParamSpec, TypeVar

import mlx.core as mx

from dynquant import __version__
from dynquant.model.coded_weights import described
from dynquant.model.dropped_tensors import notes_on
from dynquant.model.notes import note
from dynquant.progress import OnStep
from dynquant.quant.formats import QuantFormat
from dynquant.quant.mlx.alignment import measure_alignment
from dynquant.quant.mlx.arrays import for_compute
from dynquant.quant.mlx.calibration import (
    Windows,
    context_limit,
    cut_windows,
    vocabulary_size,
    window_length,
)
from dynquant.quant.mlx.comparing import streamed_logits
from dynquant.quant.mlx.conversion import write_models
from dynquant.quant.mlx.encoders import LayerEncoder, stored_by
from dynquant.quant.mlx.evaluation import compare
from dynquant.quant.mlx.fitting import MAX_RECONSTRUCTION_TOKENS, Fitting
from dynquant.quant.mlx.folder import fingerprint, weights_of
from dynquant.quant.mlx.hessians import HessianObserver
from dynquant.quant.mlx.image_inputs import image_inputs, require_tower
from dynquant.quant.mlx.importance import importance_from_stored
from dynquant.quant.mlx.inventory import inventory_of
from dynquant.quant.mlx.loading import open_model
from dynquant.quant.mlx.measuring import measure_costs
from dynquant.quant.mlx.memory import cache_bytes, conversion_bytes
from dynquant.quant.mlx.model_inputs import Batch, ModelInputs
from dynquant.quant.mlx.next_token import require_logits
from dynquant.quant.mlx.polish import polished
from dynquant.quant.mlx.readahead import ReadAhead
from dynquant.quant.mlx.reads import read_shares
from dynquant.quant.mlx.reference import check_source, sample_windows
from dynquant.quant.mlx.sensitivity import Measurement
from dynquant.quant.mlx.streaming import BlockModel, BlockWeights
from dynquant.quant.mlx.tokenizing import open_tokenizer, require_same_tokenizer
from dynquant.quant.mlx.verify import verify_folder
from dynquant.quant.mlx.writing import translated_storage_errors, write_companions
from dynquant.quant.mlx.written import WrittenFolder
from dynquant.quant.plan import CostTable, ModelInventory, QuantPlan
from dynquant.quant.quality import Quality
from dynquant.quant.recipe import EFFORTS, Effort
from dynquant.quant.verified import Verified
from dynquant.texts.documents import Text
from dynquant.texts.images import ImagePrompts

__all__ = ["MlxQuantizer", "tool_versions"]

P = ParamSpec("P")
T = TypeVar("T")

_NUM_LONG_TOKENS = {
    mx.gpu: {"fast": 512, "normal": 2048, "max": 2048},
    mx.cpu: {"fast": 0, "normal": 64, "max": 512},
}
"""Held-out tokens that a written model is timed on and, from 256 on, tries caches of fewer bits on.

A CPU takes a tenth of a second for each token of even a tiny model in 16 bits.
"""

_PROBE_TOKENS = 2048
_HALF, _WIDER = "float16", "bfloat16"
_NUM_RANGE_WINDOWS = 8
_MIN_WINDOWS = 10  # of a calibration text: eight to calibrate on, two to probe


def tool_versions() -> dict[str, str]:
    """Versions that a result depends on."""
    names = ("mlx", "mlx-lm", "transformers", "numpy")
    found = {name: importlib.metadata.version(name) for name in names}
    return {"dynquant": __version__, "python": platform.python_version(), **found}


def _in_our_words(method: Callable[Concatenate[MlxQuantizer, P], T]) -> Callable[..., T]:
    """A method that runs the model, whose code fails as its config and weights have it."""

    @wraps(method)
    def translated(self: MlxQuantizer, *args: P.args, **kwargs: P.kwargs) -> T:
        with self._model.in_our_words():
            return method(self, *args, **kwargs)

    return translated


class MlxQuantizer:
    """One model folder, opened; implements `ports.Quantizer`.

    Args:
        folder: The model's folder.
        name: Repo id or folder name, for artefacts.
        revision_sha: Commit of the repo; empty for a local folder.
        dequantize: Take somebody's quant of a model too.
        dtype: See `Recipe.dtype`.
        tower: See `Recipe.tower`.
    """

    def __init__(
        self,
        folder: Path,
        *,
        name: str,
        revision_sha: str = "",
        dequantize: bool = False,
        dtype: str = "auto",
        tower: str = "keep",
    ) -> None:
        self._model = open_model(
            folder,
            name=name,
            dequantize=dequantize,
            halves_float32=dtype == "auto",
            tower=tower,
        )
        self._name = name
        self._revision_sha = revision_sha

    @cached_property
    def revision_sha(self) -> str:
        """Commit of the repo, or the fingerprint of a local folder's weights."""
        return self._revision_sha or fingerprint(self._model.folder)

    @property
    @_in_our_words
    def num_blocks(self) -> int:
        """How many blocks a pass goes through."""
        return len(self._blocks.blocks)

    @property
    def notes(self) -> tuple[str, ...]:
        """Sentences for the card on what of the model's folder is not in use."""
        left_out = notes_on(self._model.left_out)
        stored_as = self._model.stored_as
        return (
            *left_out,
            *weights_of(self._model.folder).notes,
            *((note("stored_as", stored_as),) if stored_as else ()),
            *((note("source_form", described(codes)),) if (codes := self._model.codes) else ()),
            *((note("halved"),) if self._model.is_halved else ()),
        )

    @property
    def versions(self) -> dict[str, str]:
        """Versions of the tools that a result depends on."""
        return tool_versions()

    def inventory(self, menu: Sequence[QuantFormat]) -> ModelInventory:
        """What the model weighs, and which formats of `menu` each layer may take."""
        return inventory_of(self._model, menu)

    def cache_bytes(self, context_tokens: int, *, kv_bits: int = 16) -> int:
        """Memory of the key-value cache and other state at `context_tokens`."""
        return cache_bytes(self._model, context_tokens, kv_bits=kv_bits)

    @property
    def context_limit(self) -> int | None:
        """Tokens of the longest context that the config names."""
        return context_limit(self._model.config)

    def read_shares(self) -> dict[str, float]:
        """Share of each layer's weights that generating a token reads."""
        return read_shares(self._model)

    def conversion_bytes(self, num_tokens: int, *, num_fitting_tokens: int = 0) -> int:
        """Memory that converting takes at its peak, estimated."""
        fitted = min(num_fitting_tokens, MAX_RECONSTRUCTION_TOKENS)
        return conversion_bytes(self._model, num_tokens, num_fitting_tokens=fitted)

    def require_tower(self) -> None:
        """Refuse images for a model that sees none."""
        require_tower(self._model)

    def calibration_windows(
        self,
        text: Text,
        num_tokens: int,
        images: ImagePrompts | None = None,
        *,
        num_fitting_tokens: int = 0,
    ) -> Windows:
        """Windows to calibrate on, some behind them to probe on, and more to fit weights on."""
        length = window_length(self._model.config)
        windows = cut_windows(
            text,
            self._tokenizer,
            window_tokens=length,
            num_windows=(num_tokens + _PROBE_TOKENS) // length,
            min_windows=_MIN_WINDOWS,
            num_more=max(0, num_fitting_tokens - num_tokens) // length,
            num_tokens=self._model.num_tokens,
        )
        return self._with_images(windows, images)

    def evaluation_windows(
        self, text: Text, num_tokens: int, images: ImagePrompts | None = None
    ) -> Windows:
        """Windows to evaluate on."""
        length = window_length(self._model.config)
        windows = cut_windows(
            text,
            self._tokenizer,
            window_tokens=length,
            num_windows=max(2, num_tokens // length),
            min_windows=2,
            num_tokens=self._model.num_tokens,
        )
        return self._with_images(windows, images)

    def windows_from_json(self, raw: Any, images: ImagePrompts | None = None) -> Windows:
        """The windows that `Windows.to_json` wrote for the same model, see there."""
        windows = Windows.from_json(
            raw,
            window_tokens=window_length(self._model.config),
            num_tokens=self._model.num_tokens,
        )
        return dataclasses.replace(windows, images=images)

    def check_tokenizer(self) -> None:
        """Refuse a tokenizer that would be another one beside the quantized weights."""
        with (
            translated_storage_errors(),
            tempfile.TemporaryDirectory(prefix="dynquant-tokenizer-") as copy,
        ):
            write_companions(
                Path(copy),
                self._model.folder,
                self._model.config,
                keep_vision_config=self._model.config_has_tower,
            )
            require_same_tokenizer(self._tokenizer, Path(copy))

    @_in_our_words
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

    @_in_our_words
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

    @_in_our_words
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

    @_in_our_words
    def reconstruct(
        self, plans: Mapping[Path, QuantPlan], windows: Windows, *, effort: Effort, on_step: OnStep
    ) -> None:
        """Fit the blocks of written folders to the original's, where that helps."""
        self._fitting(windows).reconstruct(
            plans,
            num_epochs=effort.num_reconstruction_epochs,
            on_block=lambda: on_step("reconstruct"),
        )

    @_in_our_words
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

    @_in_our_words
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

    @_in_our_words
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

    @_in_our_words
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

    @_in_our_words
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
    def _blocks(self) -> BlockModel:
        blocks = BlockModel(self._model.skeleton, ReadAhead(self._model.folder))
        weights = self._model.lazy_weights()
        by_blocks = blocks.survey(weights)
        if not by_blocks and self._model.runtime.name == "mlx-vlm":
            require_logits(self._model.skeleton, for_compute(weights), family=self._family)
        return blocks if by_blocks else blocks.treat_as_whole()

    @cached_property
    def _stock_home(self) -> Path:
        """Where stock runtimes keep what they compile for this model; it goes with the object."""
        home = Path(tempfile.mkdtemp(prefix="dynquant-stock-"))
        weakref.finalize(self, shutil.rmtree, home, ignore_errors=True)
        return home

    @property
    def _family(self) -> str:
        return str(self._model.config["model_type"])

    @property
    def _is_half(self) -> bool:
        return self.inventory(()).dtype == _HALF

    @cached_property
    def _dtypes(self) -> dict[str, mx.Dtype]:
        return {path: array.dtype for path, array in self._model.lazy_weights().items()}

    @cached_property
    def _tokenizer(self) -> object:
        return open_tokenizer(self._model.folder)

    def _batches(self, windows: Windows, start: int = 0, stop: int | None = None) -> list[mx.array]:
        return windows.batches(start, stop, vocab=vocabulary_size(self._model.config))

    def _with_images(self, windows: Windows, images: ImagePrompts | None) -> Windows:
        """`windows` beside `images`, which the processor has taken once: it runs before the work.

        Its arrays are not kept, since they may take as much memory as a block.
        """
        windows = dataclasses.replace(windows, images=images)
        self._questions(windows)
        return windows

    def _questions(self, windows: Windows) -> list[ModelInputs]:
        """The questions about images, each a batch."""
        return [] if windows.images is None else image_inputs(self._model, windows.images)

    def _all(self, windows: Windows) -> list[Batch]:
        return [*self._batches(windows), *self._questions(windows)]

    def _calibration(self, windows: Windows) -> list[Batch]:
        text = self._batches(windows, 0, -_num_probe_windows(windows))
        return [*text, *self._questions(windows)]

    def _probes(self, windows: Windows) -> list[mx.array]:
        return self._batches(windows, -_num_probe_windows(windows))

    def _written(self, folder: Path) -> WrittenFolder:
        return WrittenFolder(folder, self._model.copies)

    def _fitting(self, windows: Windows) -> Fitting:
        num_held_out = _num_probe_windows(windows)
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


def _num_probe_windows(windows: Windows) -> int:
    """Of a short text's few windows, most are to calibrate on."""
    wanted = _PROBE_TOKENS // windows.facts.window_tokens
    return max(2, min(wanted, len(windows.tokens) // _MIN_WINDOWS * 2))
