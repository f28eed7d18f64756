"""Open a model folder: check it, build its modules, hand out its weights lazily.

Nothing here reads weights: mlx-lm loads lazily, so a fresh load costs only the
safetensors headers, and each pass over the model takes a fresh one.
"""

from __future__ import annotations

import logging
import traceback
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.nn as nn
from mlx.utils import tree_flatten

from dynquant.errors import InvalidModelError, Reason, UnsupportedModelError
from dynquant.model.code_finder import coded_weights
from dynquant.model.coded_weights import CodedWeight, described, uncoded
from dynquant.model.config import (
    changed_settings,
    dtype_names,
    tied_as_stored,
)
from dynquant.model.dropped_tensors import Part, has_tower, parts_of
from dynquant.model.originals import is_low_precision, require_original
from dynquant.model.precision import is_float32
from dynquant.model.quantized_sources import Tensor, quantized_form
from dynquant.quant.formats import UNQUANTIZED, QuantFormat
from dynquant.quant.mlx.arrays import Weights, compute_dtype, is_floating
from dynquant.quant.mlx.coded_weights import decoded
from dynquant.quant.mlx.copies import overwritten_heads, tie
from dynquant.quant.mlx.dequantizing import (
    QUANTIZED_PARAMETERS,
    dequantized_in,
    require_dequantized,
)
from dynquant.quant.mlx.dropped_tensors import dropped, require_held
from dynquant.quant.mlx.folder import check_folder, read_config, stamps, tensors_of
from dynquant.quant.mlx.load_errors import load_errors_in_our_words, one_line
from dynquant.quant.mlx.parameters import clear_parameters, quantizable
from dynquant.quant.mlx.ropes import require_ropes_read
from dynquant.quant.mlx.runtimes import Runtime, choose_runtime
from dynquant.quant.mlx.runtimes.ports import MODEL_CODE_ERRORS

__all__ = [
    "ModelFolder",
    "open_model",
]

logger = logging.getLogger(__name__)

_MODEL_CODE = ("mlx_lm.models.", "mlx_vlm.models.")
_TOWER_8 = QuantFormat(8, 64)
_DTYPES = {"float16": mx.float16, "bfloat16": mx.bfloat16, "float32": mx.float32}


@dataclass(frozen=True)
class ModelFolder:
    """A local folder that holds one model in a layout that its runtime understands.

    Attributes:
        folder: The folder.
        runtime: The library that loads and runs it.
        config: Its `config.json` as mlx-lm reads it, without quantization settings.
        settings: Values that mlx-lm gets in place of those in the file.
        form: The form in which the stored weights are quantized, in words (they are then
            dequantized on load); None for plain ones.
        stored: Name → dtype and shape of what is stored.
        codes: Those of its weights that are stored as codes with scales.
        stamps: Of its weight files, when they were checked.
        halves_float32: Whether a float32 model is stored in bfloat16.
        stored_as: Dtype to store what is not quantized and scales in, such as `bfloat16`, where
            that is not the model's own.
        tower_format: How linear layers of parts that see or hear are stored.
    """

    folder: Path
    runtime: Runtime
    config: dict[str, Any]
    settings: dict[str, Any]
    form: str | None
    stored: dict[str, Tensor]
    codes: dict[str, CodedWeight]
    stamps: tuple[tuple[int, ...], ...]
    halves_float32: bool = False
    stored_as: str | None = None
    tower_format: QuantFormat = UNQUANTIZED

    @property
    def quantized(self) -> bool:
        """Whether the stored weights are quantized."""
        return self.form is not None

    @cached_property
    def is_halved(self) -> bool:
        """Whether this is a float32 model that is stored in bfloat16.

        Scales and biases of 32 bits would cost half a bit for each weight in groups of 64.
        """
        return self.halves_float32 and is_float32(self.config, self.tensors)

    @cached_property
    def tensors(self) -> dict[str, Tensor]:
        """Name → dtype and shape of what the model's class gets."""
        return uncoded(self.stored, self.codes)

    @property
    def stock_config(self) -> dict[str, Any] | None:
        """The `config.json` of the stock runtime where it can get settings in no other way."""
        is_told = self.runtime.name == "mlx-lm"
        return None if is_told else read_config(self.folder) | self.settings

    @cached_property
    def skeleton(self) -> nn.Module:
        """The model's modules with empty parameters: an architecture without weights."""
        model = self.built()
        tie(model, self.copies)
        model.eval()
        clear_parameters(model)
        return model

    @cached_property
    def copies(self) -> dict[str, str]:
        """Path of a head that loading overwrites → path of the embedding that it takes."""
        model = self._load()
        weights = dict(tree_flatten(model.parameters()))
        return overwritten_heads(model, self.runtime, self.config, weights)

    @cached_property
    def num_tokens(self) -> int | None:
        """Token ids that the model has a row for; None if nobody can tell."""
        weights = self.lazy_weights()
        rows = [
            weights[f"{path}.weight"].shape[0]
            for path, module in self.skeleton.named_modules()
            if isinstance(module, nn.Embedding)
            and f"{path}.weight" in weights
            and self.runtime.is_language(path)
        ]
        text_config = self.config.get("text_config") or self.config
        said = text_config.get("vocab_size")
        # The larger embedding is that of the tokens, unless somebody made it look so.
        return min([max(rows), *([said] if isinstance(said, int) else [])]) if rows else None

    @cached_property
    def has_tower(self) -> bool:
        """Whether the model keeps a part that sees or hears."""
        return has_tower(path for path, _ in tree_flatten(self.skeleton.parameters()))

    @property
    def config_has_tower(self) -> bool:
        """Whether the config must describe a tower."""
        return self.has_tower or self.runtime.name == "mlx-vlm"

    @contextmanager
    def in_our_words(self) -> Iterator[None]:
        """Say why the model cannot be run where its own code, or reading its weights, fails.

        Raises:
            InvalidModelError: Its config and weights made a module of `mlx_lm.models` raise
                something, or the weights changed meanwhile.
        """
        try:
            yield
        except MODEL_CODE_ERRORS as error:
            self._require_same_weights()
            frames = traceback.walk_tb(error.__traceback__)
            modules = [str(frame.f_globals.get("__name__")) for frame, _ in frames]
            if not any(module.startswith(_MODEL_CODE) for module in modules):
                raise
            logger.warning("The model's code failed", exc_info=error)
            raise InvalidModelError(
                "This model cannot be run with its config and weights: "
                f"{one_line(str(error))}. Compare its files with those of the original, or ask "
                "its author."
            ) from error

    def rewritten(self) -> ModelFolder:
        """The same folder, after this process wrote other values over its weights."""
        return replace(self, stamps=stamps(self.folder))

    def _require_same_weights(self) -> None:
        if stamps(self.folder) != self.stamps:
            raise InvalidModelError(
                "The weights of this model changed while they were read. Wait until its download "
                "is done, then try again."
            )

    def built(self) -> nn.Module:
        """The model's modules with lazily made parameters."""
        stored: Weights = {}
        stock = self._load(on_sanitized=lambda read, _kept: stored.update(read))
        if not self.quantized or self.codes:
            return stock
        try:
            return self.runtime.unquantized(self.config, stored)
        except (ValueError, TypeError, KeyError) as error:
            raise UnsupportedModelError(
                f"A '{self.config.get('model_type')}' model exists only quantized, in a form of "
                f"its own, and cannot be dequantized: {one_line(str(error))}.",
                reason=Reason.ALREADY_QUANTIZED,
            ) from error

    @cached_property
    def left_out(self) -> dict[Part, list[str]]:
        """Part of the model → names of its tensors that the loader drops."""
        names: list[str] = []
        self._load(on_sanitized=lambda read, kept: names.extend(dropped(read, kept)))
        return parts_of((name for name in names if name in self.tensors), self.tensors, self.config)

    @cached_property
    def drafting(self) -> list[str]:
        """Names of stored tensors of heads that draft tokens, which the loader drops."""
        dropped = set(self.left_out.get(Part.DRAFT, ()))
        stored = parts_of(self.tensors, self.tensors, self.config).get(Part.DRAFT, [])
        used = [name for name in stored if name in self.tensors and name not in dropped]
        return [] if used else stored

    def require_nothing_lost(self) -> None:
        """Refuse a model that the loader would make another one of; reads what it drops.

        Raises:
            UnsupportedModelError: It drops a tensor whose values nothing else holds.
        """
        unexplained = [*self.left_out.get(Part.HEAD, ()), *self.left_out.get(Part.OTHER, ())]
        if unexplained:
            stored: Weights = {}
            model = self._load(on_sanitized=lambda read, _kept: stored.update(read))
            held = dict(tree_flatten(model.parameters()))
            require_held(unexplained, stored, held, runtime=self.runtime.name)

    def lazy_weights(self, *, exact: bool = False) -> Weights:
        """Parameter path → array in its stored dtype, not yet read from disk.

        Args:
            exact: Do not round dequantized weights to the dtype of the model where this machine
                computes in a wider one.
        """
        model = self._load()
        weights = dict(tree_flatten(model.parameters()))
        is_packed = self.quantized and not self.codes
        dequantized = dequantized_in(model, compute_dtype) if is_packed else {}
        for path in dequantized:
            for name in QUANTIZED_PARAMETERS:
                weights.pop(f"{path}.{name}", None)
        weights |= {f"{path}.weight": array for path, (array, _) in dequantized.items()}
        for head in self.copies:
            del weights[f"{head}.weight"]
        stored = {f"{path}.weight": dtype for path, (_, dtype) in dequantized.items()}
        may_cast = getattr(model, "cast_predicate", lambda _: True)
        for path, array in weights.items():
            if is_floating(array):
                dtype = stored.get(path, array.dtype)
                if may_cast(path) and self.runtime.is_language(path):
                    dtype = self._dtype_of(dtype)
                is_exact = exact and path in stored
                weights[path] = array.astype(compute_dtype(dtype) if is_exact else dtype)
        return weights

    def stored_weights(self) -> Weights:
        """Parameter path → array as it is stored, packed where quantized, not yet read."""
        weights = dict(tree_flatten(self._load().parameters()))
        return {
            path: a for path, a in weights.items() if path.rpartition(".")[0] not in self.copies
        }

    def _dtype_of(self, stored: mx.Dtype) -> mx.Dtype:
        """The dtype that `mlx_lm.convert` casts to; it settles the size of scales and biases.

        But never bfloat16 to float16, whatever the config says: what is large would be infinite.
        """
        if self.stored_as is not None:
            return _DTYPES[self.stored_as]
        said = next((_DTYPES[name] for name in dtype_names(self.config) if name in _DTYPES), stored)
        dtype = stored if (stored, said) == (mx.bfloat16, mx.float16) else said
        return mx.bfloat16 if dtype == mx.float32 and self.is_halved else dtype

    def _load(
        self, *, on_sanitized: Callable[[Weights, Weights], None] = lambda _read, _kept: None
    ) -> nn.Module:
        """The runtime's own lazy and strict load, its errors put in our words."""
        self._require_same_weights()
        with load_errors_in_our_words(str(self.config.get("model_type")), self.form):
            return self.runtime.load(
                self.folder,
                self.settings,
                decode=partial(decoded, coded=self.codes, tensors=self.stored)
                if self.codes
                else lambda weights: weights,
                on_sanitized=on_sanitized,
            )


def open_model(
    folder: Path,
    *,
    name: str = "",
    dequantize: bool = False,
    halves_float32: bool = False,
    tower: str = "keep",
) -> ModelFolder:
    """Check `folder` and open it.

    Args:
        folder: A model folder as on the Hub: `config.json`, safetensors, tokenizer.
        name: Repo id or folder name.
        dequantize: Take somebody's quant too, by dequantizing it first.
        halves_float32: Store a float32 model in bfloat16.
        tower: See `Recipe.tower`.

    Raises:
        ModelNotFoundError: There is no such folder.
        InvalidModelError: Files are missing, corrupt, or do not fit together.
        UnsupportedModelError: An unknown architecture, remote code, only pickled
            weights, or a quant that is no original without `dequantize`.
    """
    before = stamps(folder)
    said, tensors = check_folder(folder), tensors_of(folder)
    form = quantized_form(said, tensors)
    if form is None and (folder / "hf_quant_config.json").exists():
        form = "NVIDIA ModelOpt"
    if form is not None and not dequantize:
        require_original(name, form=form)
    codes = coded_weights(tensors, said) if form is not None else {}
    if codes or is_low_precision(form):  # a config may name a form that no tensor is in
        form = described(codes) or None
    blank = ModelFolder(
        folder=folder,
        tower_format=_TOWER_8 if tower == "8" else UNQUANTIZED,
        runtime=choose_runtime(said, uncoded(tensors, codes), text_only=tower == "none"),
        config={},
        settings={},
        form=form,
        stored=tensors,
        codes=codes,
        stamps=before,
        halves_float32=halves_float32,
    )
    opened, config = _with_config(blank, said)
    skeleton = opened.skeleton  # a model that does not build is refused here
    with load_errors_in_our_words(str(said.get("model_type")), form):
        require_ropes_read(_without_quantization(config), opened.runtime)
    if opened.quantized:
        weights = opened.lazy_weights()
        present = [path for path in quantizable(skeleton) if f"{path}.weight" in weights]
        require_dequantized(weights, present)
    return opened


def _with_config(
    folder: ModelFolder, said: Mapping[str, Any]
) -> tuple[ModelFolder, Mapping[str, Any]]:
    """The folder with a config that keeps an output head of its own, where it has such a head.

    Returns:
        The folder, and the config that it was given, in its author's spelling.
    """

    def opened(config: Mapping[str, Any]) -> ModelFolder:
        read = folder.runtime.spelled(config)
        own = _without_quantization(read)
        is_packed = folder.form is not None and not folder.codes  # and loaded so by mlx-lm
        settings = changed_settings(said, read if is_packed else own)
        if folder.codes:  # else mlx-lm would look for them in hf_quant_config.json
            settings["quantization_config"] = None
        return replace(folder, config=own, settings=settings)

    as_said, as_stored = opened(said), tied_as_stored(said, folder.tensors)
    if as_stored is None:
        return as_said, said
    try:
        if Part.HEAD not in as_said.left_out:
            return as_said, said
    except InvalidModelError:  # its module may insist on an answer
        return opened(as_stored), as_stored
    other = opened(as_stored)
    return (as_said, said) if Part.HEAD in other.left_out else (other, as_stored)


def _without_quantization(config: Mapping[str, Any]) -> dict[str, Any]:
    own = {k: v for k, v in config.items() if k not in ("quantization", "quantization_config")}
    text = own.get("text_config")
    return own | {"text_config": _without_quantization(text)} if isinstance(text, dict) else own
