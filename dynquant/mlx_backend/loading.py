"""Open a model folder: check it, build its modules, hand out its weights lazily.

Nothing here reads weights: mlx-lm loads lazily, so a fresh load costs only the
safetensors headers, and each pass over the model takes a fresh one.
"""

from __future__ import annotations

import logging
import traceback
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from inspect import signature
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.nn as nn
from mlx.utils import tree_flatten, tree_reduce
from mlx_lm import utils as mlx_lm_utils

from dynquant.core.formats import UNQUANTIZED, QuantFormat
from dynquant.core.plan import LayerProfile, ModelInventory
from dynquant.errors import InvalidModelError, NonFiniteError, Reason, UnsupportedModelError
from dynquant.mlx_backend.dequantizing import (
    QUANTIZED_PARAMETERS,
    dequantized_in,
    is_quantized,
    require_dequantized,
)
from dynquant.mlx_backend.folder import as_loaded, check_folder, stamps

__all__ = [
    "ModelFolder",
    "check_finite",
    "compute_dtype",
    "for_compute",
    "open_model",
    "quantizable",
]

logger = logging.getLogger(__name__)

Weights = dict[str, mx.array]

# What the constructors of models raise when a config makes no sense to them.
_MODEL_CODE_ERRORS = (
    ArithmeticError,
    AssertionError,
    AttributeError,
    LookupError,
    RuntimeError,
    TypeError,
    ValueError,
)
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


def quantizable(model: nn.Module) -> dict[str, nn.Module]:
    """Path → module of everything that mlx-lm can store quantized, in the model's order."""
    leaves = tree_flatten(model.leaf_modules(), is_leaf=nn.Module.is_module)
    return {path: leaf for path, leaf in leaves if hasattr(leaf, "to_quantized")}


def takes_mode(layer: nn.Module) -> bool:
    """Whether mlx-lm can store `layer` in other modes than `affine`."""
    return "mode" in signature(layer.to_quantized).parameters


@dataclass(frozen=True)
class ModelFolder:
    """A local folder that holds one model in a layout that mlx-lm understands.

    Attributes:
        folder: The folder.
        config: Its `config.json`, without quantization settings.
        quantized: Whether the stored weights are quantized (they are then dequantized on load).
        stamps: Of its weight files, when they were checked.
    """

    folder: Path
    config: dict[str, Any]
    quantized: bool
    stamps: tuple[tuple[int, ...], ...]

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
        except _MODEL_CODE_ERRORS as error:
            self._require_same_weights()
            frames = traceback.walk_tb(error.__traceback__)
            modules = [str(frame.f_globals.get("__name__")) for frame, _ in frames]
            if not any(module.startswith("mlx_lm.models.") for module in modules):
                raise
            logger.warning("The model's code failed", exc_info=error)
            raise InvalidModelError(
                "This model cannot be run with its config and weights: "
                f"{_one_line(str(error))}. Compare its files with those of the original, or ask "
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
        stock = self._load()  # what it refuses is damaged, quantized or not
        if not self.quantized:
            return stock
        model_class, args_class = mlx_lm_utils._get_classes(self.config)
        try:
            model: nn.Module = model_class(args_class.from_dict(self.config))
        except (ValueError, TypeError, KeyError) as error:
            raise UnsupportedModelError(
                f"A '{self.config.get('model_type')}' model exists only quantized, in a form of "
                f"its own, and cannot be dequantized: {_one_line(str(error))}.",
                reason=Reason.ALREADY_QUANTIZED,
            ) from error
        return model

    def lazy_weights(self, *, exact: bool = False) -> Weights:
        """Parameter path → array in its stored dtype, not yet read from disk.

        Args:
            exact: Do not round dequantized weights to the dtype of the model where this machine
                computes in a wider one.
        """
        model = self._load()
        weights = dict(tree_flatten(model.parameters()))
        dequantized = dequantized_in(model, compute_dtype) if self.quantized else {}
        for path in dequantized:
            for name in QUANTIZED_PARAMETERS:
                weights.pop(f"{path}.{name}", None)
        weights |= {f"{path}.weight": array for path, (array, _) in dequantized.items()}
        stored = {f"{path}.weight": dtype for path, (_, dtype) in dequantized.items()}
        wanted, may_cast = self._conversion_dtype, getattr(model, "cast_predicate", lambda _: True)
        for path, array in weights.items():
            if is_floating(array):
                dtype = stored.get(path, array.dtype)
                if wanted is not None and may_cast(path):
                    dtype = wanted
                is_exact = exact and path in stored
                weights[path] = array.astype(compute_dtype(dtype) if is_exact else dtype)
        return weights

    def stored_weights(self) -> Weights:
        """Parameter path → array as it is stored, packed where quantized, not yet read."""
        return dict(tree_flatten(self._load().parameters()))

    def inventory(self, menu: Sequence[QuantFormat]) -> ModelInventory:
        """What the model weighs and which formats of `menu` each layer may take.

        A layer's own protections (`model.quant_predicate`, such as 8-bit routers)
        stand as floors. A layer that no format of the menu fits stays unquantized.
        """
        model = self.skeleton
        weights = self.lazy_weights()
        layers = tuple(
            LayerProfile(
                path=path,
                shape=tuple(weights[f"{path}.weight"].shape),
                dtype_bits=weights[f"{path}.weight"].dtype.size * 8,
                formats=_allowed(model, path, module, weights[f"{path}.weight"].shape, menu),
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

    @property
    def _conversion_dtype(self) -> mx.Dtype | None:
        """What `mlx_lm.convert` would cast to; it settles the size of scales and biases."""
        text_config = self.config.get("text_config") or {}
        for config in (self.config, text_config):
            for key in ("torch_dtype", "dtype"):
                if dtype := _DTYPES.get(str(config.get(key)).removeprefix("torch.")):
                    return dtype
        return None

    def _count_parameters(self, weights: Weights) -> int:
        """`mlx_lm.utils.get_total_parameters`: parameters held by leaf modules."""
        return sum(
            weights[f"{path}.{name}" if path else name].size
            for path, leaf in tree_flatten(
                self.skeleton.leaf_modules(), is_leaf=nn.Module.is_module
            )
            for name, _ in tree_flatten(leaf.parameters())
        )

    def _load(self) -> nn.Module:
        """Stock mlx-lm's own lazy and strict load, its errors put in our words."""
        family = self.config.get("model_type")
        self._require_same_weights()
        try:
            with as_loaded(self.folder) as folder:
                model, _ = mlx_lm_utils.load_model(folder, lazy=True, strict=True)
        except _MODEL_CODE_ERRORS as error:
            reason, name = str(error), str(family)[:100]
            if reason.startswith("Model type") and "not supported" in reason:
                raise UnsupportedModelError(
                    f"mlx-lm has no architecture for model_type '{name}'. A newer mlx-lm may "
                    "have it; dynquant takes every model that mlx-lm takes.",
                    reason=Reason.UNKNOWN_ARCHITECTURE,
                ) from error
            raise InvalidModelError(
                f"The weights or the config of this '{name}' model do not fit together: "
                f"{_one_line(reason)}. Take both from one version of the model, or ask its author."
            ) from error
        return model


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
    config = check_folder(folder)
    quantized = is_quantized(folder, config)
    if quantized and not dequantize:
        raise UnsupportedModelError(
            "This model is quantized already, and quantizing it again would add its error to ours. "
            "Use the original, or pass --dequantize to start from these weights all the same.",
            reason=Reason.ALREADY_QUANTIZED,
        )
    own = {k: v for k, v in config.items() if k not in ("quantization", "quantization_config")}
    opened = ModelFolder(folder=folder, config=own, quantized=quantized, stamps=before)
    skeleton = opened.skeleton  # a model that does not build is refused here
    if quantized:
        require_dequantized(opened.lazy_weights(), quantizable(skeleton))
    return opened


def clear_parameters(module: nn.Module) -> None:
    """Replace every parameter of `module` by an empty array, so that its memory is let go."""
    for path, _ in tree_flatten(module.parameters()):
        set_parameter(module, path, mx.array([]))


def set_parameter(module: nn.Module, path: str, array: mx.array) -> None:
    """Put `array` at the dotted `path` of `module`, whatever its shape was before."""
    *parents, name = path.split(".")
    node: Any = module
    for part in parents:
        node = node[int(part)] if isinstance(node, list | tuple) else node[part]
    if isinstance(node, list):
        node[int(name)] = array
    else:
        node[name] = array


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


def _one_line(text: str) -> str:
    return " ".join(text.split())[:300].rstrip(".: ") or "no details"
