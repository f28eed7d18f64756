"""Questions about images, to calibrate and to evaluate on: the records, as data.

An image stays the file that it came as. The process that runs the model's processor decodes it.
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Self

__all__ = ["MAX_IMAGES", "MIN_IMAGES", "ImageFacts", "ImagePrompt", "ImagePrompts"]

MAX_IMAGES = 32
"""Of these the arrays for a model take some 200 MB, and the means settle with fewer."""
MIN_IMAGES = 4
"""Fewer say little on their mean, and nothing on its error."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ImagePrompt:
    """A question about an image, and perhaps the answer.

    Attributes:
        name: Name of the image's file, or the row of a dataset; for messages.
        content: The file: PNG, JPEG or WebP.
        question: The words of the user.
        answer: Text that the model continues; empty without one.
    """

    name: str
    content: bytes
    question: str
    answer: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class ImageFacts:
    """Facts about images for the card.

    Attributes:
        name: The folder's own name, or the name of the dataset.
        sha256: Of all images, questions and answers.
        num_images: Images.
    """

    name: str
    sha256: str
    num_images: int


@dataclass(frozen=True, slots=True, kw_only=True)
class ImagePrompts:
    """Questions about several images.

    Attributes:
        name: The folder's own name, or the name of the dataset.
        prompts: One for each image.
    """

    name: str
    prompts: tuple[ImagePrompt, ...]

    @property
    def facts(self) -> ImageFacts:
        """The facts for the card."""
        digest = hashlib.sha256()
        for each in self.prompts:
            for part in (each.content, each.question.encode(), each.answer.encode()):
                digest.update(len(part).to_bytes(8, "little") + part)
        return ImageFacts(name=self.name, sha256=digest.hexdigest(), num_images=len(self.prompts))

    def shared_with(self, other: Self) -> str | None:
        """Name of an image that both have; None if they have none in common."""
        known = {each.content for each in other.prompts}
        return next((each.name for each in self.prompts if each.content in known), None)

    def to_json(self) -> dict[str, Any]:
        """The prompts as JSON types, for another process."""
        return {
            "name": self.name,
            "prompts": [
                {
                    "name": each.name,
                    "content": base64.b64encode(each.content).decode(),
                    "question": each.question,
                    "answer": each.answer,
                }
                for each in self.prompts
            ],
        }

    @classmethod
    def from_json(cls, raw: Mapping[str, Any]) -> Self:
        """The prompts that `to_json` wrote.

        Raises:
            LookupError, TypeError, ValueError: It did not write them.
        """
        return cls(
            name=str(raw["name"]),
            prompts=tuple(
                ImagePrompt(
                    name=str(each["name"]),
                    content=base64.b64decode(each["content"], validate=True),
                    question=str(each["question"]),
                    answer=str(each["answer"]),
                )
                for each in raw["prompts"]
            ),
        )
