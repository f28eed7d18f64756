"""The texts that dynquant takes by default, under their names and made of Python's own help."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pydoc_data import topics

import pyarrow as pa
import pyarrow.parquet as pq

from dynquant.texts.defaults import DEFAULT_CALIBRATION, DEFAULT_EVALUATION
from local_hub.hub import LocalHub

__all__ = ["add_default_texts"]


def add_default_texts(hub: LocalHub, *, num_documents: int | None = None) -> None:
    """Two datasets that share no paragraph: one to calibrate on, one held out.

    Args:
        hub: Where they are put.
        num_documents: In each, of some 4,000 characters; None for all that there are.
    """
    halves = [half[:num_documents] for half in _halves()]
    calibration, _, _, _ = DEFAULT_CALIBRATION.split(":")
    chats = [
        [
            {"role": "user", "content": "What does Python's help say?"},
            {"role": "assistant", "content": each},
        ]
        for each in halves[0]
    ]
    files = {"data/train-00000-of-00001.parquet": _parquet("messages", chats)}
    hub.add(calibration, files, kind="dataset")
    evaluation, config, split, column = DEFAULT_EVALUATION.split(":")
    name = f"{config}/{split}-00000-of-00001.parquet"
    hub.add(evaluation, {name: _parquet(column, halves[1])}, kind="dataset")


def _halves() -> tuple[list[str], list[str]]:
    """Two texts that share no paragraph."""
    pages = "\n\n".join(text for _, text in sorted(topics.topics.items()))
    paragraphs = list(dict.fromkeys(pages.split("\n\n")))
    documents = ["\n\n".join(paragraphs[i : i + 20]) for i in range(0, len(paragraphs), 20)]
    return documents[::2], documents[1::2]


def _parquet(column: str, values: Sequence[object]) -> bytes:
    stream = io.BytesIO()
    pq.write_table(pa.table({column: values}), stream)
    return stream.getvalue()
