"""Size limits for untrusted model files, checked before the files are read.

The largest models of 2026 have some 150,000 tensors in 200 shards, 20 MB of headers and 40 MB of
tokenizer.
"""

from __future__ import annotations

from dynquant.errors import InvalidModelError

__all__ = [
    "MAX_CONFIG_VALUES",
    "MAX_DIMENSIONS",
    "MAX_EXPERTS",
    "MAX_HEADER_BYTES",
    "MAX_JSON_VALUES",
    "MAX_LAYERS",
    "MAX_LISTED_FILES",
    "MAX_PLANNING_FILE_BYTES",
    "MAX_SHARDS",
    "MAX_SIZE",
    "MAX_SMALL_FILES",
    "MAX_SMALL_FILE_BYTES",
    "MAX_TENSORS",
    "file_too_large",
    "headers_too_large",
    "require_few_values",
    "too_many_files",
    "too_many_tensors",
]

MAX_HEADER_BYTES = 50_000_000
"""Of all safetensors files of a model together; half of what the format allows one of them."""

MAX_SHARDS = 5_000

MAX_LISTED_FILES = 100_000
"""Of a repo in all, needed or not: as many as the Hub recommends at most."""

MAX_SMALL_FILES = 1_000
"""Files beside the weights."""

MAX_SMALL_FILE_BYTES = 200_000_000
"""Of one such file."""

MAX_PLANNING_FILE_BYTES = 30_000_000
"""Of one file that is read for any visitor before a download; an index is the largest."""

MAX_DIMENSIONS, MAX_SIZE = 16, 2**48
"""Of a tensor, and along one of its dimensions: their product is still fast to compute."""


MAX_TENSORS = 400_000
"""Of all safetensors files of a model together; MLX takes some 2 kB for each."""

MAX_JSON_VALUES = 3_000_000
"""Of one JSON file or header; parsed, each takes some 100 bytes. Large tokenizers have half."""

MAX_CONFIG_VALUES = 300_000
"""Of config.json, which is copied and looked through often; some list the names of all tensors."""

MAX_LAYERS, MAX_EXPERTS = 2_000, 100_000
"""Of a config; experts are counted over all layers. mlx-lm makes modules of some 8 kB for each
layer, and in some families for each expert. The largest known models have some 150 layers and
25,000 experts."""


def require_few_values(raw: bytes, name: str, most: int = MAX_JSON_VALUES) -> None:
    """Refuse a JSON text with too many values by its commas, without parsing it.

    Args:
        raw: The file's content, or a header in it.
        name: Of the file.
        most: Number of values that is too many.

    Raises:
        InvalidModelError: It has too many commas.
    """
    if raw.count(b",") >= most:
        raise InvalidModelError(
            f"'{name[:100]}' holds more than {most:,} values, and no model needs so many. "
            "Ask the model's author."
        )


def headers_too_large() -> InvalidModelError:
    """The error for headers that are too large to be read."""
    return InvalidModelError(
        "The headers of this model's safetensors files are larger than those of any model that we "
        f"know, {MAX_HEADER_BYTES // 10**6} MB in all. Ask its author."
    )


def file_too_large(name: str, most_bytes: int = MAX_SMALL_FILE_BYTES) -> InvalidModelError:
    """The error for a file that is too large to be read."""
    return InvalidModelError(
        f"'{name[:100]}' is larger than {most_bytes // 10**6} MB, which no model needs. Ask the "
        "model's author."
    )


def too_many_tensors() -> InvalidModelError:
    """The error for a model with too many tensors to be opened."""
    return InvalidModelError(
        f"This model's safetensors files hold more than {MAX_TENSORS:,} tensors, and no model that "
        "we know has so many. Ask its author."
    )


def too_many_files(num_files: int) -> InvalidModelError:
    """The error for too many files beside the weights."""
    return InvalidModelError(
        f"This model has {num_files:,} files beside its weights, and no model needs more than "
        f"{MAX_SMALL_FILES:,}. Ask its author."
    )
