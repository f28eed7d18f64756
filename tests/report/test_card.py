from __future__ import annotations

import re
from dataclasses import replace
from html.parser import HTMLParser
from typing import Any

import pytest
import yaml
from huggingface_hub import ModelCard
from hypothesis import given, settings
from hypothesis import strategies as st
from markdown_it import MarkdownIt

from dynquant.quant.formats import QuantFormat
from dynquant.report.card import render_card
from dynquant.report.facts import TextFacts
from dynquant.report.gating import gate
from dynquant.texts.images import ImageFacts
from dynquant.texts.markdown import clean
from tests.report.card_factories import (
    NAN,
    make_facts,
    make_layer,
    make_original,
    make_plan,
    make_row,
    make_text,
    make_uniform,
    make_variant,
    make_variants,
)
from tests.report.golden_files import assert_golden

RENDERER = MarkdownIt("commonmark", {"html": True}).enable(["table", "strikethrough"])
LIGHT, DARK = "dynquant/bits-light.svg", "dynquant/bits-dark.svg"


def render(facts, **options):
    return render_card(facts, picture_light=LIGHT, picture_dark=DARK, **options)


def halves(card):
    """Front matter and text, told apart as the Hub does: by lines of `---`."""
    _, header, body = re.split("^---\n", card, maxsplit=2, flags=re.MULTILINE)
    return yaml.safe_load(header), body


def header_of(facts):
    return halves(render(facts))[0]


class Outline(HTMLParser):
    """Tags and attributes of a rendered card, without those of inline text."""

    def __init__(self, card):
        super().__init__()
        self.tags, self.hrefs, self.attributes = [], [], set()
        self.feed(RENDERER.render(halves(card)[1]))

    def handle_starttag(self, tag, attrs):
        self.hrefs += [value for name, value in attrs if name == "href"]
        self.attributes |= {name for name, _ in attrs}
        if tag not in {"a", "code"}:
            self.tags.append(tag)


SIZE_PLOTS = {
    "sizes_light": "dynquant/ladder-light.svg",
    "sizes_dark": "dynquant/ladder-dark.svg",
}


def test_the_card_is_the_golden_one():
    facts = make_facts(6, variants=make_variants())
    repo_of = {variant.name: f"someone/{variant.name}" for variant in facts.variants[:-1]}
    card = render(facts, repo_id=repo_of[facts.name], repo_of=repo_of, **SIZE_PLOTS)
    assert_golden("card.md", card)


def test_the_card_of_a_local_model_without_figures_is_the_golden_one():
    layers = (make_layer("embed", costs_nats=()), make_layer("blocks.0.fc", costs_nats=()))
    formats = {layer.path: QuantFormat(4, 64) for layer in layers}
    single: dict[str, Any] = {"perplexity_se": NAN, "mean_kl_se_nats": NAN, "num_windows": 1}
    facts = make_facts(
        layers=layers,
        plan=make_plan(layers, formats=formats, predicted_kl_nats=NAN, lower_bound_nats=NAN),
        name="tiny-MLX-4.5bpw",
        source="tiny",
        source_is_repo=False,
        revision_sha="f" * 64,
        license_fields={},
        method="block_output",
        encoder="minmax",
        num_parameters=16_500,
        rows=(make_original(**single), make_uniform(**single), make_row(**single)),
        evaluation=make_text("held-out.txt", "c"),
        notes=(),
    )
    assert_golden("card-local.md", render(facts))


def test_the_hub_client_accepts_the_card():
    data: Any = ModelCard(render(make_facts())).data
    assert data.library_name == "mlx"
    assert data.pipeline_tag == "text-generation"
    assert data.base_model == "Qwen/Qwen3-0.6B"
    assert data.license == "apache-2.0"
    assert data.tags == ["mlx", "dynquant", "quantized", "mixed-precision"]
    perplexity, kl = data.eval_results
    assert (perplexity.metric_type, perplexity.metric_value) == ("perplexity", 14.2371)
    assert (kl.metric_type, kl.metric_value) == ("kl_divergence", 0.00653)
    assert perplexity.dataset_type == "Salesforce/wikitext"
    assert perplexity.dataset_config == "wikitext-2-raw-v1"
    assert perplexity.dataset_split == "test"


def test_a_local_source_is_not_called_a_base_model():
    facts = make_facts(1, source="tiny", source_is_repo=False)
    assert not {"base_model", "base_model_relation"} & header_of(facts).keys()
    assert not [href for href in Outline(render(facts)).hrefs if "huggingface.co" in href]


@pytest.mark.parametrize(
    ("fields", "header"),
    [
        ({"license": "apache-2.0, mit"}, {"license": ["apache-2.0", "mit"]}),
        ({"license": "Apache-2.0"}, {"license": "apache-2.0"}),
        ({"license": "GPL-2.0-or-later"}, {"license": "other", "license_name": "gpl-2.0-or-later"}),
        (
            {"license": "mit, LFM Open <v1.0>"},
            {"license": ["mit", "other"], "license_name": "lfm-open-v1.0"},
        ),
        (
            {"license": "nice-1", "license_name": "Nice", "license_link": "LICENSE"},
            {"license": "other", "license_name": "Nice", "license_link": "LICENSE"},
        ),
        ({"license": ""}, {}),
    ],
)
def test_a_license_is_said_in_the_ids_that_the_hub_takes(fields, header):
    written = header_of(make_facts(1, license_fields=fields))
    assert {key: value for key, value in written.items() if key.startswith("license")} == header


def test_license_fields_are_carried_over_as_far_as_known():
    fields = {
        "license": "other",
        "license_name": "qwen-research",
        "license_link": "https://example.org/LICENSE",
        "unrelated": "x",
    }
    card = render(make_facts(1, license_fields=fields))
    header, body = halves(card)
    assert {key: header[key] for key in fields if key in header} == {
        key: value for key, value in fields.items() if key != "unrelated"
    }
    assert "[https&#58;//example.org/LICENSE](https://example.org/LICENSE)" in body
    assert "names no license" in render(make_facts(1, license_fields={}))
    assert "Its text: `LICENSE`" in render(
        make_facts(1, license_fields={"license": "other", "license_link": "LICENSE"})
    )


def test_figures_that_are_not_finite_stay_out_of_the_metadata():
    rows = (make_original(), make_row(perplexity=NAN))
    (result,) = header_of(make_facts(1, rows=rows))["model-index"][0]["results"]
    assert [metric["type"] for metric in result["metrics"]] == ["kl_divergence"]
    rows = (make_original(), make_row(perplexity=NAN, mean_kl_nats=NAN))
    card = render(make_facts(1, rows=rows))
    assert "model-index" not in halves(card)[0]
    assert "nan" not in card.lower().split()


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("org/name", "org/name"),
        ("held out.txt", "held-out.txt"),
        ("模型", "text"),
        ("a/b c/d", "a-b-c-d"),
    ],
)
def test_the_evaluation_text_has_a_type_that_looks_like_a_data_set(name, kind):
    facts = make_facts(1, evaluation=make_text(name, "b"))
    (result,) = header_of(facts)["model-index"][0]["results"]
    assert result["dataset"] == {"type": kind, "name": name}


def test_a_plan_of_one_format_is_not_tagged_mixed():
    layers = (make_layer("layers.0.a"),)
    formats = {"layers.0.a": QuantFormat(4, 64)}
    facts = make_facts(layers=layers, plan=make_plan(layers, formats=formats))
    assert "mixed-precision" not in header_of(facts)["tags"]


def test_what_is_long_is_folded():
    card = render(make_facts(3, variants=make_variants()), repo_id="me/x", **SIZE_PLOTS)
    body, folded = halves(card)[1], re.findall(r"<details>.*?</details>", card, re.DOTALL)
    assert [re.findall("<summary>(.*)</summary>", each) for each in folded] == [
        ["More ways to run it"],
        ["How this was measured"],
        ["Estimates for Macs"],
        ["Caches, flags and contexts that fit"],
        ["All 22 layers"],
        ["Source, method, texts and versions"],
    ]
    for each in folded:
        body = body.replace(each, "")
    assert max(map(len, body.split("\n## "))) < 1_500
    assert len(body.splitlines()) < 100


def test_what_is_unknown_or_absent_is_left_out():
    facts = make_facts(1, rows=(make_original(num_bytes=0), make_row()), num_parameters=0)
    card = render(facts)
    assert "| Weights on disk | 336 MB |" in card
    assert "never quantized" not in card


def test_a_format_without_a_price_shows_a_dash():
    layer = make_layer("layers.0.a", formats=(QuantFormat(4, 64),), costs_nats=(0.5,))
    plan = make_plan((layer,), formats={layer.path: QuantFormat(8, 32)})
    assert "| `layers.0.a` | `8g32` | 9.0 | 8.19 K | – |" in render(
        make_facts(layers=(layer,), plan=plan)
    )


def test_chat_format_and_fallback_are_said():
    # as versions wrote it that did not count chats
    chat = TextFacts(name="c", sha256="0" * 64, num_tokens=10, window_tokens=5, chat_formatted=True)
    card = render(make_facts(1, calibration=chat, method="block_output"))
    assert "in the model's chat format" in card
    assert "fallback" in card
    assert "| Predicted cost |" in card
    assert "gradient" in render(make_facts(1, method="alignment"))


@pytest.mark.parametrize(
    ("chats", "said"),
    [
        ({"num_chats": 1_200, "num_chats_formatted": 1_200}, "1,200 of 1,200 chats through the "),
        (
            {"num_chats": 1, "num_chats_formatted": 1},
            "1 of 1 chat through the model's chat template, ",
        ),
        (
            {"num_chats": 40, "num_chats_formatted": 1, "chat_refusal": "Roles must alternate."},
            (
                "1 of 40 chats through the model's chat template, the others as plain text; the "
                "template refused: `Roles must alternate.`, sha256"
            ),
        ),
        (
            {"num_chats": 40, "num_chats_formatted": 0, "chat_refusal": "<b>no</b> | no"},
            (
                "0 of 40 chats through the model's chat template, the others as plain text; the "
                "template refused: <code>&#60;b&#62;no&#60;/b&#62; &#124; no</code>"
            ),
        ),
        ({"num_chats": 40}, "40 chats as plain text, since the model has no chat template"),
        (
            {"num_chats": 4, "num_chats_formatted": 4, "template_date": "2024-07-26"},
            "4 of 4 chats through the model's chat template with the date 2024-07-26, sha256",
        ),
    ],
)
def test_the_card_says_what_the_chat_template_made_of_the_chats(chats, said):
    text = TextFacts(name="c", sha256="0" * 64, num_tokens=10, window_tokens=5, **chats)
    assert said in render(make_facts(1, calibration=text))


def rows_of_other_sizes(card):
    section = card.split("## Other sizes")[1].split("\n## ")[0]
    return [line.split(" | ")[0].removeprefix("| ") for line in section.splitlines() if "|" in line]


def test_other_sizes_are_linked_where_they_are_published():
    facts = make_facts(1, variants=make_variants())
    names = [variant.name for variant in facts.variants]
    repo_of = {names[0]: "me/small", names[1]: "me/this", names[2]: "me/x y](http://evil)"}
    assert rows_of_other_sizes(render(facts, repo_of=repo_of))[2:] == [
        f"[{names[0]}](https://huggingface.co/me/small)",
        f"**{names[1]}**",
        names[2],
        names[3],
    ]


def test_links_lead_to_the_hub_that_the_model_is_on():
    hub_url = "http://127.0.0.1:8811"
    facts = make_facts(6, variants=make_variants())
    repo_of = {facts.variants[0].name: "me/small"}
    card = Outline(render(facts, repo_id="me/x", repo_of=repo_of, hub_url=hub_url))
    assert f"{hub_url}/{facts.source}" in card.hrefs
    assert f"{hub_url}/me/small" in card.hrefs
    assert not any("huggingface.co" in href for href in card.hrefs)


def test_one_size_has_no_others():
    for variants in ((), make_variants()[:1]):
        assert "Other sizes" not in render(make_facts(1, variants=variants), **SIZE_PLOTS)


def test_the_plot_of_sizes_is_shown_where_there_is_one():
    facts = make_facts(1, variants=make_variants())
    assert Outline(render(facts)).tags.count("picture") == 1
    card = render(facts, **SIZE_PLOTS)
    assert Outline(card).tags.count("picture") == 2
    assert 'srcset="dynquant/ladder-dark.svg"' in card
    assert 'src="dynquant/ladder-light.svg"' in card


def test_a_rung_that_was_not_measured_shows_dashes():
    variants = (make_variant(3.0, NAN, mean_kl_se_nats=NAN), make_variant(4.5, 0.0065))
    card = render(make_facts(1, variants=variants))
    assert "| Qwen3-0.6B-MLX-3.0bpw | 2.997 | 224\u00a0MB | – | – |" in card


def test_a_published_card_says_how_to_check_the_download():
    plan = "https://huggingface.co/me/x/blob/main/dynquant/plan.json"
    assert plan in Outline(render(make_facts(1), repo_id="me/x")).hrefs
    for repo_id in (None, "me/x y", "](http://evil)"):
        assert "To check a download" not in render(make_facts(1), repo_id=repo_id)


def test_a_cost_table_is_named_where_there_is_one():
    assert "dynquant/cost_table.json" in render(make_facts(1))
    assert "dynquant/cost_table.json" not in render(make_facts(1, method="alignment"))


def test_a_gated_original_is_said_to_be_gated():
    assert "Access to the original is gated" in render(make_facts(1, gated="manual"))
    assert "gated" not in render(make_facts(1))


def test_what_a_gate_asks_stays_in_the_metadata():
    fields = {"extra_gated_prompt": "You agree\n---\n# Not a heading", "extra_gated_other": 1}
    header, body = halves(render(make_facts(1, gated="auto", gated_fields=fields)))
    assert header["extra_gated_prompt"] == fields["extra_gated_prompt"]
    assert "extra_gated_other" not in header
    assert "You agree" not in body


def test_both_pictures_are_shown():
    card = render(make_facts(1))
    assert f'srcset="{DARK}"' in card
    assert f'src="{LIGHT}"' in card
    assert "picture" in Outline(card).tags


NASTY = st.sampled_from(
    [
        "<script>alert(1)</script>",
        "</code></pre><script>",
        "| a | b |",
        "`",
        "```\n# x",
        "\n---\n",
        "--- ",
        "a: b\nlicense: mit",
        "</details>",
        "<!--",
        "](javascript:alert(1))",
        "[x](javascript:y)",
        '"><img src=x onerror=y>',
        "\\",
        "\u2028\u0085\ud800\u202e",
        "{{x}}",
        "!!python/object",
        "&lt;script&gt;",
        "'; rm -rf ~",
    ]
)
TEXT = (
    st.lists(NASTY | st.text(max_size=8), min_size=1, max_size=4)
    .map("".join)
    .filter(lambda text: clean(text).strip("<> ") != "")
)


def is_repo_id(text):
    return re.fullmatch(r"[A-Za-z0-9_.-]+(/[A-Za-z0-9_.-]+)?", text) is not None


def facts_around(text):
    paths = [f"model.layers.0.{text()}", text()]
    layers = tuple(make_layer(path) for path in dict.fromkeys(paths))
    name = text()
    return make_facts(
        layers=layers,
        plan=make_plan(layers),
        name=name,
        source=text(),
        revision_sha=text(),
        model_type=text(),
        license_fields={"license": text(), "license_name": text(), "license_link": text()},
        method=text(),
        encoder=text(),
        rows=(make_original(), make_row(text()), make_row(text())),
        calibration=make_text(text(), "a"),
        evaluation=make_text(text(), "b"),
        evaluation_images=ImageFacts(name=text(), sha256="c", num_images=4),
        command=text(),
        versions={text(): text()},
        notes=(text(), text()),
        variants=(make_variant(3.5, 0.01, name=name + text()), make_variant(4.5, 0.01, name=name)),
        gated=text(),
        gated_fields={"extra_gated_prompt": text(), "extra_gated_fields": {text(): text()}},
    )


def link_of(facts):
    return clean(re.sub("[<>]", " ", facts.license_fields["license_link"]))


def test_a_license_leads_to_a_page_or_a_file_and_nowhere_else():
    for link in ("https://x.org/license", "LICENSE.md"):
        fields = {"license": "other", "license_link": link}
        assert header_of(make_facts(license_fields=fields))["license_link"] == link
    for link in ("javascript:alert(1)", "data:text/html,x", "two words"):
        fields = {"license": "other", "license_link": link}
        assert "license_link" not in header_of(make_facts(license_fields=fields))


@settings(max_examples=50)
@given(st.data())
@pytest.mark.harden("hostile models")
def test_no_text_from_outside_changes_the_structure(data):
    facts = facts_around(lambda: data.draw(TEXT))
    counter = iter(range(100))
    plain = facts_around(lambda: f"word{next(counter)}")
    repo_of = {variant.name: data.draw(TEXT) for variant in facts.variants}
    card = render(facts, repo_of=repo_of)
    card.encode()
    assert "<script" not in card.lower()
    dropped = {"extra_gated_prompt", "extra_gated_fields"} - gate(facts.gated_fields).keys()
    if not re.fullmatch(r"https?://\S+|[\w./-]+", link_of(facts), re.ASCII):
        dropped |= {"license_link"}
    if not is_repo_id(facts.source):
        dropped |= {"base_model", "base_model_relation"}
    assert header_of(facts).keys() == header_of(plain).keys() - dropped
    assert header_of(facts)["model-index"][0]["name"] == clean(re.sub("[<>]", " ", facts.name))
    hostile, benign = Outline(card), Outline(render(plain))
    if len(facts.layers) == len(plain.layers):
        assert sorted(hostile.tags) == sorted(benign.tags)
    assert all(href.startswith("https://") or "http://" in href for href in hostile.hrefs)
    assert hostile.attributes <= benign.attributes | {"class", "href"}
    assert ModelCard(card).data.to_dict()["library_name"] == "mlx"


SEEN: dict[str, Any] = {"num_images": 16, "num_image_positions": 1234}


def seeing_facts(**overrides):
    """A model with a tower, at the size of its parts."""
    facts = make_facts()
    tower = facts.num_parameters // 4
    return replace(
        facts,
        runtimes=overrides.pop("runtimes", ("mlx-vlm", "mlx-lm")),
        num_tower_parameters=tower,
        tower_bytes=2 * tower,
        cache_losses=(),  # tried in stock mlx-lm alone
        **overrides,
    )


def test_the_card_of_a_model_that_sees_tells_the_tower_apart():
    facts = seeing_facts()
    header, body = halves(render(facts, repo_id="you/m"))
    assert header["pipeline_tag"] == "image-text-to-text"
    assert f"| Language model | {facts.language_bpw:.3f} bits per weight |" in body
    assert "as in the original" in body
    assert "in stock [mlx-vlm](https://github.com/Blaizzy/mlx-vlm), with images" in body
    assert "with text alone, in stock [mlx-lm]" in body


def test_figures_on_images_stand_beside_those_on_text():
    rows = (
        make_row("Original", image_mean_kl_nats=0.0, image_mean_kl_se_nats=0.0, **SEEN),
        make_row("Uniform"),
        make_row(image_mean_kl_nats=0.0123, image_mean_kl_se_nats=0.0014, **SEEN),
    )
    images = ImageFacts(name="photos", sha256="ab", num_images=16)
    _, body = halves(render(seeing_facts(rows=rows, evaluation_images=images)))
    assert "| Mean KL on images (nats) |" in body
    last = {line.split(" | ")[0]: line.split(" | ")[-1] for line in body.splitlines()}
    assert last["| Original"] == "0 |"
    assert last["| Uniform"] == "– |"
    assert last["| **This model**"].replace("\u00a0", " ") == "0.0123 ± 0.0014 |"
    assert "the 1,234 positions behind the image in questions about 16 images" in body
    assert "images" not in halves(render(make_facts()))[1].split("## Quality")[1].split("##")[0]


def test_a_tower_of_8_bits_is_called_so():
    assert "at 8 bits" in render(seeing_facts(tower="8"))
