"""Images from a dataset's parquet files: a column of `{"bytes", "path"}`, as the Hub writes it.

Only the first rows are read. A caption beside the image becomes the answer.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from itertools import islice
from typing import Any, BinaryIO

import pyarrow as pa
import pyarrow.parquet as pq

from dynquant.errors import ImagesError
from dynquant.texts.image_files import prompt_of, too_few
from dynquant.texts.images import MAX_IMAGES, MIN_IMAGES, ImagePrompt, ImagePrompts

__all__ = ["images_in_rows"]

_IMAGES = ("image", "img", "jpg")
_QUESTIONS = ("question", "prompt")
_ANSWERS = ("answer", "text", "caption")
_BATCH_ROWS = 8
"""Images are large: more rows at once would take hundreds of megabytes."""


def images_in_rows(
    files: Sequence[Callable[[], BinaryIO]], column: str | None, name: str
) -> ImagePrompts:
    """The images of the first rows, at most `MAX_IMAGES`; they are not decoded.

    Args:
        files: Each opens one parquet file.
        column: The column with the images; None for the usual names.
        name: Name of the dataset.

    Raises:
        ImagesError: There is no column of images, or too few rows have one.
        HubUnavailableError: The dataset cannot be reached.
    """
    try:
        prompts = tuple(islice(_prompts(files, column, name), MAX_IMAGES))
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
        raise ImagesError(f"The images of '{name}' cannot be read; it may be damaged.") from error
    if len(prompts) < MIN_IMAGES:
        raise too_few(name, len(prompts))
    return ImagePrompts(name=name, prompts=prompts)


def _prompts(
    files: Sequence[Callable[[], BinaryIO]], column: str | None, name: str
) -> Iterator[ImagePrompt]:
    number = 0
    for open_file in files:
        with open_file() as stream, pq.ParquetFile(stream, pre_buffer=False) as table:
            schema = table.schema_arrow
            image = _image_column(schema, column, name)
            columns = [
                image,
                *(each for each in (*_QUESTIONS, *_ANSWERS) if _is_text(schema, each)),
            ]
            for batch in table.iter_batches(_BATCH_ROWS, columns=columns, use_threads=False):
                for row in batch.to_pylist():
                    number += 1
                    content = row[image]["bytes"] if isinstance(row[image], dict) else row[image]
                    if content is not None:
                        yield _prompt(f"row {number} of {name}", content, number - 1, row)


def _prompt(name: str, content: bytes, index: int, row: dict[str, Any]) -> ImagePrompt:
    question, answer = (
        next((row[each] for each in names if row.get(each)), None)
        for names in (_QUESTIONS, _ANSWERS)
    )
    return prompt_of(name, content, index, question=question, answer=answer)


def _image_column(schema: pa.Schema, column: str | None, name: str) -> str:
    wanted = _IMAGES if column is None else (column,)
    found = next((each for each in wanted if _holds_images(schema, each)), None)
    if found is None:
        there = ", ".join(each[:100] for each in schema.names if _holds_images(schema, each))
        lacks = f"no column '{column}' of images" if column else "no column 'image' of images"
        raise ImagesError(
            f"'{name}' has {lacks}. "
            + (f"There are: {there}." if there else "Pass another dataset, or a folder.")
        )
    return found


def _holds_images(schema: pa.Schema, column: str) -> bool:
    if column not in schema.names:
        return False
    kind = schema.field(column).type
    if pa.types.is_struct(kind):
        index = kind.get_field_index("bytes")
        return index >= 0 and _is_binary(kind.field(index).type)
    return _is_binary(kind)


def _is_binary(kind: pa.DataType) -> bool:
    return bool(pa.types.is_binary(kind) or pa.types.is_large_binary(kind))


def _is_text(schema: pa.Schema, column: str) -> bool:
    if column not in schema.names:
        return False
    kind = schema.field(column).type
    if pa.types.is_list(kind):
        kind = kind.value_type
    return bool(pa.types.is_string(kind) or pa.types.is_large_string(kind))
