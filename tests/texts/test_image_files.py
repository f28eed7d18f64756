"""Folders of images: what is read from them, and what is refused."""

from __future__ import annotations

import io
import json
import struct
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dynquant.errors import ImagesError
from dynquant.texts.image_files import checked, images_in_folder, opened_image, prompt_of
from dynquant.texts.images import MAX_IMAGES, ImagePrompt, ImagePrompts
from tests.pictures import make_pictures, picture

pytest.importorskip("PIL")


def write_list(folder: Path, rows: Sequence[Mapping[str, object]], name="metadata.jsonl") -> None:
    (folder / name).write_text("\n".join(map(json.dumps, rows)) + "\n", encoding="utf-8")


def png_that_claims(width: int, height: int) -> bytes:
    """A PNG of a few bytes whose header promises `width` × `height` pixels."""
    head = b"IHDR" + struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    body = b"IDAT" + zlib.compress(b"\0" * 64)
    chunks = (
        struct.pack(">I", len(part) - 4) + part + struct.pack(">I", zlib.crc32(part))
        for part in (head, body, b"IEND")
    )
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunks)


def opened(folder: Path) -> ImagePrompts:
    return checked(images_in_folder(folder))


def prompt(content: bytes) -> ImagePrompt:
    return ImagePrompt(name="cat.png", content=content, question="?")


def test_images_are_read_in_the_order_of_their_names_with_fixed_questions(tmp_path):
    folder = make_pictures(tmp_path / "photos", 6)
    (folder / ".hidden.png").write_bytes(b"")
    (folder / "notes.txt").write_text("no image")
    images = opened(folder)
    assert images.name == "photos"
    assert [each.name for each in images.prompts] == [f"{i:02}.png" for i in range(6)]
    assert images.prompts[0].question == images.prompts[4].question == "Describe this image."
    assert len({each.question for each in images.prompts}) == 4
    assert images.prompts[0].answer == "This image shows"
    assert all(each.answer for each in images.prompts)


@pytest.mark.parametrize("form", ["PNG", "JPEG", "WEBP"])
def test_every_format_opens_in_rgb(form):
    image = opened_image(prompt(picture(form=form)))
    assert (image.mode, image.size) == ("RGB", (64, 48))


def test_a_large_photo_is_shrunk_in_proportion():
    image = opened_image(prompt(picture(width=2000, height=1000)))
    assert image.width * image.height <= 512 * 512
    assert image.width / image.height == pytest.approx(2, rel=0.01)


def test_a_photo_is_turned_as_its_camera_was_held():
    from PIL import Image

    taken = Image.open(io.BytesIO(picture(form="JPEG")))
    exif = taken.getexif()
    exif[0x0112] = 6  # turned by 90 degrees
    stream = io.BytesIO()
    taken.save(stream, "JPEG", exif=exif)
    assert opened_image(prompt(stream.getvalue())).size == (48, 64)


def test_a_list_of_the_hub_gives_captions(tmp_path):
    folder = make_pictures(tmp_path / "photos")
    rows = [{"file_name": f"{i:02}.png", "text": f"Cat {i}. "} for i in range(4)]
    write_list(folder, rows)
    images = opened(folder)
    assert [each.answer for each in images.prompts] == [f"Cat {i}." for i in range(4)]
    assert {each.question for each in images.prompts} == {"Describe this image."}


def test_a_list_of_prompts_goes_before_the_metadata_and_asks_its_own_questions(tmp_path):
    folder = make_pictures(tmp_path / "photos")
    write_list(folder, [{"file_name": "00.png"}])
    rows = [{"file_name": f"{i:02}.png", "question": "How many?", "text": "2"} for i in range(4)]
    write_list(folder, rows, "prompts.jsonl")
    images = opened(folder)
    assert {(each.question, each.answer) for each in images.prompts} == {("How many?", "2")}


def test_of_many_images_some_are_taken_evenly(tmp_path):
    folder = make_pictures(tmp_path / "photos", 1)
    write_list(folder, [{"file_name": "00.png", "text": f"{i}"} for i in range(10 * MAX_IMAGES)])
    answers = [int(each.answer) for each in opened(folder).prompts]
    assert answers == list(range(0, 10 * MAX_IMAGES, 10))


def test_too_few_images_are_refused(tmp_path):
    with pytest.raises(ImagesError, match=r"'few' has 3 images .*at least 4"):
        opened(make_pictures(tmp_path / "few", 3))


def test_an_image_that_is_none_is_named(tmp_path):
    folder = make_pictures(tmp_path / "photos")
    (folder / "03.png").write_text("<svg></svg>")
    with pytest.raises(ImagesError, match=r"'03\.png' is no PNG, JPEG or WebP image"):
        opened(folder)


@given(st.integers(8, 400))
def test_a_file_that_ends_early_is_no_image(kept):
    content = picture()
    with pytest.raises(ImagesError, match="is no PNG"):
        opened_image(prompt(content[: min(kept, len(content) - 100)]))


def test_another_format_is_refused_whatever_its_name():
    with pytest.raises(ImagesError, match="is no PNG, JPEG or WebP"):
        opened_image(prompt(picture(form="TIFF")))


@pytest.mark.harden("child and runner")
@pytest.mark.parametrize("side", [9_000, 60_000])
def test_a_bomb_is_refused_before_it_is_unpacked(side, harden):
    with pytest.raises(ImagesError, match="more than 64 million pixels"):
        opened_image(prompt(png_that_claims(side, side)))
    harden("refused")


def test_a_file_that_is_too_large_is_refused_without_reading_it(tmp_path):
    folder = make_pictures(tmp_path / "photos")
    with (folder / "02.png").open("ab") as stream:
        stream.truncate(17 << 20)
    with pytest.raises(ImagesError, match=r"'02\.png' is larger than 16 MiB"):
        opened(folder)


@pytest.mark.parametrize("line", ["no json", "[1]", '{"text": "A cat."}', '{"file_name": 1}'])
def test_a_line_of_another_kind_is_named(tmp_path, line):
    folder = make_pictures(tmp_path / "photos")
    (folder / "metadata.jsonl").write_text('{"file_name": "00.png"}\n\n' + line)
    with pytest.raises(ImagesError, match=r"Line 3 of 'metadata\.jsonl'"):
        opened(folder)


def test_an_image_that_is_not_there_is_named(tmp_path):
    folder = make_pictures(tmp_path / "photos")
    write_list(folder, [{"file_name": "gone.png"}])
    with pytest.raises(ImagesError, match=r"'gone\.png' of the folder 'photos' is not there"):
        opened(folder)


def test_an_image_outside_of_the_folder_is_not_read(tmp_path):
    folder = make_pictures(tmp_path / "photos")
    (tmp_path / "private.png").write_bytes(picture())
    write_list(folder, [{"file_name": "../private.png"}])
    with pytest.raises(ImagesError, match="outside of the folder"):
        opened(folder)


@given(st.none() | st.text() | st.integers() | st.lists(st.text() | st.integers()))
def test_whatever_stands_beside_an_image_makes_a_question_and_an_answer(beside):
    made = prompt_of("cat.png", b"", 0, question=beside, answer=beside)
    assert made.question.strip()
    assert len(made.question) <= 2_000
    assert made.question.encode()
    assert made.answer.encode() is not None
