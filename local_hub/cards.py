"""The metadata of a repo: what its card's YAML says and what follows from its files."""

from __future__ import annotations

import json
import re
import sys
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import yaml

from local_hub.repos import Blob, Repo

# The front matter of a card, as huggingface_hub's own REGEX_YAML_BLOCK finds it.
FRONT_MATTER = re.compile(r"\A(\s*---[\r\n]+)([\S\s]*?)([\r\n]+---(?:\r\n|\r|\n|$))")
CONFIG_FIELDS = ("architectures", "model_type", "quantization_config")
# As in safetensors itself: a header that is larger is not one.
MAX_HEADER_BYTES = 10**8
DTYPE = re.compile(r"[A-Z][A-Z0-9_]{0,15}")
MAX_PARAMETERS = 2**63 - 1
# Of what a card or a config says: more is no metadata, whatever its aliases stand for.
MAX_VALUES, MAX_DEPTH = 100_000, 64
_Loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


class FrontMatterError(Exception):
    """The YAML of a card cannot be read."""


@dataclass(frozen=True)
class Metadata:
    """Metadata of a repo, from the files at its head."""

    card: Mapping[str, Any]
    config: Mapping[str, Any]
    tags: tuple[str, ...]
    library_name: str | None
    pipeline_tag: str | None


def split_front_matter(text: str) -> tuple[str, str]:
    """YAML and Markdown of a card; the YAML is empty if there is none."""
    found = FRONT_MATTER.match(text)
    return ("", text) if found is None else (found[2], text[found.end() :])


def read_front_matter(text: str) -> dict[str, Any]:
    block, _ = split_front_matter(text)
    try:
        _require_flat(block)
        # A safe loader, in C where there is one.
        content = plain(yaml.load(block, Loader=_Loader))
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise FrontMatterError(f"The YAML of the card cannot be read: {error}") from error
    if content is None:
        return {}
    if not isinstance(content, dict):
        raise FrontMatterError("The YAML of the card must be a mapping of names to values.")
    return content


def _require_flat(block: str) -> None:
    """Refuse what is nested so deep that the loader in C would end this process."""
    depth = 0
    for event in yaml.parse(block, Loader=_Loader):
        if isinstance(event, yaml.CollectionStartEvent):
            depth += 1
        elif isinstance(event, yaml.CollectionEndEvent):
            depth -= 1
        if depth > MAX_DEPTH:
            raise ValueError("it is nested too deep")


def plain(value: Any) -> Any:
    """`value` as JSON can say it: dates as texts, and what aliases stand for written out.

    Raises:
        ValueError: It is too much, too deep, or has a number that JSON has not.
    """
    left = MAX_VALUES

    def copied(each: Any, depth: int) -> Any:
        nonlocal left
        left -= 1
        if left < 0 or depth > MAX_DEPTH:
            raise ValueError("it holds too much")
        if isinstance(each, dict):
            return {str(name): copied(inner, depth + 1) for name, inner in each.items()}
        if isinstance(each, list | tuple | set):
            return [copied(inner, depth + 1) for inner in each]
        if each is None or isinstance(each, str | bool):
            return each
        if isinstance(each, int | float):
            if not abs(each) <= sys.float_info.max:  # nor is NaN
                raise ValueError("it holds a number that is none")
            return each
        return str(each)

    return copied(value, 0)


def metadata(repo: Repo) -> Metadata:
    """The metadata of the head of `main`, worked out once for each head."""
    key = (repo.branches.get("main"), id(repo.card_data))
    cached = repo.cache.get("metadata")
    if cached is None or cached[0] != key:
        cached = repo.cache["metadata"] = (key, _metadata(repo))
    found: Metadata = cached[1]
    return found


def _metadata(repo: Repo) -> Metadata:
    commit = repo.at("main")
    files = commit.files if commit else {}
    card = repo.card_data
    if card is None:
        card = _card_of(files.get("README.md"))
    config = _config_of(files.get("config.json"))
    library, pipeline = _text(card.get("library_name")), _text(card.get("pipeline_tag"))
    tags = _tags(repo, files, card, config)
    return Metadata(card, config, tags, library, pipeline)


def _card_of(blob: Blob | None) -> dict[str, Any]:
    try:
        return {} if blob is None else _parsed_card(blob.read())
    except (FrontMatterError, UnicodeDecodeError):
        return {}


@lru_cache(maxsize=1024)  # generated repos often share a card
def _parsed_card(content: bytes) -> dict[str, Any]:
    return read_front_matter(content.decode())


def _config_of(blob: Blob | None) -> dict[str, Any]:
    try:
        content = {} if blob is None else json.loads(blob.read())
        known = content if isinstance(content, dict) else {}
        return {name: plain(known[name]) for name in CONFIG_FIELDS if name in known}
    except (ValueError, RecursionError):
        return {}


def _text(value: Any) -> str | None:
    return value if isinstance(value, str) else None


def _texts(value: Any) -> list[str]:
    values = value if isinstance(value, list) else [value]
    return [str(item) for item in values if isinstance(item, str | int | float)]


def _tags(
    repo: Repo, files: Mapping[str, Blob], card: Mapping[str, Any], config: Mapping[str, Any]
) -> tuple[str, ...]:
    bases = _texts(card.get("base_model"))
    relation = _text(card.get("base_model_relation")) or "finetune"
    tags = [
        *_texts(card.get("library_name")),
        *(
            kind
            for kind in ("safetensors", "gguf")
            if any(name.endswith(f".{kind}") for name in files)
        ),
        *_texts(config.get("model_type")),
        *_texts(card.get("pipeline_tag")),
        *_texts(card.get("tags")),
        *_texts(card.get("language")),
        *(f"dataset:{name}" for name in _texts(card.get("datasets"))),
        *(f"base_model:{base}" for base in bases),
        *(f"base_model:{relation}:{base}" for base in bases),
        *(f"license:{name}" for name in _texts(card.get("license"))),
        *([repo.sdk] if repo.sdk else []),
        "region:us",
    ]
    return tuple(dict.fromkeys(tags))


def count_parameters(repo: Repo) -> dict[str, Any] | None:
    """Parameters by dtype, from the headers of the safetensors files at the root of `main`."""
    commit = repo.at("main")
    counts: Counter[str] = Counter()
    for name, blob in sorted(commit.files.items()) if commit else ():
        if "/" not in name and name.endswith(".safetensors"):
            counts.update(_parameters_of(blob))
    return {"parameters": dict(counts), "total": counts.total()} if counts else None


@lru_cache(maxsize=1024)
def _parameters_of(blob: Blob) -> dict[str, int]:
    length = int.from_bytes(blob.read(0, 8), "little")
    if length > min(blob.size, MAX_HEADER_BYTES):
        return {}
    counts: Counter[str] = Counter()
    try:
        for name, tensor in json.loads(blob.read(8, 8 + length)).items():
            if name != "__metadata__":
                counts[_dtype(tensor["dtype"])] += _num_weights(tensor["shape"])
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return {}
    return dict(counts) if counts.total() <= MAX_PARAMETERS else {}


def _dtype(name: str) -> str:
    if not DTYPE.fullmatch(name):
        raise ValueError(name)
    return name


def _num_weights(shape: list[int]) -> int:
    """The product, unless it is of a size that no file has; never larger than that on the way."""
    count = 1
    for size in shape:
        if type(size) is not int or not 0 <= size <= MAX_PARAMETERS:
            raise ValueError(size)
        count *= size
        if count > MAX_PARAMETERS:
            raise ValueError(shape)
    return count
