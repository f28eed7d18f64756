"""A model folder, opened: its facts, and texts and images cut for it."""

from __future__ import annotations

import dataclasses
import importlib.metadata
import platform
import tempfile
from collections.abc import Callable, Sequence
from functools import cached_property, wraps
from pathlib import Path
from typing import Any, Concatenate, ParamSpec, TypeVar

import mlx.core as mx

from dynquant import __version__
from dynquant.model.coded_weights import described
from dynquant.model.dropped_tensors import notes_on
from dynquant.model.notes import note
from dynquant.quant.formats import QuantFormat
from dynquant.quant.mlx.arrays import for_compute
from dynquant.quant.mlx.calibration import (
    Windows,
    context_limit,
    cut_windows,
    vocabulary_size,
    window_length,
)
from dynquant.quant.mlx.fitting import MAX_RECONSTRUCTION_TOKENS
from dynquant.quant.mlx.folder import fingerprint, weights_of
from dynquant.quant.mlx.image_inputs import image_inputs, require_tower
from dynquant.quant.mlx.inventory import inventory_of
from dynquant.quant.mlx.loading import open_model
from dynquant.quant.mlx.memory import cache_bytes, conversion_bytes
from dynquant.quant.mlx.model_inputs import Batch, ModelInputs
from dynquant.quant.mlx.next_token import require_logits
from dynquant.quant.mlx.readahead import ReadAhead
from dynquant.quant.mlx.reads import read_shares
from dynquant.quant.mlx.streaming import BlockModel
from dynquant.quant.mlx.tokenizing import open_tokenizer, require_same_tokenizer
from dynquant.quant.mlx.writing import translated_storage_errors, write_companions
from dynquant.quant.plan import ModelInventory
from dynquant.texts.documents import Text
from dynquant.texts.images import ImagePrompts

__all__ = ["OpenedModel", "in_our_words", "num_probe_windows", "tool_versions"]

P = ParamSpec("P")
T = TypeVar("T")
M = TypeVar("M", bound="OpenedModel")

_PROBE_TOKENS = 2048
_MIN_WINDOWS = 10  # of a calibration text: eight to calibrate on, two to probe


def tool_versions() -> dict[str, str]:
    """Versions that a result depends on."""
    names = ("mlx", "mlx-lm", "transformers", "numpy")
    found = {name: importlib.metadata.version(name) for name in names}
    return {"dynquant": __version__, "python": platform.python_version(), **found}


def in_our_words(method: Callable[Concatenate[M, P], T]) -> Callable[Concatenate[M, P], T]:
    """A method that runs the model, whose code fails as its config and weights have it."""

    @wraps(method)
    def translated(self: M, /, *args: P.args, **kwargs: P.kwargs) -> T:
        with self._model.in_our_words():
            return method(self, *args, **kwargs)

    return translated


class OpenedModel:
    """One model folder, opened.

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
    @in_our_words
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
        """Sizes of the model and its layers, and the formats of `menu` that each may take."""
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
        windows = self._cut(
            text,
            num_tokens + _PROBE_TOKENS,
            min_windows=_MIN_WINDOWS,
            num_more_tokens=max(0, num_fitting_tokens - num_tokens),
        )
        return self._with_images(windows, images)

    def evaluation_windows(
        self, text: Text, num_tokens: int, images: ImagePrompts | None = None
    ) -> Windows:
        """Windows to evaluate on."""
        length = window_length(self._model.config)
        windows = self._cut(text, max(2 * length, num_tokens), min_windows=2)
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

    @cached_property
    def _blocks(self) -> BlockModel:
        blocks = BlockModel(self._model.skeleton, ReadAhead(self._model.folder))
        weights = self._model.lazy_weights()
        by_blocks = blocks.survey(weights)
        if not by_blocks and self._model.runtime.name == "mlx-vlm":
            require_logits(self._model.skeleton, for_compute(weights), family=self._family)
        return blocks if by_blocks else blocks.treat_as_whole()

    @property
    def _family(self) -> str:
        return str(self._model.config["model_type"])

    @cached_property
    def _tokenizer(self) -> object:
        return open_tokenizer(self._model.folder)

    def _batches(self, windows: Windows, start: int = 0, stop: int | None = None) -> list[mx.array]:
        return windows.batches(start, stop, vocab=vocabulary_size(self._model.config))

    def _cut(
        self, text: Text, num_tokens: int, *, min_windows: int, num_more_tokens: int = 0
    ) -> Windows:
        length = window_length(self._model.config)
        return cut_windows(
            text,
            self._tokenizer,
            window_tokens=length,
            num_windows=num_tokens // length,
            min_windows=min_windows,
            num_more=num_more_tokens // length,
            num_tokens=self._model.num_tokens,
        )

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
        text = self._batches(windows, 0, -num_probe_windows(windows))
        return [*text, *self._questions(windows)]

    def _probes(self, windows: Windows) -> list[mx.array]:
        return self._batches(windows, -num_probe_windows(windows))


def num_probe_windows(windows: Windows) -> int:
    """Of a short text's few windows, most are to calibrate on."""
    wanted = _PROBE_TOKENS // windows.facts.window_tokens
    return max(2, min(wanted, len(windows.tokens) // _MIN_WINDOWS * 2))
