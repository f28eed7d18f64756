"""mlx-vlm, an extra: models that see images or hear, with their towers.

Its modules return logits in a record, take more than tokens, and name the language model's part
`language_model`. `load` calls the functions of mlx-vlm's loader one by one, since the loader has no
hook between reading weights and renaming them; `verify` compares the result with the loader itself.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from copy import deepcopy
from inspect import signature
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.nn as nn

from dynquant.errors import Reason, UnsupportedModelError
from dynquant.model.config import as_mlx_lm_reads
from dynquant.model.dropped_tensors import has_tower
from dynquant.quant.mlx.arrays import Weights
from dynquant.quant.mlx.folder import as_loaded, read_config
from dynquant.quant.mlx.runtimes.ports import MODEL_CODE_ERRORS, OnSanitized

__all__ = ["MlxVlm", "forget_positions", "with_plain_logits"]

_PARTS = ("text", "vision", "perceiver", "projector", "audio")
"""Of a config, each with a class of its own."""
_PART_CLASSES = {
    "VisionModel": "vision_config",
    "LanguageModel": "text_config",
    "AudioModel": "audio_config",
}
"""Classes beside `Model` that may rename weights, in the loader's order → their configs."""
_LANGUAGE = ("language_model", "lm", "text", "thinker.language_model", "lm_head", "model.decoder")
"""Paths of the language model in the packages of mlx-vlm; most have the first."""
_KEPT = ("_position_ids", "_rope_deltas")
"""Positions of the last call that some language models keep for the next token."""


class MlxVlm:
    """Implements `Runtime`."""

    name = "mlx-vlm"

    def build(self, config: Mapping[str, Any]) -> nn.Module:
        """See `Runtime.build`."""
        from mlx_vlm import utils  # noqa: PLC0415  an extra

        read = _as_read(config)
        package, _ = utils.get_model_and_args(read)
        if not hasattr(package, "Model") or not hasattr(package, "ModelConfig"):
            raise UnsupportedModelError(
                f"mlx-vlm's '{str(config.get('model_type'))[:100]}' is no model that writes text.",
                reason=Reason.UNKNOWN_ARCHITECTURE,
            )
        settings = package.ModelConfig.from_dict(read)
        settings = utils.update_module_configs(settings, package, read, _PARTS)
        return with_plain_logits(package.Model(settings))

    def load(
        self,
        folder: Path,
        settings: Mapping[str, Any],
        *,
        decode: Callable[[Weights], Weights] = lambda weights: weights,
        on_sanitized: OnSanitized = lambda _read, _kept: None,
    ) -> nn.Module:
        """See `Runtime.load`."""
        from mlx_vlm import utils  # noqa: PLC0415  an extra

        with as_loaded(folder) as files:
            config = _as_read({**read_config(files), **settings})
            read: Weights = {}
            for file in sorted(files.glob("model*.safetensors")):
                read |= mx.load(str(file))  # type: ignore[arg-type]  # a folder of arrays, by name
        model, read = self.build(config), decode(read)
        kept = _sanitized(model, config, read)
        on_sanitized(read, kept)
        loaded: nn.Module = utils.load_model_weights(
            model, config, kept, folder, lazy=True, declared_keys=set(read)
        )
        return loaded

    def spelled(self, config: Mapping[str, Any]) -> dict[str, Any]:
        """See `Runtime.spelled`: some modules take no setting that they do not know."""
        read = as_mlx_lm_reads(config)
        try:
            self.build(read)
        except TypeError:
            return dict(config)
        except MODEL_CODE_ERRORS:  # refused where the model is opened
            return read
        return read

    def unquantized(self, config: Mapping[str, Any], weights: Weights) -> nn.Module:
        """See `Runtime.unquantized`: parts without weights are taken away, as on loading."""
        from mlx_vlm import utils  # noqa: PLC0415  an extra

        model = self.build(config)
        utils._drop_modules_without_weights(model, weights)
        return model

    def sanitized(self, config: Mapping[str, Any], weights: Weights) -> Weights:
        """See `Runtime.sanitized`."""
        return _sanitized(self.build(config), _as_read(config), weights)

    def is_language(self, path: str) -> bool:
        """See `Runtime.is_language`."""
        is_below = any(path == each or path.startswith(f"{each}.") for each in _LANGUAGE)
        return is_below and not has_tower([path])


def _sanitized(model: Any, config: dict[str, Any], weights: Weights) -> Weights:
    """`weights` renamed by the classes of the model and of its parts, in the loader's order."""
    from mlx_vlm import utils  # noqa: PLC0415  an extra

    package, _ = utils.get_model_and_args(config)
    kept: Weights = utils.sanitize_weights(model, dict(weights))
    for name, part in _PART_CLASSES.items():
        part_class = getattr(package, name, None)
        if part_class is not None and hasattr(model.config, part):
            kept = utils.sanitize_weights(part_class, kept, getattr(model.config, part))
    return kept


def _as_read(config: Mapping[str, Any]) -> dict[str, Any]:
    """The config with the parts that mlx-vlm's loader expects."""
    # Some classes change what they are built from.
    read = {key: deepcopy(value) for key, value in config.items() if value is not None}
    language = read.pop("llm_config", {})
    return {"text_config": language, "vision_config": {}, "audio_config": {}} | read


def with_plain_logits(model: Any) -> nn.Module:
    """`model`, from now on with logits alone as its result, and with its blocks as `layers`."""
    own = type(model)
    takes = signature(own.__call__).parameters
    absent = {name: None for name in ("pixel_values", "mask") if name in takes}

    class Plain(own):  # type: ignore[misc, valid-type]
        def __call__(self, tokens: mx.array, **inputs: Any) -> Any:
            forget_positions(self)
            found = super().__call__(tokens, **absent | inputs)
            return getattr(found, "logits", found)

        @property
        def layers(self) -> Any:
            try:
                return own.layers.fget(self)
            except AttributeError:
                return _blocks_of(self)

    Plain.__module__, Plain.__name__ = own.__module__, own.__name__
    model.__class__ = Plain
    return model


def forget_positions(model: nn.Module) -> None:
    """Have the next call of `model` begin a text of its own."""
    for _, module in model.named_modules():
        for name in _KEPT:
            if getattr(module, name, None) is not None:
                setattr(module, name, None)


def _blocks_of(model: Any) -> Any:
    """The blocks of the language model where the model itself does not name them."""
    language = model.get("language_model") or model.get("text") or model.get("lm") or model
    inner = language.get("model", language)
    return inner.get("layers") or inner.get("blocks") or getattr(language, "layers", None)
