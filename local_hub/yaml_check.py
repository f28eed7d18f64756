"""The check of a card's YAML that a client asks for before it uploads a README.md."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

from fastapi import APIRouter
from pydantic import BaseModel

from local_hub.answers import Answer, json_answer
from local_hub.calls import Here
from local_hub.cards import FrontMatterError, read_front_matter, split_front_matter
from local_hub.licenses import LICENSES

# An opening line without a closing one would be shown as text, not read.
OPENED = re.compile(r"\A\s*---\s*$", re.MULTILINE)
REPO_ID = re.compile(r"[\w.-]{1,96}/[\w.-]{1,96}|[\w.-]{1,96}")
RELATIONS = ("adapter", "finetune", "merge", "quantized")

router = APIRouter()


class _Card(BaseModel):
    content: str
    repoType: str | None = None  # noqa: N815


@router.post("/api/validate-yaml")
async def post_validate_yaml(_: Here, body: _Card) -> Answer:
    errors = list(find_errors(body.content))
    warnings = []
    if not split_front_matter(body.content)[0].strip() and not errors:
        warnings = [{"message": "empty or missing yaml metadata in repo card"}]
    told = {"errors": [{"message": error} for error in errors], "warnings": warnings}
    return json_answer(told, 400 if errors else 200)


def find_errors(content: str) -> Iterator[str]:
    """Errors in the YAML of a card, in sentences."""
    block, _ = split_front_matter(content)
    if not block and OPENED.match(content):
        yield "The YAML of the card has no closing line of three dashes."
        return
    try:
        card = read_front_matter(content)
    except FrontMatterError as error:
        yield str(error)
        return
    yield from _field_errors(card)
    yield from _index_errors(card.get("model-index"))


def _field_errors(card: Mapping[str, Any]) -> Iterator[str]:
    for name in ("library_name", "pipeline_tag", "license_name", "license_link"):
        if not isinstance(card.get(name, ""), str):
            yield f'"{name}" must be a string'
    for name in ("tags", "license", "language", "datasets", "base_model"):
        value = card.get(name, [])
        values = value if isinstance(value, list) else [value]
        if not all(isinstance(item, str) for item in values):
            yield f'"{name}" must be a string or an array of strings'
        elif name == "base_model":
            for item in values:
                if not REPO_ID.fullmatch(item):
                    yield f'"base_model" with value "{item}" is not valid. Use a model id from https://hf.co/models.'
        elif name == "license" and not {*values} <= {*LICENSES}:
            yield f'"license" must be one of [{", ".join(LICENSES)}, array]'
    if card.get("base_model_relation", RELATIONS[0]) not in RELATIONS:
        yield f'"base_model_relation" must be one of [{", ".join(RELATIONS)}]'


def _index_errors(index: Any) -> Iterator[str]:
    """Whether results can be shown: the Hub's index needs a name and types for each."""
    if index is None:
        return
    if not isinstance(index, list):
        yield '"model-index" must be an array'
        return
    for i, model in enumerate(index):
        yield from _missing(model, f"model-index[{i}]", "name")
        results = model.get("results") if isinstance(model, dict) else None
        if not isinstance(results, list):
            yield f'"model-index[{i}].results" must be an array'
            continue
        for j, result in enumerate(results):
            place = f"model-index[{i}].results[{j}]"
            parts = result if isinstance(result, dict) else {}
            yield from _missing(parts.get("task"), f"{place}.task", "type")
            yield from _missing(parts.get("dataset"), f"{place}.dataset", "name", "type")
            metrics = parts.get("metrics")
            if not isinstance(metrics, list):
                yield f'"{place}.metrics" must be an array'
                continue
            for k, metric in enumerate(metrics):
                yield from _missing(metric, f"{place}.metrics[{k}]", "type", "value")


def _missing(record: Any, place: str, *names: str) -> Iterator[str]:
    for name in names:
        if not isinstance(record, dict) or record.get(name) is None:
            yield f'"{place}.{name}" is required'
