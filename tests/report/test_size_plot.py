from __future__ import annotations

import itertools
import math
import re
from xml.etree import ElementTree as ET

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dynquant.report.facts import SizeVariant
from dynquant.report.size_plot import size_plot_svg
from tests.report.card_factories import (
    NAN,
    make_facts,
    make_original,
    make_row,
    make_variant,
    make_variants,
)
from tests.report.golden_files import assert_golden

SVG = "{http://www.w3.org/2000/svg}"
WIDTH = 900
CHAR_WIDTH = 6.4  # of the labels' font, about


def facts_of(*variants, **overrides):
    return make_facts(1, variants=variants, **overrides)


def drawn(facts, *, dark=False):
    return ET.fromstring(size_plot_svg(facts, dark=dark))


def texts(root):
    return ["".join(node.itertext()) for node in root.iter(f"{SVG}text")]


def tooltips(root):
    return [node.find(f"{SVG}title").text for node in root.iter(f"{SVG}g")]


def centers(root):
    """Tooltip of each point → where it stands."""
    return {
        group.find(f"{SVG}title").text: tuple(
            float(group.find(f"{SVG}circle").get(name)) for name in ("cx", "cy")
        )
        for group in root.iter(f"{SVG}g")
    }


def label_boxes(root):
    """Where the labels of points stand, which alone have an outline."""
    boxes = []
    for node in root.iter(f"{SVG}text"):
        if node.get("paint-order"):
            x, y, half = float(node.get("x")), float(node.get("y")), len(node.text) * CHAR_WIDTH / 2
            boxes.append((x - half, y - 10, x + half, y + 2))
    return boxes


def overlap(one, other):
    return one[0] < other[2] and other[0] < one[2] and one[1] < other[3] and other[1] < one[3]


def twelve():
    sizes = (2.5, 2.75, 3.0, 3.25, 3.5, 4.0, 4.25, 4.5, 5.0, 5.5, 6.0, 8.0)
    return [make_variant(bpw, 2.2 * math.exp(-1.3 * bpw)) for bpw in sizes]


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
def test_the_picture_is_the_golden_one(dark):
    name = f"ladder-{'dark' if dark else 'light'}.svg"
    assert_golden(name, size_plot_svg(facts_of(*make_variants()), dark=dark))


def test_a_point_tells_its_figures():
    assert tooltips(drawn(facts_of(*make_variants()))) == [
        "Uniform 4-bit, group 64: 4.5 bits per weight, 336 MB, mean KL 0.01381 ± 0.00048 nats",
        "Qwen3-0.6B-MLX-3.5bpw: 3.5 bits per weight, 261 MB, mean KL 0.0314 ± 0.0010 nats",
        "Qwen3-0.6B-MLX-4.5bpw: 4.5 bits per weight, 336 MB, mean KL 0.00653 ± 0.00021 nats",
        "Qwen3-0.6B-MLX-6.0bpw: 6 bits per weight, 447 MB, mean KL 0.000910 ± 0.000030 nats",
        "Qwen3-0.6B-MLX-8.0bpw: 8 bits per weight, 597 MB, mean KL 0.0001200 ± 0.0000040 nats",
    ]


def test_only_this_model_is_emphasised():
    root = drawn(facts_of(*make_variants()))
    (ringed,) = [g for g in root.iter(f"{SVG}g") if len(g.findall(f"{SVG}circle")) == 2]
    assert ringed.find(f"{SVG}title").text.startswith("Qwen3-0.6B-MLX-4.5bpw")
    assert [text for text in texts(root) if "this model" in text] == [
        "this model: 4.5 bpw, 0.0065 nats"
    ]


def test_a_uniform_model_is_hollow():
    root = drawn(facts_of(*make_variants()))
    fills = [g.find(f"{SVG}circle").get("fill") for g in root.iter(f"{SVG}g")]
    assert fills == ["#ffffff"] + ["#2f69b3"] * 4
    assert "Uniform 4-bit, group 64" in texts(root)


def test_larger_stands_further_right_and_worse_stands_higher():
    _, *ours = centers(drawn(facts_of(*make_variants()))).values()
    x, y = zip(*ours, strict=True)
    assert list(x) == sorted(x)
    assert list(y) == sorted(y)


def test_the_axis_is_logarithmic():
    variants = [make_variant(bpw, kl) for bpw, kl in ((3.0, 0.1), (4.0, 0.01), (5.0, 0.001))]
    facts = facts_of(*variants, rows=(make_original(), make_row()))
    (_, top), (_, middle), (_, bottom) = centers(drawn(facts)).values()
    assert middle - top == pytest.approx(bottom - middle, abs=0.02)


def test_an_error_bar_ends_one_standard_error_above_and_below():
    variants = [
        make_variant(bpw, kl, mean_kl_se_nats=NAN) for bpw, kl in ((3.0, 0.03), (5.0, 0.01))
    ]
    variants.append(make_variant(4.0, 0.02, mean_kl_se_nats=0.01))
    root = drawn(facts_of(*variants, rows=(make_original(), make_row())))
    high, low, barred = root.iter(f"{SVG}g")
    assert high.find(f"{SVG}path") is None
    (ends,) = re.findall(r"^M\S+ (\S+)V([\d.]+)M", barred.find(f"{SVG}path").get("d"))
    assert ends == (low.find(f"{SVG}circle").get("cy"), high.find(f"{SVG}circle").get("cy"))


def test_an_error_bar_that_reaches_0_leaves_through_the_bottom():
    variants = (make_variant(4.0, 0.02, mean_kl_se_nats=0.03), make_variant(5.0, 0.01))
    root = drawn(facts_of(*variants, rows=(make_original(), make_row())))
    path = next(root.iter(f"{SVG}g")).find(f"{SVG}path").get("d")
    assert re.fullmatch(r"M\S+ 276V\S+M\S+ [\d.]+h8", path)


def test_ticks_name_size_in_both_units():
    shown = texts(drawn(facts_of(*make_variants())))
    assert {"4", "5", "6", "7", "8", "298 MB", "373 MB", "448 MB", "522 MB", "597 MB"} <= set(shown)
    assert {"0.0001", "0.001", "0.01"} <= set(shown)


@pytest.mark.parametrize(("stored_bpw", "num_bytes"), [(4.5, 0), (0.0, 10**9), (5e-324, 10**9)])
def test_a_model_of_unknown_size_has_bits_alone_on_its_axis(stored_bpw, num_bytes):
    rows = (make_original(), make_row(stored_bpw=stored_bpw, num_bytes=num_bytes))
    shown = texts(drawn(facts_of(*make_variants(), rows=rows)))
    assert "5" in shown
    assert not [text for text in shown if text == "size" or text.endswith("B")]


@pytest.mark.parametrize(
    "variants",
    [
        make_variants(),
        twelve(),
        [make_variant(4.5 + i / 1000, 0.0065) for i in range(12)],
        [make_variant(4.5, 0.0065, name=f"model {i}", stored_bpw=4.5) for i in range(12)],
        [make_variant(bpw, kl) for bpw, kl in ((2.0, 5.0), (16.0, 1e-8))],
        [
            make_variant(3.0, 0.1, mean_kl_se_nats=0.5),
            make_variant(4.5, 0.01, mean_kl_se_nats=0.02),
        ],
    ],
    ids=["spread", "twelve", "crowded", "equal", "far apart", "large errors"],
)
def test_labels_lie_within_the_picture_and_not_on_each_other(variants):
    root = drawn(facts_of(*variants))
    boxes = label_boxes(root)
    assert boxes
    assert any("this model" in text for text in texts(root)) == any(
        variant.name == "Qwen3-0.6B-MLX-4.5bpw" for variant in variants
    )
    assert not [pair for pair in itertools.combinations(boxes, 2) if overlap(*pair)]
    for left, top, right, bottom in boxes:
        assert 0 <= left < right <= WIDTH
        assert 60 <= top < bottom <= 336
        for x, y in centers(root).values():
            assert not (left < x < right and top < y < bottom)


def test_twelve_sizes_all_stand_on_the_plot():
    assert len(tooltips(drawn(facts_of(*twelve())))) == 13


def test_what_a_log_axis_cannot_show_is_named_below():
    variants = (make_variant(4.5, 0.0065), make_variant(8.0, NAN), make_variant(16.0, 0.0))
    root = drawn(facts_of(*variants))
    assert "Left out: 8 bpw (not measured), 16 bpw (mean KL 0)" in texts(root)
    assert len(tooltips(root)) == 2
    beyond = (make_variant(4.5, -1.0, top1_agreement=0.5), make_variant(99.0, 0.1))
    note = texts(drawn(facts_of(*beyond, *variants[1:])))[-1]
    assert note.startswith("Left out: this model: 4.5 bpw (beyond the axes), 99 bpw (beyond")
    assert note.endswith(", 1 more")


def test_sizes_without_measurements_is_a_sentence():
    variants = (make_variant(4.0, NAN), make_variant(16.0, 0.0))
    root = drawn(facts_of(*variants, rows=(make_original(), make_row())))
    assert texts(root)[-1].startswith("Left out: 4 bpw")
    assert float(root.get("height")) < 120
    assert not list(root.iter(f"{SVG}path"))


def test_a_single_point_has_no_line():
    root = drawn(facts_of(make_variant(4.5, 0.0065), rows=(make_original(), make_row())))
    assert "stroke-opacity" not in ET.tostring(root).decode()


def test_the_same_facts_give_the_same_picture():
    first, again = (size_plot_svg(facts_of(*make_variants()), dark=True) for _ in range(2))
    assert first == again


def test_nothing_is_loaded_from_elsewhere():
    svg = size_plot_svg(facts_of(*make_variants()), dark=False)
    assert re.findall(r"https?://[^\"]*", svg) == ["http://www.w3.org/2000/svg"]
    assert "href" not in svg
    assert "<style" not in svg


FINITE = st.floats(allow_nan=False, allow_infinity=False) | st.floats(0, 20)
MEASURED = st.floats() | st.floats(0, 2)
VARIANTS = st.builds(
    SizeVariant,
    name=st.text(),
    target_bpw=FINITE,
    stored_bpw=FINITE,
    num_bytes=st.integers(0, 2**64),
    mean_kl_nats=MEASURED,
    mean_kl_se_nats=MEASURED,
    top1_agreement=MEASURED,
)


@settings(max_examples=150)
@given(variants=st.lists(VARIANTS, max_size=12), kl=MEASURED, se=MEASURED, text=st.text())
def test_no_figure_and_no_name_breaks_the_picture(variants, kl, se, text):
    text += "<script>&\"'"
    uniform = make_row(text, mean_kl_nats=kl, mean_kl_se_nats=se)
    rows = (make_original(), uniform, make_row())
    root = drawn(facts_of(*variants, rows=rows, source=text, name=text))
    height = float(root.get("height"))
    allowed = {"svg", "title", "desc", "rect", "text", "path", "g", "circle"}
    assert {node.tag.removeprefix(SVG) for node in root.iter()} <= allowed
    for circle in root.iter(f"{SVG}circle"):
        assert 0 <= float(circle.get("cx")) <= WIDTH
        assert 0 <= float(circle.get("cy")) <= height
