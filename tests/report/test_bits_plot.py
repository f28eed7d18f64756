from __future__ import annotations

import re
from itertools import pairwise
from xml.etree import ElementTree as ET

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dynquant.quant.formats import UNQUANTIZED, QuantFormat
from dynquant.report.bits_plot import layer_bits_svg
from tests.report.card_factories import make_facts, make_layer, make_plan
from tests.report.golden_files import assert_golden

SVG = "{http://www.w3.org/2000/svg}"


def drawn(facts, *, dark=False):
    return ET.fromstring(layer_bits_svg(facts, dark=dark))


def texts(root):
    return ["".join(node.itertext()) for node in root.iter(f"{SVG}text")]


def cells(root):
    return [rect for rect in root.iter(f"{SVG}rect") if rect.find(f"{SVG}title") is not None]


def facts_of(*paths, fmt=None):
    layers = tuple(make_layer(path) for path in paths)
    plan = make_plan(layers)
    if fmt:
        plan = make_plan(layers, formats=dict.fromkeys(paths, fmt))
    return make_facts(layers=layers, plan=plan)


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
def test_the_picture_is_the_golden_one(dark):
    assert_golden(
        f"bits-{'dark' if dark else 'light'}.svg", layer_bits_svg(make_facts(3), dark=dark)
    )


@pytest.mark.parametrize("num_blocks", [1, 2, 28, 36, 64, 200])
def test_every_layer_has_a_cell_within_the_picture(num_blocks):
    root = drawn(make_facts(num_blocks))
    width, height = float(root.get("width")), float(root.get("height"))
    assert width == 900
    assert len(cells(root)) == 7 * num_blocks + 1
    for rect in root.iter(f"{SVG}rect"):
        x, y, w, h = (float(rect.get(name)) for name in ("x", "y", "width", "height"))
        assert w > 0
        assert 0 <= x <= x + w <= width
        assert 0 <= y <= y + h <= height


def test_cells_of_one_row_do_not_overlap():
    root = drawn(make_facts(200))
    row = [c for c in cells(root) if "q_proj" in c.find(f"{SVG}title").text]
    edges = [(float(c.get("x")), float(c.get("width"))) for c in row]
    assert all(x + w <= after + 0.02 for (x, w), (after, _) in pairwise(edges))


def test_bits_are_printed_in_wide_cells_and_left_out_of_narrow_ones():
    wide = facts_of(*(f"layers.{i}.q" for i in range(4)), fmt=QuantFormat(4, 64))
    assert texts(drawn(wide)).count("4.5") == 4
    narrow = facts_of(*(f"layers.{i}.q" for i in range(150)), fmt=QuantFormat(4, 64))
    assert texts(drawn(narrow)).count("4.5") == 0


def test_the_legend_names_each_size_with_its_share():
    layers = (make_layer("layers.0.a", (300, 128)), make_layer("layers.0.b", (100, 128)))
    formats = {"layers.0.a": QuantFormat(4, 64), "layers.0.b": UNQUANTIZED}
    facts = make_facts(layers=layers, plan=make_plan(layers, formats=formats))
    assert {"4.5 · 75 %", "16 · 25 %"} <= set(texts(drawn(facts)))


def test_many_sizes_wrap_into_further_lines_of_the_legend():
    names = [f"{bits}g{group}" for bits in (2, 3, 4, 5, 6, 8) for group in (32, 64, 128)]
    layers = tuple(make_layer(f"layers.{i}.a") for i in range(len(names)))
    formats = {layer.path: QuantFormat.from_name(n) for layer, n in zip(layers, names, strict=True)}
    root = drawn(make_facts(layers=layers, plan=make_plan(layers, formats=formats)))
    entries = [text for text in texts(root) if text.endswith("%")]
    assert len(entries) == 18
    assert entries == sorted(entries, key=lambda text: float(text.split()[0]))


def test_layers_without_a_block_stand_outside():
    root = drawn(facts_of("model.embed_tokens", "lm_head", "model.layers.0.mlp.up_proj"))
    shown = texts(root)
    assert "outside the blocks" in shown
    assert {"embed_tokens", "lm_head", "up_proj"} <= set(shown)
    assert "outside the blocks" not in texts(drawn(facts_of("layers.0.up_proj")))


def test_a_model_without_blocks_still_has_a_picture():
    assert len(cells(drawn(facts_of("embed", "head")))) == 2


def test_too_many_layers_outside_are_counted_instead_of_drawn():
    root = drawn(facts_of(*(f"adapter_{chr(97 + i)}" for i in range(20))))
    assert len(cells(root)) == 16
    assert "and 4 more" in texts(root)


def test_labels_grow_until_they_tell_roles_apart():
    shown = texts(
        drawn(
            facts_of(
                "model.layers.0.mlp.gate_proj",
                "model.layers.1.mlp.shared_expert.gate_proj",
                "model.layers.1.self_attn.q_proj",
                "encoder.layers.0.fc",
                "decoder.layers.0.fc",
            )
        )
    )
    assert {"mlp.gate_proj", "shared_expert.gate_proj", "q_proj"} <= set(shown)
    assert {"encoder.layers.fc", "decoder.layers.fc"} <= set(shown)


def test_experts_that_are_kept_apart_share_a_cell():
    paths = [f"model.layers.0.mlp.experts.{i}.up_proj" for i in range(8)]
    facts = facts_of(*paths, fmt=QuantFormat(4, 64))
    (cell,) = cells(drawn(facts))
    tooltip = cell.find(f"{SVG}title").text
    assert tooltip.endswith("and 5 more: 4.5 bits per weight")


def test_blocks_without_a_role_show_an_empty_track():
    root = drawn(facts_of("layers.0.a", "layers.1.a", "layers.1.b"))
    colours = [rect.get("fill") for rect in root.iter(f"{SVG}rect")]
    assert colours.count("#f3f4f6") == 1


def test_more_bits_get_a_colour_further_from_the_background():
    def brightness(name, dark):
        fmt = QuantFormat.from_name(name)
        fill = cells(drawn(facts_of("layers.0.a", fmt=fmt), dark=dark))[0].get("fill")
        return sum(int(fill[i : i + 2], 16) for i in (1, 3, 5))

    names = ["2g128", "2g32", "3g64", "4g64", "4g32", "5g64", "6g64", "8g64", "unquantized"]
    light = [brightness(name, dark=False) for name in names]
    dark = [brightness(name, dark=True) for name in names]
    assert light == sorted(light, reverse=True)
    assert dark == sorted(dark)


def test_a_long_name_is_shortened_in_the_middle():
    shown = texts(drawn(make_facts(1, name="a" * 60 + "b" * 60)))
    assert any("aa…bb" in text for text in shown)


def test_the_same_facts_give_the_same_picture():
    first, again = (layer_bits_svg(make_facts(5), dark=True) for _ in range(2))
    assert first == again


def test_nothing_is_loaded_from_elsewhere():
    svg = layer_bits_svg(make_facts(2), dark=False)
    assert re.findall(r"https?://[^\"]*", svg) == ["http://www.w3.org/2000/svg"]
    assert "href" not in svg
    assert "<style" not in svg


@settings(max_examples=60)
@given(name=st.text(), part=st.text(min_size=1).filter(lambda text: "." not in text))
def test_no_name_breaks_the_picture(name, part):
    part = f"{part}<script>&\"'"
    facts = facts_of(f"layers.0.{part}", f"{part}.{part}x")
    root = ET.fromstring(
        layer_bits_svg(make_facts(layers=facts.layers, plan=facts.plan, name=name), dark=False)
    )
    allowed = {"svg", "title", "desc", "rect", "text", "tspan", "path"}
    assert {node.tag.removeprefix(SVG) for node in root.iter()} <= allowed
