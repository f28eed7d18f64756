"""Open a model folder: check it, build its modules, hand out its weights lazily.

Nothing here reads weights: mlx-lm loads lazily, so a fresh load costs only the
safetensors headers, and each pass over the model takes a fresh one.
"""

from __future__ import annotations

import logging
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.nn as nn
from mlx.utils import tree_flatten, tree_reduce

from dynquant.errors import InvalidModelError, NonFiniteError, Reason, UnsupportedModelError
from dynquant.model.config import (
    as_mlx_lm_reads,
    changed_settings,
    dtype_names,
    tied_as_stored,
)
from dynquant.model.dropped_tensors import Part, parts_of
from dynquant.model.quantized_sources import Tensor, quantized_form
from dynquant.quant.formats import UNQUANTIZED, QuantFormat
from dynquant.quant.mlx.dequantizing import (
    QUANTIZED_PARAMETERS,
    dequantized_in,
    require_dequantized,
)
from dynquant.quant.mlx.direct_embeddings import used_directly
from dynquant.quant.mlx.dropped_tensors import dropped, require_held
from dynquant.quant.mlx.folder import check_folder, stamps, tensors_of
from dynquant.quant.mlx.parameters import clear_parameters, quantizable, takes_mode
from dynquant.quant.mlx.ropes import require_ropes_read
from dynquant.quant.mlx.scaled_codes import ScaledCodes
from dynquant.quant.mlx.stock import (
    MODEL_CODE_ERRORS,
    Weights,
    build,
    load,
    load_errors_in_our_words,
    one_line,
)
from dynquant.quant.plan import LayerProfile, ModelInventory

__all__ = [
    "ModelFolder",
    "Weights",
    "check_finite",
    "compute_dtype",
    "for_compute",
    "open_model",
]

logger = logging.getLogger(__name__)

_ADDED_UP = 1 << 26  # numbers of a weight at a time
_DTYPES = {"float16": mx.float16, "bfloat16": mx.bfloat16, "float32": mx.float32}


def compute_dtype(stored: mx.Dtype) -> mx.Dtype:
    """Dtype to compute in: the stored one, but float32 on a CPU and for float16 gradients.

    On the CPU a bfloat16 product runs at 5 GFLOP/s, a float32 one at 190.
    """
    if mx.default_device() == mx.Device(mx.cpu) or stored == mx.float16:
        return mx.float32
    return stored


def for_compute(weights: Weights) -> Weights:
    """`weights`, floating ones lazily cast to the dtype that this machine computes in."""
    return {
        path: array.astype(compute_dtype(array.dtype)) if is_floating(array) else array
        for path, array in weights.items()
    }


def scalar(array: mx.array) -> float:
    """The number in a floating array of one element."""
    value = array.item()
    assert isinstance(value, float)
    return value


def is_floating(array: mx.array) -> bool:
    """Whether `array` holds floating-point numbers."""
    return bool(mx.issubdtype(array.dtype, mx.floating))


def check_finite(weights: Weights) -> None:
    """Refuse damaged weights before anything rests on them.

    Raises:
        NonFiniteError: A weight holds NaN or infinity; names its layer.
    """
    for path, array in weights.items():
        if is_floating(array) and not _is_finite(array):
            layer = path.rpartition(".")[0]
            raise NonFiniteError(
                f"The weight of layer '{layer}' holds NaN or infinity, so the model is damaged. "
                "Download it again, or ask its author.",
                layer=layer,
            )


def _is_finite(array: mx.array) -> bool:
    """Whether all numbers are; some at a time, for they are added up as float32."""
    numbers = array.reshape(-1)
    parts = (numbers[start : start + _ADDED_UP] for start in range(0, array.size, _ADDED_UP))
    return all(mx.isfinite(part.astype(mx.float32).sum()).item() for part in parts)


@dataclass(frozen=True)
class ModelFolder:
    """A local folder that holds one model in a layout that mlx-lm understands.

    Attributes:
        folder: The folder.
        config: Its `config.json` as mlx-lm reads it, without quantization settings.
        settings: What mlx-lm is told in place of what the file says.
        form: What the stored weights are quantized as, in words (they are then dequantized on
            load); None for plain ones.
        tensors: Name → dtype and shape of what is stored.
        codes: Those of them that are codes with scales, if any are.
        stamps: Of its weight files, when they were checked.
        stored_as: Dtype to store what is not quantized and scales in, such as `bfloat16`, where
            that is not the model's own.
    """

    folder: Path
    config: dict[str, Any]
    settings: dict[str, Any]
    form: str | None
    tensors: dict[str, Tensor]
    codes: ScaledCodes | None
    stamps: tuple[tuple[int, ...], ...]
    stored_as: str | None = None

    @property
    def quantized(self) -> bool:
        """Whether the stored weights are quantized."""
        return self.form is not None

    @cached_property
    def skeleton(self) -> nn.Module:
        """The model's modules with empty parameters: an architecture without weights."""
        model = self._built()
        model.eval()
        clear_parameters(model)
        return model

    @cached_property
    def _buffer_bytes(self) -> int:
        """Arrays that modules make for themselves, such as rope frequencies: mlx-lm counts them.

        Counted on modules that never ran: some keep what their first call computed.
        """
        model = self._built()
        parameters = {id(array) for _, array in tree_flatten(model.parameters())}
        arrays: list[mx.array] = tree_reduce(
            lambda found, leaf: [*found, leaf] if isinstance(leaf, mx.array) else found, model, []
        )
        return sum(array.nbytes for array in arrays if id(array) not in parameters)

    @cached_property
    def num_tokens(self) -> int | None:
        """Token ids that the model has a row for; None if nobody can tell."""
        weights = self.lazy_weights()
        rows = [
            weights[f"{path}.weight"].shape[0]
            for path, module in self.skeleton.named_modules()
            if isinstance(module, nn.Embedding) and f"{path}.weight" in weights
        ]
        text_config = self.config.get("text_config") or self.config
        said = text_config.get("vocab_size")
        # The larger embedding is that of the tokens, unless somebody made it look so.
        return min([max(rows), *([said] if isinstance(said, int) else [])]) if rows else None

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
            if not any(module.startswith("mlx_lm.models.") for module in modules):
                raise
            logger.warning("The model's code failed", exc_info=error)
            raise InvalidModelError(
                "This model cannot be run with its config and weights: "
                f"{one_line(str(error))}. Compare its files with those of the original, or ask "
                "its author."
            ) from error

    def _require_same_weights(self) -> None:
        if stamps(self.folder) != self.stamps:
            raise InvalidModelError(
                "The weights of this model changed while they were read. Wait until its download "
                "is done, then try again."
            )

    def _built(self) -> nn.Module:
        """The model's modules with lazily made parameters."""
        stored: Weights = {}
        stock = self._load(on_sanitized=lambda read, _kept: stored.update(read))
        if not self.quantized or self.codes is not None:
            return stock
        try:
            model = build(self.config)
            if hasattr(model, "sanitize"):  # it may take modules away, such as a tied head
                model.sanitize(stored)
        except (ValueError, TypeError, KeyError) as error:
            raise UnsupportedModelError(
                f"A '{self.config.get('model_type')}' model exists only quantized, in a form of "
                f"its own, and cannot be dequantized: {one_line(str(error))}.",
                reason=Reason.ALREADY_QUANTIZED,
            ) from error
        return model

    @cached_property
    def left_out(self) -> dict[Part, list[str]]:
        """Part of the model → names of its tensors that the loader drops."""
        names: list[str] = []
        self._load(on_sanitized=lambda read, kept: names.extend(dropped(read, kept)))
        return parts_of((name for name in names if name in self.tensors), self.tensors, self.config)

    def require_nothing_lost(self) -> None:
        """Refuse a model that the loader would make another one of; reads what it drops.

        Raises:
            UnsupportedModelError: It drops a tensor whose values nothing else holds.
        """
        unexplained = [*self.left_out.get(Part.HEAD, ()), *self.left_out.get(Part.OTHER, ())]
        if unexplained:
            stored: Weights = {}
            model = self._load(on_sanitized=lambda read, _kept: stored.update(read))
            require_held(unexplained, stored, dict(tree_flatten(model.parameters())))

    def lazy_weights(self, *, exact: bool = False) -> Weights:
        """Parameter path → array in its stored dtype, not yet read from disk.

        Args:
            exact: Do not round dequantized weights to the dtype of the model where this machine
                computes in a wider one.
        """
        model = self._load()
        weights = dict(tree_flatten(model.parameters()))
        is_packed = self.quantized and self.codes is None
        dequantized = dequantized_in(model, compute_dtype) if is_packed else {}
        for path in dequantized:
            for name in QUANTIZED_PARAMETERS:
                weights.pop(f"{path}.{name}", None)
        weights |= {f"{path}.weight": array for path, (array, _) in dequantized.items()}
        stored = {f"{path}.weight": dtype for path, (_, dtype) in dequantized.items()}
        may_cast = getattr(model, "cast_predicate", lambda _: True)
        for path, array in weights.items():
            if is_floating(array):
                dtype = stored.get(path, array.dtype)
                if may_cast(path):
                    dtype = self._dtype_of(dtype)
                is_exact = exact and path in stored
                weights[path] = array.astype(compute_dtype(dtype) if is_exact else dtype)
        return weights

    def stored_weights(self) -> Weights:
        """Parameter path → array as it is stored, packed where quantized, not yet read."""
        return dict(tree_flatten(self._load().parameters()))

    def inventory(self, menu: Sequence[QuantFormat]) -> ModelInventory:
        """What the model weighs and which formats of `menu` each layer may take.

        A layer's own protections (`model.quant_predicate`, such as 8-bit routers)
        stand as floors. A layer that no format of the menu fits stays unquantized, and so does an
        embedding whose weight the model multiplies by itself.
        """
        model = self.skeleton
        weights = self.lazy_weights()
        kept = self._used_directly
        layers = tuple(
            LayerProfile(
                path=path,
                shape=tuple(weights[f"{path}.weight"].shape),
                dtype_bits=weights[f"{path}.weight"].dtype.size * 8,
                formats=(UNQUANTIZED,)
                if path in kept
                else _allowed(model, path, module, weights[f"{path}.weight"].shape, menu),
            )
            for path, module in quantizable(model).items()
        )
        quantized_paths = {f"{layer.path}.weight" for layer in layers}
        parameter_bytes = sum(
            array.nbytes for path, array in weights.items() if path not in quantized_paths
        )
        dtypes = [str(weights[path].dtype).rpartition(".")[2] for path in sorted(quantized_paths)]
        return ModelInventory(
            model_type=str(self.config["model_type"]),
            layers=layers,
            num_parameters=self._count_parameters(weights),
            fixed_bits=8 * (parameter_bytes + self._buffer_bytes),
            dtype=max(sorted(set(dtypes)), key=dtypes.count) if dtypes else "float32",
        )

    @cached_property
    def _used_directly(self) -> set[str]:
        return used_directly(self.skeleton, self.lazy_weights())

    def _dtype_of(self, stored: mx.Dtype) -> mx.Dtype:
        """What `mlx_lm.convert` would cast to; it settles the size of scales and biases.

        But never bfloat16 to float16, whatever the config says: what is large would be infinite.
        """
        if self.stored_as is not None:
            return _DTYPES[self.stored_as]
        said = next((_DTYPES[name] for name in dtype_names(self.config) if name in _DTYPES), stored)
        return stored if (stored, said) == (mx.bfloat16, mx.float16) else said

    def _count_parameters(self, weights: Weights) -> int:
        """`mlx_lm.utils.get_total_parameters`: parameters held by leaf modules."""
        return sum(
            weights[f"{path}.{name}" if path else name].size
            for path, leaf in tree_flatten(
                self.skeleton.leaf_modules(), is_leaf=nn.Module.is_module
            )
            for name, _ in tree_flatten(leaf.parameters())
        )

    def _load(
        self, *, on_sanitized: Callable[[Weights, Weights], None] = lambda _read, _kept: None
    ) -> nn.Module:
        """Stock mlx-lm's own lazy and strict load, its errors put in our words."""
        self._require_same_weights()
        with load_errors_in_our_words(str(self.config.get("model_type")), self.form):
            return load(
                self.folder,
                self.settings,
                decode=self.codes.decoded if self.codes is not None else lambda weights: weights,
                on_sanitized=on_sanitized,
            )


def open_model(folder: Path, *, dequantize: bool = False) -> ModelFolder:
    """Check `folder` and open it.

    Args:
        folder: A model folder as on the Hub: `config.json`, safetensors, tokenizer.
        dequantize: Take a model that is quantized already, by dequantizing it first.

    Raises:
        ModelNotFoundError: There is no such folder.
        InvalidModelError: Files are missing, corrupt, or do not fit together.
        UnsupportedModelError: An unknown architecture, remote code, only pickled
            weights, or a quantized model without `dequantize`.
    """
    before = stamps(folder)
    said, tensors = check_folder(folder), tensors_of(folder)
    form = quantized_form(said, tensors)
    if form is None and (folder / "hf_quant_config.json").exists():
        form = "NVIDIA ModelOpt"
    if form is not None and not dequantize:
        raise UnsupportedModelError(
            f"This model is quantized already ({form}), and quantizing it again would add its "
            "error to ours. Use the original, or pass --dequantize to start from these weights "
            "all the same.",
            reason=Reason.ALREADY_QUANTIZED,
        )
    codes = ScaledCodes.of(tensors, said) if form is not None else None
    blank = ModelFolder(
        folder=folder,
        config={},
        settings={},
        form=form,
        tensors=tensors,
        codes=codes if codes and codes.scales else None,
        stamps=before,
    )
    opened, config = _with_config(blank, said)
    skeleton = opened.skeleton  # a model that does not build is refused here
    with load_errors_in_our_words(str(said.get("model_type")), form):
        require_ropes_read(_without_quantization(config))
    if opened.quantized:
        require_dequantized(opened.lazy_weights(), quantizable(skeleton))
    return opened


def _with_config(
    folder: ModelFolder, said: Mapping[str, Any]
) -> tuple[ModelFolder, Mapping[str, Any]]:
    """The folder with a config that keeps an output head of its own, where it has such a head.

    Returns:
        The folder, and the config that it was given, in its author's spelling.
    """

    def opened(config: Mapping[str, Any]) -> ModelFolder:
        read = as_mlx_lm_reads(config)
        own = _without_quantization(read)
        settings = changed_settings(said, read if folder.codes is None else own)
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


def _allowed(
    model: nn.Module,
    path: str,
    module: nn.Module,
    shape: Sequence[int],
    menu: Sequence[QuantFormat],
) -> tuple[QuantFormat, ...]:
    predicate = getattr(model, "quant_predicate", None)
    protection = predicate(path, module) if predicate is not None else True
    if not protection:
        return (UNQUANTIZED,)
    floor = protection.get("bits", 0) if isinstance(protection, dict) else 0
    any_mode = takes_mode(module)
    formats = tuple(
        fmt
        for fmt in menu
        if fmt.fits(shape)
        and (fmt == UNQUANTIZED or fmt.bits >= floor)
        and (any_mode or fmt.mode in ("affine", "unquantized"))
    )
    return formats or (UNQUANTIZED,)
