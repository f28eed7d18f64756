"""The watcher's rules as an operator writes them: `watch.yaml`, and its JSON schema for editors."""

from __future__ import annotations

import json
from dataclasses import fields
from typing import Any

from dynquant.errors import InvalidOptionError
from dynquant.model.naming import quantized_name, repo_ids
from dynquant.quant.recipe import Recipe
from dynquant.watch.rules import Rule, WatchConfig
from dynquant.watch.yaml_fields import (
    FLAG,
    MEMORY,
    PARAMETERS,
    Field,
    Kind,
    Place,
    compose,
    count,
    items,
    list_of,
    number,
    object_schema,
    read_fields,
    text,
)

__all__ = ["parse_watch_config", "schema_text"]

_MAX_COUNT = 10**9
_MAX_HOURS = 24.0 * 3650
_MAX_RULES = 100

_NAME = text(pattern=r"[\w.-]+", example="Qwen")
_OWNER_OR_REPO = text(pattern=r"[\w.-]+(?:/[\w.-]+)?", example="somebody or somebody/model")
_TAG = text(example="conversational")
_LICENSE = text(pattern=r"[\w.+-]+", example="apache-2.0")
_DESTINATION = text(pattern=r"[\w.{}-]+(?:/[\w.{}-]+)?", example="you or you/{model}-{bpw}bpw-MLX")

_RULE_DEFAULTS = {each.name: each.default for each in fields(Rule)}
_CONFIG_DEFAULTS = {each.name: each.default for each in fields(WatchConfig)}


def _rule_field(name: str, kind: Kind[Any], explanation: str) -> Field:
    default = _RULE_DEFAULTS[name]
    shown = list(default) if isinstance(default, tuple) else default
    return Field(kind, explanation, default=shown or None)


_RULE_FIELDS = {
    "name": Field(_NAME, "What reports call the rule.", is_required=True),
    "authors": _rule_field("authors", list_of(_NAME), "Users or organizations; all if absent."),
    "search": _rule_field("search", text(), "Part of the repo id, in any case."),
    "tags": _rule_field("tags", list_of(_TAG), "Tags of the Hub that all must be there."),
    "without_tags": _rule_field("without_tags", list_of(_TAG), "Tags that must not be there."),
    "pipeline_tags": _rule_field(
        "pipeline_tags",
        list_of(text(pattern=r"[\w-]+", example="text-generation")),
        "What the Hub says the model is for, one of these; [] takes everything.",
    ),
    "architectures": _rule_field(
        "architectures",
        list_of(text(pattern=r"[\w.-]+", example="Qwen3ForCausalLM or qwen3")),
        "Classes or model types of the config, one of these.",
    ),
    "min_parameters": _rule_field("min_parameters", PARAMETERS, "The smallest model, like 1B."),
    "max_parameters": _rule_field("max_parameters", PARAMETERS, "The largest model, like 80B."),
    "licenses": _rule_field(
        "licenses", list_of(_LICENSE), "Licenses that are taken; any known one if absent."
    ),
    "licenses_refused": _rule_field(
        "licenses_refused", list_of(_LICENSE), "Licenses that are not taken."
    ),
    "unknown_license": _rule_field(
        "unknown_license", FLAG, "Whether to take models without a license, or with 'other'."
    ),
    "min_likes": _rule_field("min_likes", count(most=_MAX_COUNT), "Likes that it must have."),
    "min_downloads": _rule_field(
        "min_downloads", count(most=_MAX_COUNT), "Downloads that it must have."
    ),
    "min_trending": _rule_field(
        "min_trending", number(most=_MAX_COUNT), "Trending score that it must have."
    ),
    "min_age_hours": _rule_field(
        "min_age_hours", number(most=_MAX_HOURS), "Hours since it was created, at least."
    ),
    "max_age_hours": _rule_field(
        "max_age_hours", number(above=0, most=_MAX_HOURS), "Hours since it was created, at most."
    ),
    "gated": _rule_field("gated", FLAG, "Whether to take gated models."),
    "bpw": _rule_field(
        "bpw",
        list_of(number(above=0, most=16), least=1, most=32),
        "Bits per weight, one repo each; or give 'memory'.",
    ),
    "memory": Field(
        list_of(MEMORY, least=1, most=32),
        "Memory sizes to serve, like 16GB: each gets the bits per weight that fit.",
    ),
    "destination": Field(
        _DESTINATION,
        "The namespace to publish to, or a repo id with {model} and {bpw} in it.",
        is_required=True,
    ),
    "private": _rule_field("private", FLAG, "Whether new repos are private."),
    "priority": _rule_field("priority", count(most=1000), "The lower is queued first."),
    "max_per_sweep": _rule_field(
        "max_per_sweep", count(least=1, most=500), "Models that one sweep queues; others wait."
    ),
    "gb_per_day": _rule_field(
        "gb_per_day",
        number(above=0, most=_MAX_COUNT),
        "Gigabytes to publish that are queued within 24 hours.",
    ),
    "hours_per_day": _rule_field(
        "hours_per_day",
        number(above=0, most=10_000),
        "Hours of work that are queued within 24 hours, by 'hours_per_billion'.",
    ),
    "mention": _rule_field(
        "mention", FLAG, "Whether to tell each author, in one discussion at the model, once."
    ),
}


def _read_rule(place: Place) -> tuple[Place, Rule]:
    values = read_fields(place, _RULE_FIELDS, what="a rule")
    if ("bpw" in values) == ("memory" in values):
        raise place.error("a rule has either 'bpw' or 'memory', and not both. Give one of them.")
    values["memory_bytes"] = values.pop("memory", ())
    rule = Rule(**values)
    if (problem := _contradiction(rule)) is not None:
        raise place.error(problem)
    return place, rule


_RULE: Kind[tuple[Place, Rule]] = Kind(
    _read_rule,
    {
        **object_schema(_RULE_FIELDS),
        "oneOf": [{"required": ["bpw"]}, {"required": ["memory"]}],
    },
)


def _read_rules(place: Place) -> tuple[Rule, ...]:
    found = [_RULE.read(each) for each in items(place)]
    if not 1 <= len(found) <= _MAX_RULES:
        raise place.error(f"'rules' must have 1 to {_MAX_RULES} rules.")
    names: set[str] = set()
    for where, rule in found:
        if rule.name in names:
            raise where.error(f"there are two rules named '{rule.name}'. Rename one of them.")
        names.add(rule.name)
    return tuple(rule for _, rule in found)


_FIELDS = {
    "look_back_hours": Field(
        number(above=0, most=24 * 30),
        "How far back the first sweep goes.",
        default=_CONFIG_DEFAULTS["look_back_hours"],
    ),
    "min_parameters": Field(
        PARAMETERS,
        "Models below are toys, whatever the rules say.",
        default=_CONFIG_DEFAULTS["min_parameters"],
    ),
    "opt_out": Field(
        list_of(_OWNER_OR_REPO, most=10_000),
        "Users, organizations and repos that do not want to be converted.",
    ),
    "hours_per_billion": Field(
        number(above=0, most=1000),
        "Hours of work per billion parameters on your runners, to estimate 'hours_per_day' by.",
        default=_CONFIG_DEFAULTS["hours_per_billion"],
    ),
    "rules": Field(
        Kind(
            _read_rules,
            {"type": "array", "items": _RULE.schema, "minItems": 1, "maxItems": _MAX_RULES},
        ),
        "Which models to take, and what to make of them; the first that matches wins.",
        is_required=True,
    ),
}


def parse_watch_config(content: str, *, name: str) -> WatchConfig:
    """The rules that a file holds.

    Args:
        content: YAML.
        name: What to call the file in complaints.

    Raises:
        InvalidOptionError: Something in it makes no sense; says where.
    """
    return WatchConfig(**read_fields(compose(content, name=name), _FIELDS, what="the file"))


def schema_text() -> str:
    """The JSON schema of the file, as it is kept in `space_config/watch.schema.json`."""
    schema = {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "Rules of the dynquant watcher",
        **object_schema(_FIELDS),
    }
    return json.dumps(schema, indent=2) + "\n"


def _contradiction(rule: Rule) -> str | None:
    """What no model could satisfy, or no job could do."""
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
