"""What is known of a model before anything of it is downloaded: its config and its headers."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from dynquant.core.bounds import MAX_DIMENSIONS, MAX_HEADER_BYTES, MAX_SIZE
from dynquant.core.formats import DEFAULT_MENU, UNQUANTIZED
from dynquant.core.plan import LayerProfile, ModelInventory
from dynquant.errors import (
    DynquantError,
    ModelNotFoundError,
    Reason,
    RequestError,
    UnsupportedModelError,
)
from dynquant.hub.listing import Listing
from dynquant.hub.models import HubModels
from dynquant.hub.search import FoundModel, HubSearch
from dynquant.ports import ModelSource
from dynquant.web.families import known_families
from dynquant.web.shared import Shared

__all__ = ["Prospect", "Prospects", "model_id"]

_FRESH_SECS = 300.0
_MAX_TEXT = 300
_MAX_QUANTS = 8
"""A model with 100,000 tensors has some 10 MB of headers."""
_DTYPE_BITS = {"F32": 32, "F64": 32}
"""Everything else is kept in 16 bits."""
_CACHE_BYTES_PER_VALUE = 2
_SENTENCES: Mapping[Reason, str] = {
    Reason.MODEL_NOT_FOUND: (
        "There is no model '{}' on the Hub, or it is private. Check the spelling."
    ),
    Reason.ALREADY_QUANTIZED: (
        "'{}' is a quant of another model, and quantizing it again would add its error to ours. "
        "Choose the original."
    ),
}
"""Where the adapter's own sentence speaks to whoever has a command line."""
_ID = re.compile(r"\w[\w.-]{0,95}/\w[\w.-]{0,95}", re.ASCII)


@dataclass(frozen=True, kw_only=True)
class Prospect:
    """A model that could be quantized.

    Attributes:
        repo_id: Its name of today.
        license: As its card says; empty if it says nothing.
        gated: `auto` or `manual`; empty for an open one.
        model_type: Family; empty if nobody may read its config.
        inventory: Its layers, from the headers; a rough one where those may not be read.
        is_rough: Whether `inventory` is a guess from the number of parameters.
        cache_bytes_per_token: Of the key-value cache; None if nobody knows.
        quants: What dynquant made of it before.
    """

    repo_id: str
    revision_sha: str
    license: str
    gated: str
    downloads: int
    model_type: str
    inventory: ModelInventory
    is_rough: bool
    cache_bytes_per_token: int | None
    quants: tuple[FoundModel, ...]


def model_id(text: str) -> str:
    """The id in what somebody typed or pasted: `org/name`, or a page of it on the Hub.

    Raises:
        ModelNotFoundError: There is no id in it.
    """
    words = text.strip()[:_MAX_TEXT]
    if "://" in words or words.startswith(("huggingface.co/", "hf.co/")):
        path = urlsplit(words if "://" in words else f"https://{words}").path
        words = "/".join(path.strip("/").split("/")[:2])
    if not _ID.fullmatch(words):
        raise ModelNotFoundError(
            "This is not the name of a model. Type one such as 'Qwen/Qwen3-8B', or paste the "
            "address of its page on huggingface.co.",
            reason=Reason.INVALID_ID,
        )
    return words


class Prospects:
    """Looks models up; what it found is good for some minutes.

    Args:
        search: Lists of models.
        open_hub: Opens the Hub for one model.
    """

    def __init__(self, search: HubSearch, *, open_hub: Callable[[], HubModels]) -> None:
        self._search = search
        self._open_hub = open_hub
        self._found: Shared[str, Prospect] = Shared(fresh_secs=_FRESH_SECS)

    def __call__(self, text: str) -> Prospect:
        """The model that `text` names.

        Raises:
            ModelNotFoundError, InvalidModelError, UnsupportedModelError: dynquant cannot take it.
            HubUnavailableError: Network, rate limit, 5xx.
        """
        name = model_id(text)
        try:
            return self._found(name, lambda: self._look_up(name))
        except RequestError as error:
            if error.reason not in _SENTENCES:
                raise
            sentence = _SENTENCES[error.reason].format(name)
            raise type(error)(sentence, reason=error.reason) from error

    def _look_up(self, name: str) -> Prospect:
        with self._open_hub() as hub:
            listing = hub.look_up(name)
            about = self._search.about(listing.repo)
            try:
                source = hub.fetch_headers(listing.repo, revision=listing.sha)
            except DynquantError:
                if not listing.gated:
                    raise
                return self._rough(listing, about)
            config = _config(source)
            inventory = _inventory(source, config)
        return self._prospect(
            listing,
            about,
            inventory,
            model_type=inventory.model_type,
            cache_bytes_per_token=_cache_bytes_per_token(config),
        )

    def _rough(self, listing: Listing, about: FoundModel) -> Prospect:
        """A gated model, of which only the number of parameters is public."""
        num_parameters = about.num_parameters or sum(listing.sizes.values()) // 2
        layer = _layer("all", (max(1, num_parameters // 128), 128), 16)
        inventory = ModelInventory(
            model_type="",
            layers=(layer,),
            num_parameters=layer.num_weights,
            fixed_bits=0,
            dtype="bfloat16",
        )
        return self._prospect(listing, about, inventory, is_rough=True)

    def _prospect(
        self,
        listing: Listing,
        about: FoundModel,
        inventory: ModelInventory,
        *,
        model_type: str = "",
        is_rough: bool = False,
        cache_bytes_per_token: int | None = None,
    ) -> Prospect:
        return Prospect(
            repo_id=listing.repo,
            revision_sha=listing.sha,
            license=str(listing.card.get("license_name") or listing.card.get("license") or ""),
            gated=listing.gated,
            downloads=about.downloads,
            model_type=model_type,
            inventory=inventory,
            is_rough=is_rough,
            cache_bytes_per_token=cache_bytes_per_token,
            quants=self._search.quants_of(listing.repo, limit=_MAX_QUANTS),
        )


def _config(source: ModelSource) -> dict[str, Any]:
    """The config of a model that can be quantized, as far as the config tells.

    Raises:
        UnsupportedModelError: mlx-lm does not run it, or it brings its own code.
    """
    try:
        config = json.loads((source.folder / "config.json").read_text(encoding="utf-8"))
        family = str(config["model_type"])
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise UnsupportedModelError(
            f"The config.json of '{source.name}' names no family of models, so nobody can tell "
            "how to run it. Pass a model for transformers or mlx-lm.",
            reason=Reason.UNKNOWN_ARCHITECTURE,
        ) from error
    if config.get("model_file") is not None:
        raise UnsupportedModelError(
            f"'{source.name}' brings its own Python code, and dynquant never runs code from a "
            "model. Take a version that mlx-lm supports.",
            reason=Reason.OWN_CODE,
        )
    families = known_families()
    if families is not None and family not in families:
        raise UnsupportedModelError(
            f"'{source.name}' is of the family '{family[:60]}', which mlx-lm does not run yet. "
            "Look for a model of another family.",
            reason=Reason.UNKNOWN_ARCHITECTURE,
        )
    if config.get("quantization_config") or config.get("quantization"):
        raise UnsupportedModelError(
            _SENTENCES[Reason.ALREADY_QUANTIZED].format(source.name),
            reason=Reason.ALREADY_QUANTIZED,
        )
    return dict(config)


def _inventory(source: ModelSource, config: Mapping[str, Any]) -> ModelInventory:
    """The layers as the headers have them; mlx-lm may join some, which changes no size."""
    tensors = [
        (name, shape, bits)
        for file in sorted(source.folder.glob("model*.safetensors"))
        for name, (shape, bits) in _tensors(file).items()
    ]
    layers = tuple(
        _layer(name, shape, bits) for name, shape, bits in tensors if len(shape) > 1 and all(shape)
    )
    fixed = [(shape, bits) for _, shape, bits in tensors if len(shape) == 1]
    num_fixed = sum(shape[0] for shape, _ in fixed)
    num_parameters = sum(layer.num_weights for layer in layers) + num_fixed
    if not num_parameters:
        raise UnsupportedModelError(
            f"The safetensors files of '{source.name}' hold no weights. Take another model.",
            reason=Reason.NO_WEIGHTS,
        )
    return ModelInventory(
        model_type=str(config["model_type"]),
        layers=layers,
        num_parameters=num_parameters,
        fixed_bits=sum(shape[0] * bits for shape, bits in fixed),
        dtype="bfloat16",
    )


def _layer(path: str, shape: tuple[int, ...], dtype_bits: int) -> LayerProfile:
    formats = tuple(fmt for fmt in DEFAULT_MENU if fmt.fits(shape)) or (UNQUANTIZED,)
    return LayerProfile(path=path, shape=shape, dtype_bits=dtype_bits, formats=formats)


def _tensors(file: Path) -> dict[str, tuple[tuple[int, ...], int]]:
    """Name → shape and bits of a weight."""
    with file.open("rb") as stream:
        num_bytes = int.from_bytes(stream.read(8), "little")
        raw = stream.read(min(num_bytes, MAX_HEADER_BYTES))
    try:
        header = json.loads(raw)
        header.pop("__metadata__", None)
        return {
            name: (_sizes(entry["shape"]), _DTYPE_BITS.get(entry["dtype"], 16))
            for name, entry in header.items()
        }
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise UnsupportedModelError(
            "A safetensors file of this model has a header that cannot be read. Take another "
            "model, or ask its author to upload it again.",
            reason=Reason.INVALID_MODEL,
        ) from error


def _sizes(shape: list[object]) -> tuple[int, ...]:
    sizes = tuple(size for size in shape if isinstance(size, int) and 0 <= size <= MAX_SIZE)
    if len(sizes) < len(shape) or len(sizes) > MAX_DIMENSIONS:
        raise ValueError(shape)
    return sizes


def _cache_bytes_per_token(config: Mapping[str, Any]) -> int | None:
    """Keys and values of all layers; more than a model takes that looks back only so far."""
    text = config.get("text_config") or config
    try:
        num_layers = int(text["num_hidden_layers"])
        if rank := text.get("kv_lora_rank"):  # one compressed vector in place of both
            width = int(rank) + int(text.get("qk_rope_head_dim") or 0)
        else:
            num_heads = int(text["num_attention_heads"])
            head = int(text.get("head_dim") or int(text["hidden_size"]) // num_heads)
            width = 2 * head * int(text.get("num_key_value_heads") or num_heads)
    except (KeyError, TypeError, ValueError, ArithmeticError, AttributeError):
        return None
    return num_layers * width * _CACHE_BYTES_PER_VALUE
