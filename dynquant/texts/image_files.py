"""Images from files: a folder with questions and answers beside them, and the check of a file.

The folder may hold a `prompts.jsonl`, or a `metadata.jsonl` as the Hub's ImageFolder has it: an
object per line with `file_name`, and perhaps `question` and `text`, the answer. Without such a file
fixed questions are asked about every image, each with the beginning of a reply.
"""

from __future__ import annotations

import io
import json
import math
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypeVar

from dynquant.errors import ImagesError
from dynquant.texts.documents import well_formed
from dynquant.texts.images import MAX_IMAGES, MIN_IMAGES, ImagePrompt, ImagePrompts

__all__ = ["checked", "images_in_folder", "opened_image", "prompt_of", "too_few"]

T = TypeVar("T")

_SUFFIXES = (".png", ".jpg", ".jpeg", ".webp")
_FORMATS = ("PNG", "JPEG", "WEBP")
_LISTS = ("prompts.jsonl", "metadata.jsonl")
_QUESTIONS = (
    ("Describe this image.", "This image shows"),
    ("What is in this image?", "In this image there is"),
    ("What can be read in this image?", "The text in this image is"),
    ("Which colors and shapes does this image have?", "The colors in this image are"),
)
"""Each with the beginning of a reply, behind which a model has to say something of the image."""
_MAX_FILE_BYTES = 16 << 20
_MAX_LIST_BYTES = 64 << 20
_MAX_TEXT_CHARS = 2_000
_MAX_PIXELS = 1 << 26
"""Of a file; the cameras of phones take up to 50 million."""
_MAX_SHOWN_PIXELS = 1 << 18
"""That the model sees: 512 × 512. A photo of full size would take tens of thousands of tokens."""


def images_in_folder(folder: Path) -> ImagePrompts:
    """The images of `folder`, at most `MAX_IMAGES` of them, evenly spaced in their order.

    They are not decoded yet.

    Raises:
        ImagesError: One cannot be read, or the list beside them is of another form.
    """
    name = well_formed(folder.resolve().name)
    try:
        listed = next((folder / each for each in _LISTS if (folder / each).is_file()), None)
        if listed is None:
            files = (each for each in folder.iterdir() if _is_image(each) and each.is_file())
            rows = [{"file_name": each.name} for each in sorted(files)]
        else:
            rows = _rows(listed)
    except OSError as error:
        raise ImagesError(f"The folder '{name}' cannot be read. Pass another one.") from error
    prompts = (_prompt(folder, row, index) for index, row in enumerate(_spread(rows)))
    return ImagePrompts(name=name, prompts=tuple(prompts))


def checked(images: ImagePrompts) -> ImagePrompts:
    """`images`, each of which opens.

    Raises:
        ImagesError: There are too few, or one does not open.
    """
    if len(images.prompts) < MIN_IMAGES:
        raise too_few(images.name, len(images.prompts))
    for each in images.prompts:
        opened_image(each)
    return images


def too_few(name: str, num_images: int) -> ImagesError:
    """The error for a folder or dataset with fewer than `MIN_IMAGES`."""
    return ImagesError(
        f"'{name}' has {num_images} images (png, jpg or webp), and at least {MIN_IMAGES} are "
        "needed. Pass a folder or dataset with more."
    )


def prompt_of(
    name: str, content: bytes, index: int, *, question: object = None, answer: object = None
) -> ImagePrompt:
    """A prompt of an image and the texts that stand beside it.

    Args:
        name: Of the image.
        content: The image's file.
        index: Number of the image; chooses among the fixed questions.
        question: The question if it is a text, else a fixed one is asked.
        answer: The answer if it is a text, or the first of several.

    Raises:
        ImagesError: The file is too large.
    """
    _require_small(name, len(content))
    if isinstance(answer, list):
        answer = next(iter(answer), None)
    answer = answer.strip() if isinstance(answer, str) else ""
    asked = question.strip() if isinstance(question, str) else ""
    if not asked and answer:
        asked = _QUESTIONS[0][0]
    elif not asked:
        asked, answer = _QUESTIONS[index % len(_QUESTIONS)]
    return ImagePrompt(
        name=well_formed(name),
        content=content,
        question=well_formed(asked)[:_MAX_TEXT_CHARS],
        answer=well_formed(answer)[:_MAX_TEXT_CHARS],
    )


def opened_image(prompt: ImagePrompt) -> Any:
    """The image in RGB, upright, and shrunk to what a model is shown of it.

    Raises:
        ImagesError: It is none, is damaged, too large, or Pillow is not installed.
    """
    try:
        from PIL import Image  # noqa: PLC0415  of mlx-vlm
    except ImportError as error:
        raise ImagesError(
            "Pillow, which reads images, is not installed. Install dynquant with its extra, "
            "dynquant[vlm]."
        ) from error
    try:
        image = _decoded(prompt.content)
    except Exception as error:  # Pillow's readers of formats raise errors of many kinds
        raise ImagesError(
            f"'{prompt.name}' is no PNG, JPEG or WebP image that can be read. Remove it, or pass "
            "other images."
        ) from error
    if image is None:
        raise ImagesError(
            f"'{prompt.name}' has more than {_MAX_PIXELS >> 20} million pixels once it is "
            "unpacked. Pass a smaller image."
        )
    share = math.sqrt(_MAX_SHOWN_PIXELS / (image.width * image.height))
    if share >= 1:
        return image
    sides = (max(1, int(image.width * share)), max(1, int(image.height * share)))
    return image.resize(sides, Image.Resampling.BICUBIC)


def _decoded(content: bytes) -> Any:
    """The image in RGB and upright; None, and nothing is unpacked, if it has too many pixels."""
    from PIL import Image, ImageOps  # noqa: PLC0415

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # on what is refused below, or read all the same
        try:
            image = Image.open(io.BytesIO(content), formats=_FORMATS)
        except Image.DecompressionBombError:
            return None
        if image.width * image.height > _MAX_PIXELS:
            return None
        return ImageOps.exif_transpose(image).convert("RGB")


def _require_small(name: str, num_bytes: int) -> None:
    if num_bytes > _MAX_FILE_BYTES:
        raise ImagesError(
            f"'{name}' is larger than {_MAX_FILE_BYTES >> 20} MiB. Pass a smaller image."
        )


def _prompt(folder: Path, row: dict[str, Any], index: int) -> ImagePrompt:
    name = row["file_name"]
    path = folder / name
    try:
        if not path.resolve().is_relative_to(folder.resolve()):
            raise ImagesError(f"'{name}' lies outside of the folder '{folder.name}'.")
        _require_small(name, path.stat().st_size)
        content = path.read_bytes()
    except (OSError, ValueError) as error:
        raise ImagesError(
            f"The image '{name}' of the folder '{folder.name}' is not there or cannot be read."
        ) from error
    return prompt_of(name, content, index, question=row.get("question"), answer=row.get("text"))


def _rows(listed: Path) -> list[dict[str, Any]]:
    """The objects of a list beside the images."""
    with listed.open("rb") as stream:
        content = stream.read(_MAX_LIST_BYTES + 1)
    if len(content) > _MAX_LIST_BYTES:
        raise ImagesError(f"'{listed.name}' is larger than {_MAX_LIST_BYTES >> 20} MiB.")
    rows = []
    for number, line in enumerate(content.splitlines(), 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except (ValueError, RecursionError):
            row = None
        if not isinstance(row, dict) or not isinstance(row.get("file_name"), str):
            raise ImagesError(
                f"Line {number} of '{listed.name}' is not a JSON object such as "
                '{"file_name": "cat.jpg", "text": "A cat."}.'
            )
        rows.append(row)
    return rows


def _is_image(path: Path) -> bool:
    return path.suffix.lower() in _SUFFIXES and not path.name.startswith(".")


def _spread(rows: Sequence[T]) -> list[T]:
    """Up to `MAX_IMAGES` of `rows`, evenly spaced."""
    kept = min(MAX_IMAGES, len(rows))
    return [rows[index * len(rows) // kept] for index in range(kept)]
