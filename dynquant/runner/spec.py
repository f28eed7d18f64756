"""The inputs of a job's child process: the spec and the texts, as files in the job's folder."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, TextIO

from pydantic import TypeAdapter

from dynquant.model.source import ModelSource
from dynquant.quant.options import RecipeOptions
from dynquant.quant.recipe import Recipe
from dynquant.texts.documents import Chat, Document, Text
from dynquant.texts.image_files import checked
from dynquant.texts.images import ImagePrompts

__all__ = ["JobSpec", "Limits", "open_saved_images", "open_saved_text", "save_text"]


@dataclass(frozen=True, kw_only=True)
class Limits:
    """Time limits of a child, so that no model blocks a runner.

    Attributes:
        reading_cpu_secs: CPU time for opening the model, and again for cutting the texts into
            tokens; the slowest known tokenizers take minutes.
        silent_secs: Time without progress; a block of a very large model takes minutes.
    """

    reading_cpu_secs: int = 1800
    silent_secs: float = 6 * 3600.0


@dataclass(frozen=True, kw_only=True)
class JobSpec:
    """One job as its child process sees it, without the requester and without tokens.

    Attributes:
        source: The downloaded model; or only its headers, for the step `resolve`.
        targets_bpw: Stored bits per weight, one model each.
        options: How to quantize; its texts are the names of those in `calibration.jsonl` and
            `evaluation.jsonl`, its images of those in `calibration_images.json` and
            `evaluation_images.json`.
        max_reading_cpu_secs: CPU time for opening the model, and again for reading both texts.
    """

    source: ModelSource
    targets_bpw: tuple[float, ...]
    options: RecipeOptions
    max_reading_cpu_secs: int

    @property
    def recipe(self) -> Recipe:
        """How to quantize."""
        return self.options.recipe(self.targets_bpw)

    def to_json(self) -> str:
        """The spec as text."""
        return json.dumps(_SPEC.dump_python(self, mode="json"))

    @staticmethod
    def from_json(text: str) -> JobSpec:
        """The spec that `to_json` wrote."""
        return _SPEC.validate_python(json.loads(text))


_SPEC = TypeAdapter(JobSpec)


def save_text(text: Text, stream: TextIO, *, max_chars: int) -> None:
    """Write the beginning of a text, at most about `max_chars`, for a child without network."""
    num_chars = 0
    for document in text.documents():
        if isinstance(document, str):
            line = json.dumps(document[: max_chars - num_chars], ensure_ascii=False)
        else:
            line = json.dumps(asdict(document), ensure_ascii=False)
        stream.write(line + "\n")
        num_chars += len(line)
        if num_chars >= max_chars:
            break


def open_saved_text(path: Path, *, name: str) -> Text:
    """The text that `save_text` wrote, under its original name."""

    def documents() -> Iterator[Document]:
        with path.open(encoding="utf-8") as stream:
            for line in stream:
                saved = json.loads(line)
                yield saved if isinstance(saved, str) else _chat(saved)

    return Text(name=name, documents=documents)


def open_saved_images(path: Path) -> ImagePrompts:
    """The images that a runner saved for its child, each of which opens.

    Raises:
        ImagesError: One does not open.
    """
    return checked(ImagePrompts.from_json(json.loads(path.read_text(encoding="utf-8"))))


def _chat(saved: Mapping[str, Any] | list[Any]) -> Chat:
    if isinstance(saved, list):  # of an earlier version, for a job that has begun
        return Chat(messages=tuple(saved))
    return Chat(
        messages=tuple(saved["messages"]),
        tools=tuple(saved["tools"]),
        template_kwargs=saved["template_kwargs"],
    )
