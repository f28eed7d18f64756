"""Images from the parquet files of a dataset."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from dynquant.errors import ImagesError
from dynquant.texts.image_rows import images_in_rows
from dynquant.texts.images import MAX_IMAGES, ImagePrompts
from tests.pictures import picture

NAME = "org/photos:default:train"


def row(index: int, **beside: Any) -> dict[str, Any]:
    return {"image": {"bytes": b"%d" % index, "path": f"{index}.png"}, **beside}


def read(
    folder: Path, rows: Sequence[dict[str, Any]], column: str | None = None, num_files: int = 1
) -> ImagePrompts:
    files = []
    for part in range(num_files):
        files.append(folder / f"{part}.parquet")
        pq.write_table(pa.Table.from_pylist(rows[part::num_files]), files[-1])
    opened = [lambda file=file: file.open("rb") for file in files]
    return images_in_rows(opened, column, NAME)


def test_the_column_of_the_hub_gives_images_and_captions(tmp_path):
    images = read(tmp_path, [row(i, caption=f"Cat {i}.") for i in range(5)])
    assert images.name == NAME
    assert [each.content for each in images.prompts] == [b"%d" % i for i in range(5)]
    assert [each.answer for each in images.prompts] == [f"Cat {i}." for i in range(5)]
    assert images.prompts[2].name == f"row 3 of {NAME}"


def test_questions_and_several_captions_are_read(tmp_path):
    rows = [row(i, question=f"How many? {i}", answer=[f"{i}", "more"]) for i in range(4)]
    images = read(tmp_path, rows)
    assert [each.question for each in images.prompts] == [f"How many? {i}" for i in range(4)]
    assert [each.answer for each in images.prompts] == ["0", "1", "2", "3"]


def test_columns_of_other_types_are_no_captions(tmp_path):
    images = read(tmp_path, [row(i, text=i, caption={"de": "x"}) for i in range(4)])
    assert images.prompts[0].answer == "This image shows"  # that of a fixed question


def test_the_column_can_be_named_and_may_hold_plain_bytes(tmp_path):
    images = read(tmp_path, [{"photo": b"%d" % i, "other": "x"} for i in range(4)], "photo")
    assert [each.content for each in images.prompts] == [b"0", b"1", b"2", b"3"]


def test_rows_without_an_image_are_skipped_and_no_more_files_are_opened_than_needed(tmp_path):
    rows: list[dict[str, Any]] = [row(i) for i in range(2 * MAX_IMAGES)]
    rows[0] = {"image": None}
    rows[2] = {"image": {"bytes": None, "path": "https://example.org/cat.png"}}
    images = read(tmp_path, rows, num_files=2)
    assert len(images.prompts) == MAX_IMAGES
    assert images.prompts[0].content == b"4"


@pytest.mark.parametrize("column", [None, "text", "absent"])
def test_a_dataset_without_such_a_column_is_refused(tmp_path, column):
    with pytest.raises(ImagesError, match=r"has no column .* of images. There are: photo\."):
        read(tmp_path, [{"photo": picture(), "text": "x"}] * 4, column)


def test_too_few_images_are_refused(tmp_path):
    with pytest.raises(ImagesError, match="has 2 images"):
        read(tmp_path, [row(0), row(1)])


def test_a_file_that_is_no_parquet_is_refused(tmp_path):
    file = tmp_path / "a.parquet"
    file.write_bytes(b"PAR1")
    with pytest.raises(ImagesError, match="cannot be read"):
        images_in_rows([lambda: file.open("rb")], None, NAME)
