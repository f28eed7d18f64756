"""The metadata of a model card, which the Hub reads."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping

import yaml

from dynquant.report.facts import ModelFacts
from dynquant.report.gating import gate
from dynquant.report.licenses import on_the_hub
from dynquant.texts.markdown import clean

__all__ = ["LICENSE_KEYS", "REPO_ID", "front_matter"]

LICENSE_KEYS = ("license", "license_name", "license_link")
REPO_ID = re.compile(r"[\w\-.]+(/[\w\-.]+)?", re.ASCII)

_LINK = re.compile(r"https?://\S+|[\w\-./]+", re.ASCII)
"""A web address, or a file of the repo; `javascript:` is neither."""

_TAGS = ("mlx", "dynquant", "quantized")
_METRIC_DIGITS = 6


class _Verbatim(str):
    """A text that the metadata contain verbatim, on one line, between quotes."""

    __slots__ = ()


class _Dumper(yaml.SafeDumper):
    """Writes YAML in which no line starts with untrusted text."""


_Dumper.add_representer(
    _Verbatim,
    lambda dumper, text: dumper.represent_scalar("tag:yaml.org,2002:str", str(text), style='"'),
)


def front_matter(facts: ModelFacts) -> str:
    """The block between the `---` lines, in YAML.

    `base_model` is left out where the source is no repo, and so are figures that are not finite.
    """
    task = "image-text-to-text" if facts.sees else "text-generation"
    header: dict[str, object] = {"library_name": "mlx", "pipeline_tag": task}
    mixed = len(set(facts.plan.formats.values())) > 1
    header["tags"] = [*_TAGS, *(["mixed-precision"] if mixed else [])]
    if facts.source_is_repo and REPO_ID.fullmatch(facts.source):
        header["base_model"] = facts.source
        header["base_model_relation"] = "quantized"
    header |= _license(facts.license_fields)
    header |= {key: _verbatim(value) for key, value in gate(facts.gated_fields).items()}
    if results := _results(facts):
        header["model-index"] = [{"name": _plain(facts.name), "results": results}]
    dumped: str = yaml.dump(
        header, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=math.inf
    )
    # Angle brackets occur only between quotes, where YAML has an escape for them.
    return dumped.replace("<", r"\x3C").replace(">", r"\x3E")


def _license(fields: Mapping[str, str]) -> dict[str, object]:
    """The source's license as the Hub accepts it: ids of its list, else `other` and a name."""
    given = {key: _plain(fields.get(key, "")) for key in LICENSE_KEYS}
    ids, name = on_the_hub(given["license"])
    link = given["license_link"]
    found = {
        "license": ids[0] if len(ids) == 1 else ids,
        "license_name": given["license_name"] or name,
        "license_link": link if _LINK.fullmatch(link) else "",
    }
    return {key: value for key, value in found.items() if value}


def _verbatim(value: object) -> object:
    if isinstance(value, str):
        return _Verbatim(value)
    if isinstance(value, list):
        return [_verbatim(each) for each in value]
    if isinstance(value, dict):
        return {_Verbatim(key): _verbatim(each) for key, each in value.items()}
    return value


def _results(facts: ModelFacts) -> list[dict[str, object]]:
    """Entries of `model-index`, which the Hub shows as evaluation results."""
    quality, text = facts.rows[-1].quality, facts.evaluation
    metrics = [
        {"type": kind, "name": name, "value": float(f"{value:.{_METRIC_DIGITS}g}")}
        for kind, name, value in (
            ("perplexity", "Perplexity", quality.perplexity),
            ("kl_divergence", "Mean KL(original ‖ quantized), nats", quality.mean_kl_nats),
        )
        if math.isfinite(value)
    ]
    if not metrics:
        return []
    # The Hub requires the id of a data set as the type; a file's name is brought into that form.
    repo, *parts = _plain(text.name).split(":")
    is_repo = "/" in repo and REPO_ID.fullmatch(repo) is not None
    slug = re.sub(r"[^A-Za-z0-9_.]+", "-", text.name).strip("-.")
    dataset: dict[str, object] = {
        "type": repo if is_repo else slug or "text",
        "name": _plain(text.name) or "text",
    }
    if is_repo:
        dataset |= {
            key: part for key, part in zip(("config", "split"), parts, strict=False) if part
        }
    task = {"type": "text-generation", "name": "Text Generation"}
    return [{"task": task, "dataset": dataset, "metrics": metrics}]


def _plain(text: str) -> str:
    """`text` without angle brackets, for readers that treat the metadata as part of the page."""
    return clean(re.sub("[<>]", " ", text))
