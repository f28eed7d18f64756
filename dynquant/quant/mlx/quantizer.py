"""The MLX side of the pipeline: one open model, and each step as one method."""

from __future__ import annotations

import dataclasses
import importlib.metadata
import platform
import tempfile
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property, partial, wraps
from pathlib import Path
from typing import Any, Concatenate, ParamSpec, TypeVar

import mlx.core as mx

from dynquant import __version__
from dynquant.errors import SensitivitiesError
from dynquant.model.config import dtype_names, with_dtype
from dynquant.model.dropped_tensors import notes_on
from dynquant.model.notes import note
from dynquant.progress import OnStep
from dynquant.quant.formats import UNQUANTIZED, QuantFormat
from dynquant.quant.mlx.alignment import measure_alignment
from dynquant.quant.mlx.calibration import (
    Windows,
    cut_windows,
    vocabulary_size,
    window_length,
)
from dynquant.quant.mlx.comparing import are_finite, streamed_logits
from dynquant.quant.mlx.conversion import encode_plans
from dynquant.quant.mlx.encoders import LayerEncoder, stored_by
from dynquant.quant.mlx.evaluation import compare
from dynquant.quant.mlx.folder import fingerprint, weights_of
from dynquant.quant.mlx.hessians import HessianObserver
from dynquant.quant.mlx.importance import Importance
from dynquant.quant.mlx.loading import check_finite, open_model
from dynquant.quant.mlx.measuring import measure_costs
from dynquant.quant.mlx.memory import cache_bytes, conversion_bytes
from dynquant.quant.mlx.parameters import quantizable, takes_mode
from dynquant.quant.mlx.polish import polished
from dynquant.quant.mlx.readahead import ReadAhead
from dynquant.quant.mlx.reference import check_reference, leaves_float16, sample_windows
from dynquant.quant.mlx.refining import refined
from dynquant.quant.mlx.sensitivity import Measurement
from dynquant.quant.mlx.streaming import BlockModel, BlockWeights
from dynquant.quant.mlx.tokenizing import open_tokenizer, require_same_tokenizer
from dynquant.quant.mlx.verify import verify_folder
from dynquant.quant.mlx.writing import (
    PART_BYTES,
    FolderWriter,
    quantization_config,
    replace_arrays,
    translated_storage_errors,
    write_companions,
)
from dynquant.quant.plan import CostTable, ModelInventory, QuantPlan
from dynquant.quant.quality import Quality
from dynquant.quant.recipe import EFFORTS, Effort
from dynquant.texts.documents import Text

__all__ = ["MlxQuantizer", "tool_versions"]

P = ParamSpec("P")
T = TypeVar("T")

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
        dequantize: Take a model that is quantized already.
    """

    def __init__(
        self, folder: Path, *, name: str, revision_sha: str = "", dequantize: bool = False
    ) -> None:
        self._model = open_model(folder, dequantize=dequantize)
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
        )

    @property
    def versions(self) -> dict[str, str]:
        """Versions of the tools that a result depends on."""
        return tool_versions()

    def inventory(self, menu: Sequence[QuantFormat]) -> ModelInventory:
        """What the model weighs, and which formats of `menu` each layer may take."""
        return self._model.inventory(menu)

    def cache_bytes(self, context_tokens: int) -> int:
        """Memory of the key-value cache and other state at `context_tokens`."""
        return cache_bytes(self._model, context_tokens)

    def conversion_bytes(self, num_tokens: int) -> int:
        """Memory that converting takes at its peak, estimated."""
        return conversion_bytes(self._model, num_tokens)

    def calibration_windows(self, text: Text, num_tokens: int) -> Windows:
        """Windows to calibrate on, with some more behind them to probe on.

        Raises:
            TextError: The text is too short.
        """
        length = window_length(self._model.config)
        return cut_windows(
            text,
            self._tokenizer,
            window_tokens=length,
            num_windows=(num_tokens + _PROBE_TOKENS) // length,
            min_windows=_MIN_WINDOWS,
            num_tokens=self._model.num_tokens,
        )

    def evaluation_windows(self, text: Text, num_tokens: int) -> Windows:
        """Windows to evaluate on.

        Raises:
            TextError: The text is too short.
        """
        length = window_length(self._model.config)
        return cut_windows(
            text,
            self._tokenizer,
            window_tokens=length,
            num_windows=max(2, num_tokens // length),
            min_windows=2,
            num_tokens=self._model.num_tokens,
        )

    def windows_from_json(self, raw: Any) -> Windows:
        """The windows that `Windows.to_json` wrote for the same model, see there."""
        return Windows.from_json(
            raw,
            window_tokens=window_length(self._model.config),
            num_tokens=self._model.num_tokens,
        )

    def check_tokenizer(self) -> None:
        """Refuse a model whose tokenizer would be another one beside the quantized weights.

        Raises:
            InvalidModelError, UnsupportedModelError: Its tokenizer does not open, or not so.
            StorageFullError: The folder for temporary files cannot be written.
        """
        with (
            translated_storage_errors(),
            tempfile.TemporaryDirectory(prefix="dynquant-tokenizer-") as copy,
        ):
            write_companions(
                Path(copy),
                self._model.folder,
                self._model.config,
                keep_vision_config=self._keeps_vision,
            )
            require_same_tokenizer(self._tokenizer, Path(copy))

    @_in_our_words
    def check_source(self, windows: Windows) -> None:
        """Refuse a source that would be another model in mlx-lm, and settle the stored dtype.

        A float16 source whose activations leave float16's range is stored in bfloat16.

        Args:
            windows: The calibration windows.

        Raises:
            UnsupportedModelError: The loader drops a tensor whose values nothing else holds.
            InvalidModelError: Stock mlx-lm does not run the source, or computes something else.
            NonFiniteError: The source computes NaN or infinity.
        """
        model = self._model
        model.require_nothing_lost()
        sample = sample_windows(windows.tokens)
        logits = streamed_logits(self._blocks, model.lazy_weights, sample)
        if not are_finite(logits):
            for path, array in model.lazy_weights().items():
                check_finite({path: array})  # names the layer whose weight is damaged
        is_sound = check_reference(model, logits, sample)
        inventory = self.inventory(())
        if self._is_half:
            layers = {layer.path for layer in inventory.layers}
            watched = {p: m for p, m in quantizable(model.skeleton).items() if p in layers}
            batches = self._batches(windows, 0, _NUM_RANGE_WINDOWS)
            if not is_sound or leaves_float16(self._blocks, model.lazy_weights, watched, batches):
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
        """What every format of every layer costs.

        Raises:
            NonFiniteError: NaN or infinity; names the layer.
        """
        inventory = self.inventory(menu)
        num_probes = _num_probe_windows(windows)
        measurement = self._measurement(
            inventory, self._batches(windows, 0, -num_probes), feedback=encoder == "gptq", seed=seed
        )
        costs = measure_costs(
            measurement,
            inventory.layers,
            encoder=encoder,
            effort=effort,
            probe_windows=self._batches(windows, -num_probes),
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
        """Plans of the same size with less KL divergence on the windows that probes use.

        Args:
            table: Costs of the model.
            plans: Target → plan.
            windows: The calibration windows.
            effort: How many rounds.
            keep_going: Asked before each round.
            on_step: Called with `polish` after each block of each round.
        """
        num_probes = _num_probe_windows(windows)
        measurement = self._measurement(
            self.inventory(()),
            self._batches(windows, 0, -num_probes),
            feedback=table.encoder == "gptq",
            seed=table.seed,
        )
        encoder = LayerEncoder(table.encoder, measurement.observer(), num_sweeps=effort.num_sweeps)
        return polished(
            measurement,
            self._batches(windows, -num_probes),
            table.inventory,
            plans,
            encoder,
            num_rounds=effort.num_polish_rounds,
            keep_going=keep_going,
            on_step=lambda: on_step("polish"),
        )

    @_in_our_words
    def refine(
        self,
        plans: Mapping[Path, QuantPlan],
        windows: Windows,
        *,
        effort: Effort,
        keep_going: Callable[[], bool],
        on_step: OnStep,
    ) -> None:
        """Distil the original into the scales and biases of written folders, where that helps.

        Args:
            plans: Folder → what is written there.
            windows: The calibration windows; the last of them decide.
            effort: How many steps.
            keep_going: Asked before each step.
            on_step: Called with `refine` after each step.
        """
        num_probes = _num_probe_windows(windows)
        for folder, plan in plans.items():
            formats = {path: fmt for path, fmt in plan.formats.items() if fmt != UNQUANTIZED}
            if all(fmt.mode != "affine" for fmt in formats.values()):
                continue
            better = refined(
                self._blocks,
                self._model.lazy_weights,
                open_model(folder, dequantize=True).stored_weights,
                formats,
                batches=self._batches(windows, 0, -num_probes),
                held_out=self._batches(windows, -num_probes),
                num_steps=effort.num_refine_steps,
                keep_going=keep_going,
                on_step=lambda: on_step("refine"),
            )
            if better:
                replace_arrays(folder, better)

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
        measurement = self._measurement(inventory, self._batches(windows), feedback=False, seed=0)
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
        """Write one folder per plan, all in one streamed pass.

        Args:
            plans: Empty folder → what to write there.
            windows: The calibration windows.
            encoder: Name of the encoder.
            effort: How much work to put in.
            importance: `CostTable.importance`.
            on_step: Called with `encode` after each block.

        Returns:
            Folder → bytes of weights.

        Raises:
            StorageFullError: The disk is full.
            NonFiniteError: A weight is NaN or infinite; names the layer.
        """
        inventory = self.inventory(())
        num_probes = _num_probe_windows(windows)
        batches = self._batches(windows, 0, -num_probes) if encoder != "minmax" else []
        measurement = self._measurement(inventory, batches, feedback=encoder == "gptq", seed=0)
        part_bytes = PART_BYTES // max(1, len(plans))
        writers = {
            folder: FolderWriter(
                folder, num_parameters=inventory.num_parameters, part_bytes=part_bytes
            )
            for folder in plans
        }
        encode_plans(
            measurement,
            plans,
            writers,
            encoder=encoder,
            num_sweeps=effort.num_sweeps,
            importance=_stored_importance(importance),
            on_step=lambda: on_step("encode"),
        )
        layers = measurement.layers
        affine_only = {path for path, layer in layers.items() if not takes_mode(layer)}
        sizes = {}
        for folder, writer in writers.items():
            config = dict(self._model.config)
            if dtype_names(config)[:1] != [inventory.dtype]:
                config = with_dtype(config, inventory.dtype)
            if entry := quantization_config(plans[folder], named=affine_only):
                config["quantization"] = entry
            sizes[folder] = writer.finish(
                self._model.folder, config, keep_vision_config=self._keeps_vision
            )
        return sizes

    @_in_our_words
    def verify(self, folder: Path, plan: QuantPlan, windows: Windows) -> str:
        """Load `folder` with stock mlx-lm in a fresh process; returns what it generated.

        Args:
            folder: A written folder.
            plan: What it stores.
            windows: Held-out windows; a few tokens of them are compared.

        Raises:
            VerificationError: It does not load, stores or computes something else than planned,
                computes NaN or infinity, or repeats one token.
        """
        written = partial(open_model(folder, dequantize=True).lazy_weights, exact=True)
        return verify_folder(
            folder,
            stored_bpw=plan.stored_bpw,
            windows=sample_windows(windows.tokens),
            planned=partial(streamed_logits, self._blocks, written),
            original=partial(streamed_logits, self._blocks, self._model.lazy_weights),
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
        """Figures of the original, of written folders and of uniform plans, in one pass.

        Args:
            folders: Name → a folder that dynquant or mlx-lm wrote of this model.
            uniform: Name → plan, encoded with stock `mx.quantize` on the fly.
            windows: Held-out windows.
            on_step: Called with `evaluate` after each block.
        """
        blocks, load = self._blocks, self._model.lazy_weights
        candidates = {
            name: BlockWeights(
                blocks, partial(open_model(folder, dequantize=True).lazy_weights, exact=True)
            )
            for name, folder in folders.items()
        }
        stock = LayerEncoder("minmax", HessianObserver({}, covariance=False))
        for name, plan in uniform.items():
            amend = stored_by(stock, plan.formats, self._dtypes)
            candidates[name] = BlockWeights(blocks, load, amend)
        return compare(
            blocks,
            BlockWeights(blocks, load),
            candidates,
            self._batches(windows),
            on_step=lambda: on_step("evaluate"),
        )

    @cached_property
    def _blocks(self) -> BlockModel:
        blocks = BlockModel(self._model.skeleton, ReadAhead(self._model.folder))
        by_blocks = blocks.survey(self._model.lazy_weights())
        return blocks if by_blocks else blocks.treat_as_whole()

    @property
    def _is_half(self) -> bool:
        return self.inventory(()).dtype == _HALF

    @cached_property
    def _dtypes(self) -> dict[str, mx.Dtype]:
        return {path: array.dtype for path, array in self._model.lazy_weights().items()}

    @cached_property
    def _keeps_vision(self) -> bool:
        """Whether the model has a vision tower that its config must describe."""
        return "vision_tower" in getattr(self._model.skeleton, "model", {})

    @cached_property
    def _tokenizer(self) -> object:
        return open_tokenizer(self._model.folder)

    def _batches(self, windows: Windows, start: int = 0, stop: int | None = None) -> list[mx.array]:
        return windows.batches(start, stop, vocab=vocabulary_size(self._model.config))

    def _measurement(
        self, inventory: ModelInventory, batches: Sequence[mx.array], *, feedback: bool, seed: int
    ) -> Measurement:
        return Measurement(
            blocks=self._blocks,
            load=self._model.lazy_weights,
            batches=batches,
            shapes={layer.path: layer.shape for layer in inventory.layers},
            feedback=feedback,
            seed=seed,
        )


def _num_probe_windows(windows: Windows) -> int:
    """Of a short text's few windows, most are to calibrate on."""
    wanted = _PROBE_TOKENS // windows.facts.window_tokens
    return max(2, min(wanted, len(windows.tokens) // _MIN_WINDOWS * 2))


def _stored_importance(
    stored: Mapping[str, tuple[tuple[str, str], ...]],
) -> dict[str, Importance]:
    try:
        return {path: Importance.from_stored(terms) for path, terms in stored.items()}
    except (ValueError, TypeError) as error:
        raise SensitivitiesError(
            "The importance vectors in the cost table are damaged. Measure again."
        ) from error
