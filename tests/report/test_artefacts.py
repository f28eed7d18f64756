from __future__ import annotations

import json
import math
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dynquant.errors import SensitivitiesError
from dynquant.quant.formats import UNQUANTIZED, QuantFormat
from dynquant.quant.kl_calibration import KlCalibration
from dynquant.quant.plan import CostTable, TextFacts
from dynquant.quant.recipe import RECIPE_VERSION
from dynquant.report.artefacts import (
    cost_table_from_json,
    cost_table_to_json,
    is_cost_table,
    matched_table,
    sensitivities_from_json,
    sensitivities_to_json,
)
from tests.report.factories import make_inventory, make_layer, make_layers


def make_table(**overrides: Any) -> CostTable:
    layers = make_layers(
        {"3g64": 0.1 + 0.2, "8g32": 1e-300, "unquantized": 0.0}, {"3g64": 1 / 3, "8g32": 5e-324}
    )
    fields: dict[str, Any] = {
        "inventory": make_inventory(layers, together=KlCalibration(((0.1, 0.2), (0.3, 1 / 3)))),
        "method": "fisher",
        "encoder": "gptq",
        "effort": "normal",
        "calibration": TextFacts(
            name="größe.txt", sha256="ab" * 32, num_tokens=512, window_tokens=256
        ),
        "seed": 3,
        "source": "org/Model",
        "source_sha": "c0ffee",
        "scales": {"v_proj:4": 0.1},
        "importance": {"layers.0": (("cm93cw==", "Y29scw=="), ("YQ==", "Yg=="))},
        "versions": {"mlx": "0.32.4"},
        "polished": {5.25: {"layers.0": QuantFormat(3, 64), "layers.1": QuantFormat(8, 32)}},
    }
    return CostTable(**fields | overrides)


def table_json(**changes: Any) -> dict[str, Any]:
    return json.loads(cost_table_to_json(make_table())) | changes


def test_a_cost_table_comes_back_as_it_was_to_the_last_digit():
    table = make_table()
    text = cost_table_to_json(table)
    assert cost_table_from_json(text, name="t.json") == table
    assert cost_table_to_json(cost_table_from_json(text, name="t.json")) == text


def test_a_cost_table_of_a_version_that_did_not_count_chats_is_read():
    content = table_json()
    content["calibration"] = {
        "name": "a.txt", "sha256": "ab", "num_tokens": 9, "window_tokens": 3, "chat_formatted": True
    }  # fmt: skip
    found = cost_table_from_json(json.dumps(content), name="t.json").calibration
    assert found == TextFacts(
        name="a.txt", sha256="ab", num_tokens=9, window_tokens=3, chat_formatted=True
    )


def test_texts_are_the_same_by_what_was_read_of_them():
    text = make_table().calibration
    assert text.is_same_text(replace(text, name="other.txt", chat_refusal="x", sketch="y"))
    for change in ({"sha256": "x"}, {"num_tokens": 1}, {"window_tokens": 1}):
        assert not text.is_same_text(replace(text, **change))


@given(st.lists(st.floats(0, allow_nan=False, allow_infinity=False), min_size=2, max_size=2))
def test_every_cost_survives_the_way_through_json(costs):
    layer = make_layer(dict(zip(("3g64", "8g64"), costs, strict=True)))
    table = make_table(inventory=make_inventory([layer]), polished={})
    again = cost_table_from_json(cost_table_to_json(table), name="t.json")
    assert again.inventory.layers[0].costs_nats == tuple(costs)


def damaged_layer(**changes: Any) -> dict[str, Any]:
    content = table_json()
    content["layers"][0] |= changes
    return content


@pytest.mark.parametrize(
    "content",
    [
        [],
        "text",
        None,
        {},
        table_json(kind="plan"),
        table_json(version=1),
        table_json(version=99),
        table_json(recipe_version=RECIPE_VERSION - 1),
        table_json(effort=None),
        table_json(layers=None),
        table_json(layers=[[]]),
        table_json(scales=[]),
        table_json(scales={"a": None}),
        table_json(together=None),
        table_json(together=[[1.0]]),
        table_json(together=[[1.0, 0.0]]),
        table_json(together=[[-1.0, 1.0]]),
        table_json(together=[["x", 1.0]]),
        table_json(importance={"a": [["one"]]}),
        table_json(importance={"a": 5}),
        table_json(seed="x"),
        table_json(seed=True),
        table_json(source=None),
        table_json(num_parameters=math.inf),
        table_json(num_parameters=None),
        table_json(calibration={"name": "x"}),
        table_json(calibration=table_json()["calibration"] | {"num_tokens": "many"}),
        table_json(versions=5),
        damaged_layer(shape=7),
        damaged_layer(dtype_bits=None),
        damaged_layer(costs_nats={"7g64": 1.0}),
        damaged_layer(costs_nats={"4g64": "x"}),
        damaged_layer(costs_nats={"4g64": math.nan}),
        damaged_layer(costs_nats={"4g64": 10**400}),
        damaged_layer(costs_nats={}),
    ],
)
def test_what_is_no_cost_table_is_refused(content):
    with pytest.raises(SensitivitiesError, match=r"'t\.json' is not a cost table"):
        cost_table_from_json(json.dumps(content), name="t.json")


@pytest.mark.parametrize("text", ["", "{", "[" * 200_000, '{"kind": "dynquant-cost-table"}', "\0"])
def test_text_that_is_not_even_json_is_refused(text):
    with pytest.raises(SensitivitiesError):
        cost_table_from_json(text, name="t.json")


def test_any_version_of_a_cost_table_is_recognized():
    assert is_cost_table(cost_table_to_json(make_table()))
    assert is_cost_table(json.dumps(table_json(version=99)))
    for text in ("", "[]", "{}", '{"kind": "plan"}', "[" * 200_000):
        assert not is_cost_table(text)


def bare(table: CostTable, formats: str | None = None):
    """The model of a table, not yet measured."""
    layers = [
        replace(layer, costs_nats=())
        if formats is None
        else make_layer(path=layer.path, formats=formats)
        for layer in table.inventory.layers
    ]
    return make_inventory(layers)


def test_a_table_of_the_same_model_and_menu_is_taken_as_it_is():
    table = make_table()
    assert matched_table(table, bare(table), "c0ffee") == table


def test_a_smaller_menu_takes_its_costs_out_of_the_table():
    table = make_table()
    matched = matched_table(table, bare(table, "8g32"), "c0ffee")
    assert [layer.costs_nats for layer in matched.inventory.layers] == [(1e-300,), (5e-324,)]


def test_polished_plans_with_formats_that_there_are_no_more_are_left_out():
    table = make_table()
    smaller = make_inventory(make_layers({"3g64": 0.0}, {"3g64": 0.0}))
    assert not matched_table(table, smaller, "c0ffee").polished
    assert matched_table(table, table.inventory, "c0ffee").polished == table.polished


@pytest.mark.parametrize(
    "polished",
    [
        {"5.25": {"layers.0": "3g64"}},
        {"5.25": {"layers.0": "4g64", "layers.1": "8g32"}},
        {"five": {}},
        {"nan": {"layers.0": "3g64", "layers.1": "8g32"}},
    ],
)
def test_polished_plans_that_do_not_fit_their_table_are_refused(polished):
    with pytest.raises(SensitivitiesError, match="not a cost table"):
        cost_table_from_json(json.dumps(table_json(polished=polished)), name="t.json")


def test_a_format_that_was_not_measured_is_named_but_leaving_a_layer_alone_costs_nothing():
    table = make_table()
    matched = matched_table(table, bare(table, "3g64,unquantized"), "c0ffee")
    assert matched.inventory.layers[1].cost_nats(UNQUANTIZED) == 0.0
    with pytest.raises(SensitivitiesError, match=r"'4g64' for layer 'layers\.0'.*--formats"):
        matched_table(table, bare(table, "3g64,4g64"), "c0ffee")


def test_the_size_of_the_model_is_never_taken_from_the_table():
    table = make_table()
    tampered = replace(table, inventory=replace(table.inventory, fixed_bits=10**9))
    assert matched_table(tampered, bare(table), "c0ffee") == table


@pytest.mark.parametrize(
    "change",
    [
        {"path": "other"},
        {"shape": (64, 128)},
        {"dtype_bits": 32},
    ],
)
def test_a_table_of_another_model_is_refused(change):
    table = make_table()
    first, *rest = bare(table).layers
    with pytest.raises(SensitivitiesError, match="measured on another model"):
        matched_table(table, make_inventory([replace(first, **change), *rest]), "c0ffee")


def test_a_table_of_other_weights_is_refused():
    with pytest.raises(SensitivitiesError, match=r"another model \('org/Model'\)"):
        matched_table(make_table(), bare(make_table()), "beef")


MODEL = make_inventory(
    [
        make_layer(path="a", formats="4g64,5g64"),
        make_layer(path="b", formats="4g64,5g64"),
        make_layer(path="narrow", formats="unquantized"),
    ]
)


def test_sensitivities_come_back_as_they_were():
    values = {"a": 0.1 + 0.2, "b": -3.0}
    text = sensitivities_to_json(values)
    assert json.loads(text) == [["a", 0.1 + 0.2], ["b", -3.0]]
    assert sensitivities_from_json(text, MODEL, name="s.json") == values


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "is not a sensitivities file"),
        ("{", "is not a sensitivities file"),
        ("5", "is not a sensitivities file"),
        ("null", "is not a sensitivities file"),
        ('["a"]', "is not a sensitivities file"),
        ('[["a"]]', "is not a sensitivities file"),
        ('[["a", "high"]]', "is not a sensitivities file"),
        ('[["a", null]]', "is not a sensitivities file"),
        (f'[["a", {"9" * 400}]]', "is not a sensitivities file"),
        ("[" * 200_000, "is not a sensitivities file"),
        ('{"a": 1, "b": 2}', "is not a sensitivities file"),
        ('[["a", NaN], ["b", 1]]', "no finite sensitivity for 'a'"),
        ('[["a", 1e999], ["b", 1]]', "no finite sensitivity for 'a'"),
        ('[["a", 1], ["b", 1], ["c", 1]]', "of another model: this one has no layer 'c'"),
        ('[["a", 1]]', r"no sensitivity for 1 layer\(s\), such as 'b'"),
        ("[]", r"no sensitivity for 2 layer\(s\), such as 'a'"),
    ],
)
def test_a_sensitivities_file_that_does_not_fit_is_refused(text, says):
    with pytest.raises(SensitivitiesError, match=says):
        sensitivities_from_json(text, MODEL, name="s.json")


def test_a_layer_with_one_format_needs_no_sensitivity_and_may_have_one():
    pairs = [["a", 1], ["b", 2], ["narrow", 3]]
    assert sensitivities_from_json(json.dumps(pairs), MODEL, name="s")["narrow"] == 3.0


def test_a_strangers_layer_name_is_shown_cut_short():
    with pytest.raises(SensitivitiesError) as caught:
        sensitivities_from_json(json.dumps([["x" * 5000, 1]]), MODEL, name="s.json")
    assert len(str(caught.value)) < 300
