from __future__ import annotations

import json
import math
import re
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dynquant.errors import InvalidModelError
from dynquant.quant.formats import DEFAULT_MENU, FLOAT_FORMATS, UNQUANTIZED, QuantFormat
from dynquant.quant.plan import LayerProfile, QuantPlan
from dynquant.quant.quality import IMAGE_FIGURES, Quality
from dynquant.quant.recipe import RECIPE_VERSION, Alignment, Recipe
from dynquant.report.artefacts import (
    facts_from_json,
    plan_to_json,
    report,
    report_to_json,
    requested,
    same_request,
)
from dynquant.report.bits_plot import layer_bits_svg
from dynquant.report.card import render_card
from dynquant.report.facts import ModelFacts, QuantizedRow, SizeVariant, TextFacts
from dynquant.report.size_plot import size_plot_svg
from dynquant.texts.images import ImageFacts
from tests.report.card_factories import (
    NAN,
    make_facts,
    make_layer,
    make_layers,
    make_plan,
    make_row,
    make_variants,
)


def papers(facts):
    """Everything that people see of a model."""
    repo_of = {variant.name: f"me/{i}" for i, variant in enumerate(facts.variants)}
    card = render_card(
        facts,
        picture_light="bits.svg",
        picture_dark="bits-dark.svg",
        sizes_light="ladder.svg",
        sizes_dark="ladder-dark.svg",
        repo_id="me/model",
        repo_of=repo_of,
    )
    draws = (layer_bits_svg, size_plot_svg)
    return [card, *(draw(facts, dark=dark) for draw in draws for dark in (False, True))]


def restored(facts, name="model"):
    return facts_from_json(plan_to_json(facts), report_to_json(facts), name=name)


def full_facts(**overrides):
    values = {
        "variants": make_variants(),
        "source_is_private": True,
        "gated": "manual",
        "gated_fields": {"extra_gated_prompt": "Agree\n---", "extra_gated_fields": {"a": "text"}},
        "menu": DEFAULT_MENU,
        "calibration_tokens": 16_384,
        "evaluation_tokens": 8_192,
    }
    return make_facts(2, **values | overrides)


PLAN = json.loads(plan_to_json(full_facts(layers=make_layers(0))))
REPORT = json.loads(report_to_json(full_facts(layers=make_layers(0))))

TEXT = st.text(max_size=20)
FINITE = st.floats(0.001, 40)
FIGURE = st.floats(allow_nan=True, allow_infinity=True) | st.floats(0, 1)
COUNT = st.integers(0, 2**63)
FORMATS = st.sampled_from([*DEFAULT_MENU, *FLOAT_FORMATS])
FIGURES = {
    **dict.fromkeys(set(Quality.__slots__) - set(IMAGE_FIGURES), FIGURE),
    **dict.fromkeys(("num_tokens", "num_windows"), COUNT),
}
SEEN = {
    **dict.fromkeys(("image_mean_kl_nats", "image_mean_kl_se_nats"), FIGURE),
    **dict.fromkeys(("num_images", "num_image_positions"), st.integers(1, 2**63)),
}
QUALITY = st.builds(Quality, **FIGURES) | st.builds(Quality, **FIGURES, **SEEN)
IMAGES = st.none() | st.builds(ImageFacts, name=TEXT, sha256=TEXT, num_images=COUNT)
ROWS = st.builds(QuantizedRow, label=TEXT, stored_bpw=FINITE, num_bytes=COUNT, quality=QUALITY)
TEXTS = st.builds(
    TextFacts,
    name=TEXT,
    sha256=TEXT,
    num_tokens=COUNT,
    window_tokens=COUNT,
    chat_formatted=st.booleans(),
    num_chats=COUNT,
    num_chats_formatted=COUNT,
    chat_refusal=TEXT,
    template_date=TEXT,
    source_sha256=TEXT,
    sketch=TEXT,
)
VARIANTS = st.builds(
    SizeVariant,
    name=TEXT,
    target_bpw=FINITE,
    stored_bpw=FINITE,
    num_bytes=COUNT,
    mean_kl_nats=FIGURE,
    mean_kl_se_nats=FIGURE,
    top1_agreement=FIGURE,
)
PATHS = TEXT | st.builds("model.layers.{}.{}".format, st.integers(0, 3), TEXT)


@st.composite
def layers_and_formats(draw):
    formats = draw(st.dictionaries(PATHS, FORMATS, min_size=1, max_size=5))
    layers = []
    for path in formats:
        known = tuple(draw(st.lists(FORMATS, unique=True, min_size=1, max_size=4)))
        costs = draw(st.none() | st.lists(FIGURE, min_size=len(known), max_size=len(known)))
        layers.append(
            LayerProfile(
                path=path,
                shape=(draw(st.integers(1, 99)), 128 * draw(st.integers(1, 9))),
                dtype_bits=draw(st.sampled_from([16, 32])),
                formats=known,
                costs_nats=tuple(costs or ()),
            )
        )
    return tuple(layers), formats


@st.composite
def facts(draw):
    layers, formats = draw(layers_and_formats())
    plan = QuantPlan(
        formats=formats,
        target_bpw=draw(FINITE),
        stored_bpw=draw(FINITE),
        predicted_kl_nats=draw(FIGURE),
        lower_bound_nats=draw(FIGURE),
    )
    build = st.builds(
        ModelFacts,
        name=TEXT,
        source=TEXT | st.just("org/Model"),
        source_is_repo=st.booleans(),
        source_is_private=st.booleans(),
        revision_sha=TEXT,
        model_type=TEXT,
        license_fields=st.dictionaries(TEXT | st.sampled_from(["license", "license_link"]), TEXT),
        layers=st.just(layers),
        plan=st.just(plan),
        method=TEXT | st.sampled_from(["fisher", "block_output", "alignment"]),
        encoder=TEXT,
        num_parameters=COUNT,
        rows=st.lists(ROWS, min_size=2, max_size=4).map(tuple),
        memory_bytes=COUNT,
        context_tokens=COUNT,
        calibration=TEXTS,
        evaluation=TEXTS,
        evaluation_images=IMAGES,
        seed=COUNT,
        command=TEXT,
        versions=st.dictionaries(TEXT, TEXT, max_size=3),
        notes=st.lists(TEXT, max_size=3).map(tuple),
        variants=st.lists(VARIANTS, max_size=4).map(tuple),
        gated=st.sampled_from(["", "auto", "manual"]),
        gated_fields=st.dictionaries(
            st.sampled_from(["extra_gated_prompt", "extra_gated_fields", "other"]),
            TEXT | st.dates() | st.dictionaries(TEXT, TEXT | st.lists(TEXT)),
        ),
        menu=st.lists(FORMATS).map(tuple),
        calibration_tokens=COUNT,
        evaluation_tokens=COUNT,
    )
    return draw(build)


def test_the_card_and_the_pictures_come_back_from_the_folder_alone():
    there = full_facts()
    again = restored(there)
    assert papers(again) == papers(there)
    assert again.name == there.name
    assert set(again.menu) == set(there.menu)
    assert again.plan == there.plan
    assert (again.rows, again.variants, again.notes) == (there.rows, there.variants, there.notes)


@settings(max_examples=150)
@given(facts())
def test_any_facts_come_back_to_the_character(there):
    again = restored(there)
    assert papers(again) == papers(there)
    assert plan_to_json(again) == plan_to_json(there)
    assert report_to_json(again) == report_to_json(there)


def test_a_plan_and_a_report_are_strict_json_even_without_predictions():
    layers = make_layers(1)
    there = make_facts(layers=layers, plan=make_plan(layers, predicted_kl_nats=math.nan))
    plan = json.loads(plan_to_json(there))
    assert (plan["kind"], plan["version"]) == ("dynquant-plan", 1)
    assert plan["predicted_kl_nats"] is None
    assert plan["formats"] == {path: fmt.name for path, fmt in there.plan.formats.items()}
    assert all(QuantFormat.from_name(name) for name in plan["formats"].values())
    assert json.loads(report_to_json(there)) == report(there)
    assert report(there)["kind"] == "dynquant-report"
    assert report(there)["predicted_kl_nats"] is None
    assert math.isnan(restored(there).plan.predicted_kl_nats)


def test_a_layer_is_one_line_of_its_plan():
    layer = make_layer("model.layers.0.mlp.up_proj", formats=(UNQUANTIZED,), costs_nats=(0.25,))
    plan = make_plan((layer,), formats={layer.path: UNQUANTIZED})
    text = plan_to_json(make_facts(layers=(layer,), plan=plan))
    line = '"model.layers.0.mlp.up_proj": {"shape": [64, 128], "dtype_bits": 16, "cost_nats": 0.25}'
    assert line in text
    never_priced = replace(layer, costs_nats=())
    assert '"cost_nats": null' in plan_to_json(make_facts(layers=(never_priced,), plan=plan))


def test_a_report_has_a_row_per_model_and_no_nan():
    there = make_facts(rows=(make_row("Original"), make_row(mean_kl_se_nats=math.nan)))
    original, mine = report(there)["rows"]
    assert original["label"] == "Original"
    assert mine["mean_kl_se_nats"] is None
    assert mine["num_bytes"] == there.rows[1].num_bytes
    assert mine["perplexity"] == there.rows[1].quality.perplexity


def test_a_gate_is_kept_as_it_is_published():
    there = full_facts(gated_fields={"extra_gated_prompt": "a\x00b", "junk": object()})
    assert json.loads(plan_to_json(there))["gated_fields"] == {"extra_gated_prompt": "a b"}


@pytest.mark.parametrize("text", ["", "{", "[]", "null", "5", "[" * 200_000, "\0", '{"kind": 1}'])
@pytest.mark.parametrize("file", ["plan.json", "report.json"])
def test_what_is_no_artefact_is_refused_by_name(file, text):
    texts = {"plan.json": plan_to_json(make_facts(1)), "report.json": report_to_json(make_facts(1))}
    texts[file] = text
    with pytest.raises(InvalidModelError) as caught:
        facts_from_json(*texts.values(), name="Model-4bpw")
    assert str(caught.value) == (
        f"'Model-4bpw' has no readable dynquant/{file} of this version of dynquant. Quantize the "
        "model again."
    )


@pytest.mark.parametrize(
    ("at", "value", "file"),
    [
        (("layers", "model.embed_tokens", "shape"), [0, 64], "plan.json"),
        (("layers", "model.embed_tokens", "shape"), [64, 65], "plan.json"),
        (("layers", "model.embed_tokens", "cost_nats"), "much", "plan.json"),
        (("formats", "model.embed_tokens"), "7g64", "plan.json"),
        (("formats", "model.layers.9.mlp"), "4g64", "plan.json"),
        (("stored_bpw",), float("inf"), "plan.json"),
        (("num_parameters",), -1, "plan.json"),
        (("num_parameters",), 10**400, "plan.json"),
        (("target_bpw",), 10**400, "plan.json"),
        (("request", "effort"), "", "plan.json"),
        (("request", "effort"), ["fast"], "plan.json"),
        (("version",), 2, "plan.json"),
        (("rows",), [], "report.json"),
        (("rows", 0, "num_windows"), 1.5, "report.json"),
        (("rows", 0, "perplexity"), True, "report.json"),
        (("ladder",), None, "report.json"),
        (("notes",), [5], "report.json"),
        (("kind",), "dynquant-plan", "report.json"),
    ],
)
def test_a_figure_that_cannot_be_is_refused(at, value, file):
    texts = {"plan.json": PLAN, "report.json": REPORT}
    content = tree = json.loads(json.dumps(texts[file]))
    *parents, last = at
    for key in parents:
        tree = tree[key]
    tree[last] = value
    plan, report_text = (json.dumps(each) for each in (texts | {file: content}).values())
    with pytest.raises(InvalidModelError, match=f"no readable dynquant/{re.escape(file)}"):
        facts_from_json(plan, report_text, name="x")


def test_a_number_beyond_all_numbers_is_refused():
    plan = json.dumps(PLAN).replace('"stored_bpw": 4.4973', '"stored_bpw": 1e999')
    with pytest.raises(InvalidModelError, match=r"plan\.json"):
        facts_from_json(plan, json.dumps(REPORT), name="x")


def test_the_files_of_two_models_are_told_apart():
    plan = plan_to_json(make_facts(1))
    other = report_to_json(make_facts(1, source="org/Other"))
    with pytest.raises(InvalidModelError, match="'x' are of two models"):
        facts_from_json(plan, other, name="x")


def leaves(tree, at=()):
    """Every place in a tree of JSON."""
    yield at
    if isinstance(tree, dict | list):
        for key, value in tree.items() if isinstance(tree, dict) else enumerate(tree):
            yield from leaves(value, (*at, key))


JUNK: st.SearchStrategy[Any] = st.sampled_from(
    [
        None,
        True,
        -1,
        0,
        2**64,
        10**400,
        -1e308,
        1e308,
        5e-324,
        float("inf"),
        NAN,
        "",
        "x",
        "7g64",
        "mxfp4",
        "<script>",
        "\ud800",
        [],
        [[]],
        [0],
        {},
        {"a": {}},
    ]
)


@settings(max_examples=400)
@given(st.data())
def test_a_damaged_file_is_refused_or_makes_a_whole_card(data):
    files = [json.loads(json.dumps(tree)) for tree in (PLAN, REPORT)]
    tree = data.draw(st.sampled_from(files))
    *parents, last = data.draw(st.sampled_from([place for place in leaves(tree) if place]))
    for key in parents:
        tree = tree[key]
    if data.draw(st.booleans()):
        del tree[last]
    else:
        tree[last] = data.draw(JUNK)
    plan, report_text = (json.dumps(tree) for tree in files)
    try:
        facts = facts_from_json(plan, report_text, name="x")
    except InvalidModelError:
        return
    assert all(text.encode() for text in papers(facts))


CALLS: dict[str, Any] = {
    "source": "Qwen/Qwen3-0.6B",
    "revision_sha": "c1899de289a04d12100db370d81485cdf75e47ca",
    "target_bpw": 4.5,
    "recipe": Recipe(targets_bpw=(3.5, 4.5), evaluation_tokens=8_192),
    "calibration": {"name": "dynquant-calibration-v1"},
    "evaluation": {"name": "Salesforce/wikitext:wikitext-2-raw-v1:test:text"},
    "evaluation_images": None,
}


def is_same(there, **changes):
    return same_request(plan_to_json(there), requested(**CALLS | changes))


def test_a_model_answers_the_request_that_made_it():
    assert is_same(full_facts())
    assert is_same(full_facts(method="block_output"))
    shuffled = Recipe(targets_bpw=(4.5,), evaluation_tokens=8_192, menu=DEFAULT_MENU[::-1])
    assert is_same(full_facts(), recipe=shuffled)
    assert is_same(full_facts(), recipe=replace(CALLS["recipe"], context_tokens=99))


@pytest.mark.parametrize(
    "change",
    [
        {"source": "Qwen/Qwen3-1.7B"},
        {"revision_sha": "0" * 40},
        {"target_bpw": 4.25},
        {"calibration": {"name": "other.txt"}},
        {"evaluation": {"name": "other.txt"}},
        {"calibration": {"source_sha256": "ab" * 32}},
        {"evaluation_images": {"name": "photos"}},
        {"encoder": "wls"},
        {"seed": 1},
        {"menu": DEFAULT_MENU[1:]},
        {"calibration_tokens": 32_768},
        {"evaluation_tokens": 16_384},
        {"alignment": Alignment(low=QuantFormat(4, 64), high=QuantFormat(8, 64))},
    ],
    ids=lambda change: next(iter(change)),
)
def test_another_request_is_another_model(change):
    if not change.keys() <= CALLS.keys():
        change = {"recipe": replace(CALLS["recipe"], **change)}
    assert not is_same(full_facts(), **change)


def test_images_are_known_by_their_hash_under_any_name():
    there = full_facts(evaluation_images=ImageFacts(name="photos", sha256="ab", num_images=9))
    assert is_same(there, evaluation_images={"sha256": "ab"})
    assert not is_same(there, evaluation_images={"sha256": "cd"})
    assert not is_same(there)


def test_a_report_without_images_is_as_it_was_before_there_were_any():
    assert not any("image" in key for row in REPORT["rows"] for key in row)
    assert "evaluation_images" not in {*REPORT, *PLAN["request"]}


def test_a_file_is_the_same_text_under_any_name_and_another_under_its_own():
    there = full_facts()
    there = replace(there, calibration=replace(there.calibration, source_sha256="ab" * 32))
    assert is_same(there, calibration={"source_sha256": "ab" * 32})
    assert not is_same(there, calibration={"source_sha256": "cd" * 32})


def test_a_model_of_thresholds_is_never_the_same():
    alignment = Alignment(low=QuantFormat(4, 64), high=QuantFormat(8, 64))
    recipe = replace(CALLS["recipe"], alignment=alignment)
    assert not is_same(full_facts(method="alignment"), recipe=recipe)


def test_a_new_version_of_the_recipe_is_another_model():
    plan = json.loads(plan_to_json(full_facts()))
    plan["request"]["recipe_version"] = RECIPE_VERSION - 1
    assert not same_request(json.dumps(plan), requested(**CALLS))


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[]",
        "[" * 200_000,
        '{"kind": "dynquant-plan", "version": 1}',
        '{"kind": "dynquant-plan", "version": 1, "request": []}',
        '{"kind": "dynquant-plan", "version": 1, "request": {"source": "Qwen/Qwen3-0.6B"}}',
        plan_to_json(full_facts()).replace('"version": 1', '"version": 2'),
    ],
)
def test_what_is_no_plan_answers_no_request(text):
    assert not same_request(text, requested(**CALLS))


def test_a_model_with_a_tower_comes_back_whole():
    facts = replace(
        make_facts(),
        runtimes=("mlx-vlm", "mlx-lm"),
        num_tower_parameters=1000,
        tower_bytes=2000,
        tower="8",
        dtype="float32",
    )
    back = facts_from_json(plan_to_json(facts), report_to_json(facts), name=facts.name)
    assert (back.runtimes, back.tower, back.dtype) == (facts.runtimes, "8", "float32")
    assert (back.num_tower_parameters, back.tower_bytes) == (1000, 2000)


def test_plans_of_earlier_versions_are_of_mlx_lm_without_a_tower():
    facts = make_facts()
    plan = json.loads(plan_to_json(facts))
    del plan["runtimes"], plan["tower"], plan["request"]["tower"], plan["request"]["dtype"]
    back = facts_from_json(json.dumps(plan), report_to_json(facts), name=facts.name)
    assert (back.runtimes, back.tower_bytes, back.tower) == (("mlx-lm",), 0, "keep")


@pytest.mark.parametrize("runtimes", [[], ["mlx-lm", "evil"], "mlx-lm", None])
def test_runtimes_that_nobody_has_are_refused(runtimes):
    facts = make_facts()
    plan = json.dumps(json.loads(plan_to_json(facts)) | {"runtimes": runtimes})
    with pytest.raises(InvalidModelError):
        facts_from_json(plan, report_to_json(facts), name=facts.name)
