from __future__ import annotations

import datetime as dt
from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from dynquant.report.front_matter import front_matter
from dynquant.report.gating import MAX_ITEMS, MAX_LABEL_CHARS, MAX_TEXT_CHARS, gate
from tests.report.card_factories import make_facts

LLAMA = {
    "extra_gated_heading": "Please be sure to provide your full legal name",
    "extra_gated_prompt": (
        "### LLAMA 3.1 COMMUNITY LICENSE AGREEMENT\n\n“Agreement” means:\n  - the <b>terms</b>"
    ),
    "extra_gated_description": "See the [Privacy Policy](https://www.facebook.com/privacy/policy/).",
    "extra_gated_button_content": "Submit",
    "extra_gated_fields": {
        "First Name": "text",
        "Date of birth": "date_picker",
        "Country": "country",
        "Job title": {
            "type": "select",
            "options": ["Student", "AI researcher", {"label": "Other", "value": "other"}],
        },
        "geo": "ip_location",
        "By clicking Submit below I accept the terms of the license and acknowledge that the "
        "information I provide will be collected, stored, processed and shared": "checkbox",
    },
    "extra_gated_eu_disallowed": True,
}


def metadata(fields):
    return yaml.safe_load(front_matter(make_facts(1, gated="manual", gated_fields=fields)))


def test_a_gate_is_carried_over_to_the_letter():
    assert gate(LLAMA) == LLAMA
    header = metadata(LLAMA)
    assert {key: header[key] for key in LLAMA} == LLAMA
    assert header["library_name"] == "mlx"


def test_a_model_that_asks_nothing_has_no_gate():
    assert gate({}) == {}
    assert not [key for key in metadata({}) if key.startswith("extra_")]


def test_every_text_stands_on_one_line_between_quotes():
    text = front_matter(make_facts(1, gated_fields=LLAMA))
    assert '"### LLAMA 3.1 COMMUNITY LICENSE AGREEMENT\\n\\n' in text
    assert "<" not in text


@pytest.mark.parametrize(
    "fields",
    [
        {"extra_gated_secret": "x"},
        {"gated": "auto", "license": "mit", "model-index": []},
        {"extra_gated_prompt": None},
        {"extra_gated_prompt": ["a", "b"]},
        {"extra_gated_prompt": " \n\t\x00"},
        {"extra_gated_prompt": "x" * (MAX_TEXT_CHARS + 1)},
        {"extra_gated_eu_disallowed": "yes"},
        {"extra_gated_fields": "text"},
        {"extra_gated_fields": []},
        {"extra_gated_fields": {"": "text", 5: "text", "\u202e": "text", "a": "", "b": None}},
        {"extra_gated_fields": {"a": {}, "b": [], "c": {"type": None}}},
        {"extra_gated_fields": {"a": 1.5, "b": dt.date(2026, 1, 1), "c": 2**60}},
        {"extra_gated_fields": {"a" * (MAX_LABEL_CHARS + 1): "text", "b": "c" * 501}},
        {"extra_gated_fields": {f"{i:03}" * 150: "text" for i in range(500)}},
    ],
)
def test_what_the_hub_does_not_know_is_left_out(fields):
    assert gate(fields) == {}


def test_numbers_and_answers_of_yes_and_no_stay_what_they_are():
    fields = {"extra_gated_fields": {"Seats": {"type": "select", "options": [1, 2, False]}}}
    assert gate(fields) == fields
    assert metadata(fields)["extra_gated_fields"] == fields["extra_gated_fields"]


def test_250_countries_fit_and_a_million_do_not():
    def options(number):
        choice = {"type": "select", "options": [f"Country {i}" for i in range(number)]}
        kept: Any = gate({"extra_gated_fields": {"Country": choice}})
        return len(kept["extra_gated_fields"]["Country"]["options"])

    assert options(250) == 250
    assert options(1_000_000) == MAX_ITEMS


def test_deeper_than_a_form_goes_is_cut_off():
    deep: dict[str, Any] = {"a": "b"}
    for _ in range(100_000):
        deep = {"a": deep, "b": "text"}
    kept = gate({"extra_gated_fields": deep})
    assert len(str(kept)) < 200


def test_line_ends_of_every_kind_are_one_kind():
    assert gate({"extra_gated_prompt": "a\r\nb\u2028c\x85d\x07e"}) == {
        "extra_gated_prompt": "a\nb\nc\nd e"
    }


def test_shared_parts_are_written_out():
    choice = {"type": "select", "options": ["a"]}
    fields = {"extra_gated_fields": {"One": choice, "Two": choice}}
    assert "*id" not in front_matter(make_facts(1, gated_fields=fields))


HOSTILE = st.text() | st.sampled_from(
    [
        "---",
        "\n---\n# Heading\n<script>alert(1)</script>",
        "...\n",
        "!!python/object/apply:os.system [id]",
        "*alias",
        "&anchor",
        "# comment",
        "? key",
        '"; x: y',
        "\\x3Cscript\\x3E",
        "{{x}}",
        "\ud800\u202e\x00",
        "🎉",
    ]
)
TREES = st.recursive(
    HOSTILE | st.booleans() | st.none() | st.integers() | st.floats() | st.dates(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(HOSTILE, inner, max_size=4),
    max_leaves=12,
)


@settings(max_examples=200)
@given(st.fixed_dictionaries({}, optional=dict.fromkeys(LLAMA, HOSTILE | TREES)))
def test_no_gate_breaks_the_metadata_or_gets_out_of_them(fields):
    facts = make_facts(1, gated_fields=fields)
    text = front_matter(facts)
    text.encode()
    assert "<" not in text
    assert not [line for line in text.splitlines() if line.startswith(("---", "..."))]
    kept = gate(fields)
    assert gate(kept) == kept
    assert yaml.safe_load(text) == yaml.safe_load(front_matter(make_facts(1))) | kept
