from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
import yaml

from dynquant.errors import InvalidOptionError
from dynquant.watch.config import Rule, WatchConfig, parse_watch_config, schema_text

FOLDER = Path(__file__).parents[2] / "space_config"
EXAMPLE = (FOLDER / "watch.yaml").read_text(encoding="utf-8")

FULL = """
look_back_hours: 6
min_parameters: 50M
opt_out: [somebody, org/model]
hours_per_billion: 0.5
rules:
  - name: one
    authors: [Qwen]
    search: instruct
    tags: [conversational]
    without_tags: [code]
    pipeline_tags: [text-generation, image-text-to-text]
    architectures: [Qwen3ForCausalLM, qwen3]
    min_parameters: 500M
    max_parameters: 14.5B
    licenses: [apache-2.0]
    licenses_refused: [mit]
    unknown_license: true
    min_likes: 1
    min_downloads: 2
    min_trending: 0.5
    min_age_hours: 1
    max_age_hours: 48.5
    gated: yes
    bpw: [3.5, 4]
    destination: you/{model}-{bpw}
    private: true
    priority: 3
    max_per_sweep: 7
    gb_per_day: 100
    hours_per_day: 8
  - name: two
    memory: [16GB, 1.5TB]
    destination: you
"""


def parse(text: str) -> WatchConfig:
    return parse_watch_config(text, name="watch.yaml")


def complaint(text: str) -> str:
    with pytest.raises(InvalidOptionError) as caught:
        parse(text)
    return str(caught.value)


def rule(*lines: str, instead_of: str = "") -> str:
    """A file with one valid rule and `lines`."""
    kept = [line for line in ("name: a", "bpw: [4.5]", "destination: you") if line != instead_of]
    return "rules:\n  - " + "\n    ".join((*kept, *lines)) + "\n"


def test_every_key_arrives_in_its_place():
    config = parse(FULL)
    assert config.look_back_hours == 6
    assert config.min_parameters == 50_000_000
    assert config.opt_out == ("somebody", "org/model")
    assert config.hours_per_billion == 0.5
    one, two = config.rules
    assert one == Rule(
        name="one",
        authors=("Qwen",),
        search="instruct",
        tags=("conversational",),
        without_tags=("code",),
        pipeline_tags=("text-generation", "image-text-to-text"),
        architectures=("Qwen3ForCausalLM", "qwen3"),
        min_parameters=500_000_000,
        max_parameters=14_500_000_000,
        licenses=("apache-2.0",),
        licenses_refused=("mit",),
        unknown_license=True,
        min_likes=1,
        min_downloads=2,
        min_trending=0.5,
        min_age_hours=1,
        max_age_hours=48.5,
        gated=True,
        bpw=(3.5, 4.0),
        destination="you/{model}-{bpw}",
        private=True,
        priority=3,
        max_per_sweep=7,
        gb_per_day=100,
        hours_per_day=8,
    )
    assert two == Rule(name="two", memory_bytes=(16 << 30, 3 << 39), destination="you")


@pytest.mark.parametrize(
    ("text", "where", "what"),
    [
        ("", "watch.yaml", "empty"),
        ("# nothing\n", "watch.yaml", "empty"),
        ("rules: [\n", "line 2, column 1", "not YAML"),
        ("rules:\n\t- a\n", "line 2, column 1", "not YAML"),
        ("a: \x00", "watch.yaml", "not YAML"),
        ("[" * 5000, "watch.yaml", "not YAML"),
        ("- a\n", "line 1, column 1", "must be lines of the form 'key: value'"),
        ("look_back_hours: 3\n", "line 1, column 1", "the file needs 'rules'"),
        ("rule: []\n", "line 1, column 1", "Did you mean 'rules'?"),
        ("rules: {}\n", "line 1, column 8", "must be a list"),
        ("rules: []\n", "line 1, column 8", "1 to 100 rules"),
        ("rules:\n  - 5\n", "line 2, column 5", "a rule must be lines"),
        ("rules:\n  - {[a]: 1}\n", "line 2, column 6", "a key must be a word"),
        ("min_parameters: 1\nmin_parameters: 2\n", "line 2, column 1", "here twice"),
        ("opt_out: [a b]\n" + rule(), "line 1, column 11", "'a b' cannot be right here"),
        ("look_back_hours: 0\n" + rule(), "line 1, column 18", "above 0"),
        (rule("autors: [Qwen]"), "line 5, column 5", "Did you mean 'authors'?"),
        (rule("zzz: 1"), "line 5, column 5", "It may have: architectures, authors"),
        (rule("authors: Qwen"), "line 5, column 14", "must be a list"),
        (rule("authors: [Qwen, no]"), "line 5, column 21", "Put it in quotes"),
        (rule("authors: [Qwen, ~]"), "line 5, column 21", "must be a text"),
        (rule("authors: [a, a]"), "line 5, column 18", "in the list already"),
        (rule("authors: [org/model]"), "line 5, column 15", "It looks like Qwen"),
        (rule('search: ""'), "line 5, column 13", "1 to 200 printable characters"),
        (rule("min_parameters: 8 billion"), "line 5, column 21", "Write it like 8B"),
        (rule("min_parameters: [1]"), "line 5, column 21", "one value"),
        (rule("min_likes: -1"), "line 5, column 16", "at least 0"),
        (rule("min_likes: 1.5"), "line 5, column 16", "a whole number"),
        (rule("min_likes: many"), "line 5, column 16", "must be a number"),
        (rule("min_likes: 0x10"), "line 5, column 16", "must be a number"),
        (rule("max_age_hours: .nan"), "line 5, column 20", "must be a number"),
        (rule("gated: maybe"), "line 5, column 12", "true or false"),
        (rule("bpw: []", instead_of="bpw: [4.5]"), "line 4, column 10", "1 to 32 items"),
        (rule("bpw: [17]", instead_of="bpw: [4.5]"), "line 4, column 11", "at most 16"),
        (rule(instead_of="bpw: [4.5]"), "line 2, column 5", "either 'bpw' or 'memory'"),
        (rule("memory: [16GB]"), "line 2, column 5", "either 'bpw' or 'memory'"),
        (rule("memory: [16]", instead_of="bpw: [4.5]"), "line 4, column 14", "Write it like 16GB"),
        (rule("memory: [0GB]", instead_of="bpw: [4.5]"), "line 4, column 14", "like 16GB"),
        (rule(instead_of="name: a"), "line 2, column 5", "a rule needs 'name'"),
        (rule(instead_of="destination: you"), "line 2, column 5", "needs 'destination'"),
        (rule() + "  - name: a\n    bpw: [4]\n    destination: you\n", "line 5", "two rules named"),
        (rule("min_parameters: 9B", "max_parameters: 1B"), "line 2, column 5", "no model fits"),
        (rule("min_age_hours: 5", "max_age_hours: 5"), "line 2, column 5", "no model fits"),
        (rule("licenses: [mit]", "licenses_refused: [mit]"), "line 2", "both taken and refused"),
        (rule("tags: [a]", "without_tags: [a]"), "line 2", "both required and refused"),
        (
            "rules:\n  - {name: a, bpw: [4, 5], destination: you/m}\n",
            "line 2, column 5",
            "Put {bpw} into its name",
        ),
        (
            rule("destination: you/a--b", instead_of="destination: you"),
            "line 2, column 5",
            "cannot be the id of a repo",
        ),
    ],
)
def test_what_makes_no_sense_is_named_with_its_line_and_column(text, where, what):
    message = complaint(text)
    assert message.startswith(f"watch.yaml, {where}" if where != "watch.yaml" else "watch.yaml")
    assert what in message
    assert message.endswith((".", "?"))


def test_the_example_is_in_order_and_names_nobody():
    config = parse(EXAMPLE)
    assert [each.name for each in config.rules] == ["small", "popular"]
    assert all(each.destination.startswith("your-name") for each in config.rules)


def test_the_schema_for_editors_is_what_the_reader_takes():
    path = FOLDER / "watch.schema.json"
    if os.environ.get("DYNQUANT_UPDATE_GOLDEN") == "1":
        path.write_text(schema_text(), encoding="utf-8")
    assert path.read_text(encoding="utf-8") == schema_text()
    keys = json.loads(schema_text())["properties"]["rules"]["items"]["properties"]
    assert set(keys) - {"memory"} == set(Rule.__dataclass_fields__) - {"memory_bytes"}
    assert all(key["description"].endswith(".") for key in keys.values())


def schema_errors(text: str) -> list[Any]:
    validation = pytest.importorskip("jsonschema")
    validator = validation.Draft202012Validator(json.loads(schema_text()))
    return list(validator.iter_errors(yaml.safe_load(text)))


def test_schema_and_reader_agree_on_what_is_right():
    for text in (EXAMPLE, FULL, rule()):
        assert schema_errors(text) == []
        parse(text)


@pytest.mark.parametrize(
    "text",
    [
        rule("autors: [Qwen]"),
        rule("authors: Qwen"),
        rule("authors: [a, a]"),
        rule("authors: [org/model]"),
        rule("min_parameters: 8 billion"),
        rule("min_likes: -1"),
        rule("min_likes: 1.5"),
        rule("gated: maybe"),
        rule("bpw: [17]", instead_of="bpw: [4.5]"),
        rule("bpw: [0]", instead_of="bpw: [4.5]"),
        rule("bpw: []", instead_of="bpw: [4.5]"),
        rule(instead_of="bpw: [4.5]"),
        rule("memory: [16GB]"),
        rule("memory: [16]", instead_of="bpw: [4.5]"),
        rule(instead_of="name: a"),
        "look_back_hours: 1\n",
        "rules: []\n",
        "opt_out: [a b]\n" + rule(),
    ],
)
def test_schema_and_reader_agree_on_what_is_wrong(text):
    assert schema_errors(text)
    complaint(text)


def test_the_documentation_has_every_key():
    page = (FOLDER.parent / "docs" / "watcher.md").read_text(encoding="utf-8")
    schema = json.loads(schema_text())["properties"]
    for key, about in (schema | schema["rules"]["items"]["properties"]).items():
        assert f"| `{key}` | {about['description']} |" in page


def test_targets_whose_models_would_have_one_name_are_refused():
    said = complaint(rule("bpw: [4.5, 4.500001]", instead_of="bpw: [4.5]"))
    assert "Two of the targets are the same" in said
    assert said.startswith("watch.yaml, line 2")
