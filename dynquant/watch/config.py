"""The watcher's rules: `watch.yaml` of an operator, and its JSON schema for editors."""

from __future__ import annotations

import json
from dataclasses import dataclass

from dynquant.errors import InvalidOptionError
from dynquant.model.candidate import SOURCES
from dynquant.model.naming import quantized_name, repo_ids
from dynquant.quant.recipe import Recipe
from dynquant.watch.yaml_fields import (
    FLAG,
    MEMORY,
    PARAMETERS,
    Kind,
    Place,
    compose,
    count,
    items,
    key,
    list_of,
    number,
    object_schema,
    read_fields,
    text,
)

__all__ = ["Rule", "WatchConfig", "parse_watch_config", "schema_text"]

_MAX_COUNT = 10**9
_MAX_HOURS = 24.0 * 3650
_MAX_RULES = 100
_WRITES_TEXT = (
    *("text-generation", "image-text-to-text", "audio-text-to-text", "video-text-to-text"),
    "any-to-any",
)
"""The Hub's tags of models that write text, of whatever they read."""

_NAME = text(pattern=r"[\w.-]+", example="Qwen")
_OWNER_OR_REPO = text(pattern=r"[\w.-]+(?:/[\w.-]+)?", example="somebody or somebody/model")
_TAG = text(example="conversational")
_LICENSE = text(pattern=r"[\w.+-]+", example="apache-2.0")
_DESTINATION = text(pattern=r"[\w.{}-]+(?:/[\w.{}-]+)?", example="you or you/{model}-{bpw}bpw-MLX")


@dataclass(frozen=True, slots=True, kw_only=True)
class Rule:
    """Models to take, and the quants to make. Empty criteria take everything."""

    name: str = key(_NAME, "The rule's name in reports.")
    authors: tuple[str, ...] = key(
        list_of(_NAME), "Users or organizations; all if absent.", default=()
    )
    search: str = key(text(), "A part of the repo id; upper and lower case are equal.", default="")
    tags: tuple[str, ...] = key(
        list_of(_TAG), "Tags on the Hub that the model must have, all of these.", default=()
    )
    without_tags: tuple[str, ...] = key(
        list_of(_TAG), "Tags that the model must not have.", default=()
    )
    pipeline_tags: tuple[str, ...] = key(
        list_of(text(pattern=r"[\w-]+", example="text-generation")),
        "The model's pipeline tag on the Hub, one of these; [] takes every tag.",
        default=_WRITES_TEXT,
    )
    architectures: tuple[str, ...] = key(
        list_of(text(pattern=r"[\w.-]+", example="Qwen3ForCausalLM or qwen3")),
        "Class or model type in the config, one of these.",
        default=(),
    )
    sources: tuple[str, ...] = key(
        list_of(text(pattern="|".join(SOURCES), example=" or ".join(SOURCES)), least=1),
        "How the weights of the original are stored: in 16 bits or more, or in float8, MXFP4, "
        "NVFP4 or packed integers by its own publisher.",
        default=SOURCES,
    )
    min_parameters: int = key(PARAMETERS, "The smallest model, like 1B.", default=0)
    max_parameters: int | None = key(PARAMETERS, "The largest model, like 80B.", default=None)
    licenses: tuple[str, ...] = key(
        list_of(_LICENSE), "Licenses that are taken; every known license if absent.", default=()
    )
    licenses_refused: tuple[str, ...] = key(
        list_of(_LICENSE), "Licenses that are not taken.", default=()
    )
    unknown_license: bool = key(
        FLAG, "Whether to take models without a license, or with 'other'.", default=False
    )
    min_likes: int = key(count(most=_MAX_COUNT), "Likes that the model must have.", default=0)
    min_downloads: int = key(
        count(most=_MAX_COUNT), "Downloads that the model must have.", default=0
    )
    min_trending: float = key(
        number(most=_MAX_COUNT), "Trending score that the model must have.", default=0
    )
    min_age_hours: float = key(
        number(most=_MAX_HOURS), "Least age of the model, in hours.", default=0
    )
    max_age_hours: float | None = key(
        number(above=0, most=_MAX_HOURS), "Greatest age of the model, in hours.", default=None
    )
    gated: bool = key(FLAG, "Whether to take gated models.", default=False)
    bpw: tuple[float, ...] = key(
        list_of(number(above=0, most=16), least=1, most=32),
        "Bits per weight, each with its own repo; or give 'memory'.",
        default=(),
    )
    memory_bytes: tuple[int, ...] = key(
        list_of(MEMORY, least=1, most=32),
        "Memory sizes to serve, like 16GB: each gets the bits per weight that fit.",
        default=(),
        name="memory",
    )
    destination: str = key(
        _DESTINATION, "The namespace to publish to, or a repo id with {model} and {bpw} in it."
    )
    private: bool = key(FLAG, "Whether new repos are private.", default=False)
    priority: int = key(
        count(most=1000),
        "Within a sweep the model with the lower number is queued first.",
        default=10,
    )
    max_per_sweep: int = key(
        count(least=1, most=500), "Models that one sweep queues; the others wait.", default=5
    )
    gb_per_day: float | None = key(
        number(above=0, most=_MAX_COUNT),
        "Gigabytes of finished repos that may be queued within 24 hours.",
        default=None,
    )
    hours_per_day: float | None = key(
        number(above=0, most=10_000),
        "Hours of work that may be queued within 24 hours, by 'hours_per_billion'.",
        default=None,
    )
    mention: bool = key(
        FLAG, "Whether to tell each author, in one discussion at the model, once.", default=False
    )


def _read_rule(place: Place) -> tuple[Place, Rule]:
    values = read_fields(place, Rule, what="a rule")
    if ("bpw" in values) == ("memory_bytes" in values):
        raise place.error("a rule has either 'bpw' or 'memory', and not both. Give one of them.")
    rule = Rule(**values)
    if (problem := _contradiction(rule)) is not None:
        raise place.error(problem)
    return place, rule


def _read_rules(place: Place) -> tuple[Rule, ...]:
    found = list(map(_read_rule, items(place)))
    if not 1 <= len(found) <= _MAX_RULES:
        raise place.error(f"'rules' must have 1 to {_MAX_RULES} rules.")
    names: set[str] = set()
    for where, rule in found:
        if rule.name in names:
            raise where.error(f"there are two rules named '{rule.name}'. Rename one of them.")
        names.add(rule.name)
    return tuple(rule for _, rule in found)


_RULES = Kind(
    _read_rules,
    {
        "type": "array",
        "items": {
            **object_schema(Rule),
            "oneOf": [{"required": ["bpw"]}, {"required": ["memory"]}],
        },
        "minItems": 1,
        "maxItems": _MAX_RULES,
    },
)


@dataclass(frozen=True, slots=True, kw_only=True)
class WatchConfig:
    """The content of an operator's file."""

    look_back_hours: float = key(
        number(above=0, most=24 * 30), "Hours that the first sweep looks back.", default=24
    )
    min_parameters: int = key(
        PARAMETERS, "The smallest model that is not a toy, for all rules.", default=100_000_000
    )
    opt_out: tuple[str, ...] = key(
        list_of(_OWNER_OR_REPO, most=10_000),
        "Users, organizations and repos that have opted out.",
        default=(),
    )
    hours_per_billion: float = key(
        number(above=0, most=1000),
        "Hours of work per billion parameters on your runners, to estimate 'hours_per_day' by.",
        default=0.1,
    )
    rules: tuple[Rule, ...] = key(
        _RULES, "Models to take, and the quants to make; the first rule that matches wins."
    )

    def rule(self, name: str) -> Rule:
        """The rule of this name."""
        return next(rule for rule in self.rules if rule.name == name)


def parse_watch_config(content: str, *, name: str) -> WatchConfig:
    """The rules that a file holds.

    Args:
        content: YAML.
        name: The file's name in error messages.

    Raises:
        InvalidOptionError: A value or a key is wrong; names line and column.
    """
    return WatchConfig(**read_fields(compose(content, name=name), WatchConfig, what="the file"))


def schema_text() -> str:
    """The JSON schema of the file, as it is kept in `space_config/watch.schema.json`."""
    schema = {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "Rules of the dynquant watcher",
        **object_schema(WatchConfig),
    }
    return json.dumps(schema, indent=2) + "\n"


def _contradiction(rule: Rule) -> str | None:
    """Why no model could satisfy the rule, or no job could do it; None if the rule is sound."""
    if rule.max_parameters is not None and rule.min_parameters > rule.max_parameters:
        return "'min_parameters' is above 'max_parameters', so no model fits. Swap them."
    if rule.max_age_hours is not None and rule.min_age_hours >= rule.max_age_hours:
        return "'min_age_hours' is not below 'max_age_hours', so no model fits. Swap them."
    if both := sorted(set(rule.licenses) & set(rule.licenses_refused)):
        return f"the license '{both[0]}' is both taken and refused. Leave it in one of the lists."
    if both := sorted(set(rule.tags) & set(rule.without_tags)):
        return f"the tag '{both[0]}' is both required and refused. Leave it in one of the lists."
    if rule.mention and rule.private:
        return "'mention' tells people of repos that 'private' hides. Leave one of them out."
    model = f"{(*rule.authors, 'somebody')[0]}/model"
    targets = rule.bpw or tuple(map(float, range(1, len(rule.memory_bytes) + 1)))
    try:
        Recipe(targets_bpw=targets)
        repo_ids(rule.destination, {quantized_name(model, each): (model, each) for each in targets})
    except InvalidOptionError as error:
        return str(error)
    return None
