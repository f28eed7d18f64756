"""What a job's child process is told, as a file in the job's folder."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, TextIO

from dynquant.model.source import ModelSource
from dynquant.quant.options import RecipeOptions
from dynquant.quant.recipe import Recipe
from dynquant.texts.documents import Chat, Document, Text

__all__ = ["JobSpec", "Limits", "open_saved_text", "save_text"]


@dataclass(frozen=True, kw_only=True)
class Limits:
    """How long a child may take, so that no model keeps a runner for itself.

    Attributes:
        reading_cpu_secs: CPU time for opening the model, and again for cutting the texts into
            tokens; the slowest tokenizers that we know take minutes.
        silent_secs: Time without any progress; a block of a very large model takes minutes.
    """

    reading_cpu_secs: int = 1800
    silent_secs: float = 6 * 3600.0


@dataclass(frozen=True, kw_only=True)
class JobSpec:
    """One job as its child process sees it: nothing of the requester, and no token.

    Attributes:
        source: The model, downloaded; or its headers alone, to resolve.
        targets_bpw: Stored bits per weight, one model each.
        options: How to quantize; its texts are the names of those in `calibration.jsonl` and
            `evaluation.jsonl`.
        max_reading_cpu_secs: CPU time that reading both may take, and so may opening the model.
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
        return json.dumps(
            {
                "source": asdict(self.source) | {"folder": str(self.source.folder)},
                "targets_bpw": self.targets_bpw,
                "options": self.options.to_json(),
                "max_reading_cpu_secs": self.max_reading_cpu_secs,
            }
        )

    @classmethod
    def from_json(cls, text: str) -> JobSpec:
        """The spec in `text`, which `to_json` wrote."""
        raw = json.loads(text)
        return cls(
            source=ModelSource(**raw["source"] | {"folder": Path(raw["source"]["folder"])}),
            targets_bpw=tuple(raw["targets_bpw"]),
            options=RecipeOptions.model_validate(raw["options"]),
            max_reading_cpu_secs=raw["max_reading_cpu_secs"],
        )


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
    """What `save_text` wrote, under the name that it had."""

    def documents() -> Iterator[Document]:
        with path.open(encoding="utf-8") as stream:
            for line in stream:
                saved = json.loads(line)
                yield saved if isinstance(saved, str) else _chat(saved)

    return Text(name=name, documents=documents)


def _chat(saved: Mapping[str, Any] | list[Any]) -> Chat:
    if isinstance(saved, list):  # by an earlier version, for a job that is under way
        return Chat(messages=tuple(saved))
    return Chat(
        messages=tuple(saved["messages"]),
        tools=tuple(saved["tools"]),
        template_kwargs=saved["template_kwargs"],
    )
