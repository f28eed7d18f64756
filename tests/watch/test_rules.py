from __future__ import annotations

from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dynquant.model.candidate import SOURCES, Candidate
from dynquant.watch.config import WatchConfig
from dynquant.watch.rules import decide, may_cover
from dynquant.watch.skips import Skip
from tests.watch.factories import NOW, make_candidate, make_config, make_rule

TAGS = ("safetensors", "qwen3", "license:apache-2.0")


def skip_of(candidate: Candidate, config: WatchConfig | None = None) -> Skip | None:
    return decide(candidate, config or make_config(), now=NOW).skip


def test_a_plain_new_model_is_taken_by_the_first_rule_that_matches():
    config = make_config(make_rule("other", authors=("else",)), make_rule("a"), make_rule("b"))
    decision = decide(make_candidate(), config, now=NOW)
    assert (decision.rule, decision.skip) == ("a", None)
    assert decision.others == (("other", Skip.NOT_COVERED),)
    assert decision.sentence == "Rule 'a' takes it."


@pytest.mark.parametrize(
    ("overrides", "skip"),
    [
        ({"private": True}, Skip.PRIVATE),
        ({"disabled": True}, Skip.DISABLED),
        ({"opted_out": True}, Skip.OPTED_OUT),
        ({"tags": (*TAGS, "no-quantize")}, Skip.OPTED_OUT),
        ({"tags": (*TAGS, "dynquant:false")}, Skip.OPTED_OUT),
        ({"tags": (*TAGS, "mlx", "dynquant")}, Skip.OWN_RESULT),
        ({"tags": (*TAGS, "base_model:quantized:org/Base")}, Skip.QUANT),
        ({"tags": (*TAGS, "GGUF")}, Skip.QUANT),
        ({"tags": (*TAGS, "awq")}, Skip.QUANT),
        ({"tags": (*TAGS, "gptq")}, Skip.QUANT),
        ({"tags": (*TAGS, "exl2")}, Skip.QUANT),
        ({"tags": (*TAGS, "4-bit")}, Skip.QUANT),
        ({"library": "mlx"}, Skip.QUANT),
        ({"form": "GPTQ"}, Skip.QUANT),
        ({"form": "MLX"}, Skip.QUANT),
        ({"tags": (*TAGS, "fp8")}, Skip.QUANT),
        ({"tags": (*TAGS, "base_model:quantized:org/Base", "fp8"), "form": "float8"}, Skip.QUANT),
        ({"tags": (*TAGS, "lora")}, Skip.ADAPTER),
        ({"tags": (*TAGS, "base_model:adapter:org/Base")}, Skip.ADAPTER),
        ({"library": "peft"}, Skip.ADAPTER),
        (
            {"files": ("adapter_config.json", "adapter_model.safetensors"), "weights": ()},
            Skip.ADAPTER,
        ),
        ({"tags": ("license:mit",)}, Skip.NO_SAFETENSORS),
        ({"files": ("x.safetensors",), "weights": ()}, Skip.NO_SAFETENSORS),
        ({"weights": ("model-00001-of-00002.safetensors",)}, Skip.INCOMPLETE),
        ({"num_parameters": None}, Skip.UNKNOWN_SIZE),
        ({"num_parameters": 5_000_000}, Skip.TOY),
        ({"num_parameters": 0}, Skip.TOY),
        ({"tags": ("safetensors", "license:cc-by-nd-4.0")}, Skip.NO_DERIVATIVES),
        ({"tags": ("safetensors", "license:cc-by-nc-nd-3.0")}, Skip.NO_DERIVATIVES),
        ({"tags": (*TAGS, "license:cc-by-nd-4.0")}, Skip.NO_DERIVATIVES),
    ],
)
def test_fixed_limits_hold_for_every_rule(overrides, skip):
    taking_everything = make_rule(gated=True, unknown_license=True, pipeline_tags=())
    assert skip_of(make_candidate(**overrides), make_config(taking_everything)) is skip


@pytest.mark.parametrize(
    "name",
    [
        "M-GGUF",
        "M-AWQ",
        "M-gptq-int4",
        "M-4bit",
        "M-4.5bpw-exl2",
        "M-MLX-8bit",
        "M-Q4_K_M",
        "M-fp8",
    ],
)
def test_the_name_of_a_quant_gives_it_away(name):
    assert skip_of(make_candidate(f"org/{name}")) is Skip.QUANT


@pytest.mark.parametrize(
    "name", ["Qwen3-8B", "phi-1_5", "gemma-3-4b-it", "OLMo-2-0425-1B", "Mixtral-8x7B", "int-model"]
)
def test_ordinary_names_are_not_taken_for_those_of_quants(name):
    assert skip_of(make_candidate(f"org/{name}")) is None


@pytest.mark.parametrize(
    ("form", "tags"),
    [
        ("float8", ("fp8", "8-bit")),
        ("MXFP4", ("mxfp4", "8-bit")),
        ("compressed-tensors", ("compressed-tensors", "4-bit")),
        ("NVIDIA ModelOpt", ("modelopt",)),
    ],
)
def test_an_original_in_low_precision_is_taken_whatever_tags_the_hub_gives_it(form, tags):
    assert skip_of(make_candidate(form=form, tags=(*TAGS, *tags))) is None
    assert skip_of(as_listed(make_candidate(tags=(*TAGS, *tags)))) is None


@pytest.mark.parametrize("entry", ["Org", "org/model-8b"])
def test_the_opt_out_list_names_owners_and_repos_in_any_case(entry):
    config = make_config(opt_out=(entry,))
    assert skip_of(make_candidate(), config) is Skip.OPTED_OUT
    assert not may_cover("org/Model-8B", config)


@pytest.mark.parametrize(
    ("rule", "overrides", "skip"),
    [
        ({"authors": ("else",)}, {}, Skip.NOT_COVERED),
        ({"authors": ("ORG",)}, {}, None),
        ({"search": "instruct"}, {}, Skip.NOT_COVERED),
        ({"search": "MODEL"}, {}, None),
        ({"tags": ("chat",)}, {}, Skip.NOT_COVERED),
        ({"tags": ("qwen3",)}, {}, None),
        ({"without_tags": ("qwen3",)}, {}, Skip.NOT_COVERED),
        ({"pipeline_tags": ("fill-mask",)}, {}, Skip.NOT_COVERED),
        ({}, {"pipeline_tag": ""}, Skip.NOT_COVERED),
        ({"pipeline_tags": ()}, {"pipeline_tag": ""}, None),
        ({"architectures": ("LlamaForCausalLM",)}, {}, Skip.NOT_COVERED),
        ({"architectures": ("Qwen3ForCausalLM",)}, {}, None),
        ({"architectures": ("qwen3",)}, {}, None),
        ({"sources": ("low-precision",)}, {}, Skip.NOT_COVERED),
        ({"sources": ("low-precision",)}, {"form": "float8"}, None),
        ({"sources": ("full-precision",)}, {}, None),
        ({"sources": ("full-precision",)}, {"form": "MXFP4"}, Skip.NOT_COVERED),
        ({}, {"gated": "auto"}, Skip.GATED),
        ({"gated": True}, {"gated": "manual"}, None),
        ({"min_parameters": 9 * 10**9}, {}, Skip.TOO_SMALL),
        ({"max_parameters": 7 * 10**9}, {}, Skip.TOO_LARGE),
        ({"max_parameters": 8 * 10**9, "min_parameters": 8 * 10**9}, {}, None),
        ({"licenses": ("mit",)}, {}, Skip.LICENSE_REFUSED),
        ({"licenses": ("Apache-2.0",)}, {}, None),
        ({"licenses_refused": ("apache-2.0",)}, {}, Skip.LICENSE_REFUSED),
        ({}, {"tags": ("safetensors",)}, Skip.LICENSE_UNKNOWN),
        ({}, {"tags": ("safetensors", "license:other")}, Skip.LICENSE_UNKNOWN),
        ({"unknown_license": True}, {"tags": ("safetensors",)}, None),
        ({"max_age_hours": 1}, {}, Skip.TOO_OLD),
        ({"min_age_hours": 3}, {}, Skip.TOO_YOUNG),
        ({"min_age_hours": 2, "max_age_hours": 2}, {}, None),
        ({"min_likes": 1}, {}, Skip.TOO_UNKNOWN),
        ({"min_downloads": 1}, {}, Skip.TOO_UNKNOWN),
        ({"min_trending": 0.5}, {"trending_score": 0.4}, Skip.TOO_UNKNOWN),
        ({"min_likes": 1, "min_downloads": 2}, {"likes": 1, "downloads": 2}, None),
    ],
)
def test_every_criterion_of_a_rule_counts(rule, overrides, skip):
    assert skip_of(make_candidate(**overrides), make_config(make_rule(**rule))) is skip


def test_the_reason_is_that_of_the_first_rule_which_speaks_of_such_models():
    config = make_config(
        make_rule("else", authors=("else",)),
        make_rule("small", max_parameters=10**9),
        make_rule("popular", min_likes=50),
    )
    decision = decide(make_candidate(), config, now=NOW)
    assert (decision.rule, decision.skip) == ("small", Skip.TOO_LARGE)
    assert decision.others == (
        ("else", Skip.NOT_COVERED),
        ("small", Skip.TOO_LARGE),
        ("popular", Skip.TOO_UNKNOWN),
    )


def test_every_reason_is_explained_in_a_sentence():
    for sentence in (skip.sentence for skip in Skip):
        assert sentence[0].isupper()
        assert sentence.endswith(".")


words = st.sampled_from(
    ["qwen3", "gguf", "fp8", "lora", "chat", "safetensors", "dynquant", "no-quantize"]
)
licenses = st.sampled_from(["mit", "other", "cc-by-nd-4.0", "apache-2.0"])
tags = st.tuples(
    st.lists(words, max_size=3), st.lists(licenses.map("license:".__add__), max_size=2)
).map(lambda parts: ("safetensors", *parts[0], *parts[1]))
sizes = st.sampled_from([None, 10**6, 10**9, 8 * 10**9, 70 * 10**9])
candidates = st.builds(
    make_candidate,
    st.sampled_from(["org/Model-8B", "org/M-GGUF", "else/Tiny"]),
    tags=tags,
    num_parameters=sizes,
    model_type=st.sampled_from(["qwen3", "llama"]),
    architectures=st.just(()),
    gated=st.sampled_from(["", "auto"]),
    private=st.booleans(),
    opted_out=st.booleans(),
    form=st.sampled_from(["", "float8", "GPTQ"]),
    likes=st.integers(0, 3),
    weights=st.sampled_from([(), ("model.safetensors",), ("model-00001-of-00002.safetensors",)]),
    created_at=st.integers(0, 100).map(lambda hours: NOW - timedelta(hours=hours)),
)
rules = st.builds(
    make_rule,
    st.sampled_from(["a", "b", "c"]),
    authors=st.sampled_from([(), ("org",)]),
    architectures=st.sampled_from([(), ("qwen3",)]),
    min_parameters=st.sampled_from([0, 10**9]),
    max_parameters=st.sampled_from([None, 10**10]),
    licenses=st.sampled_from([(), ("mit",)]),
    unknown_license=st.booleans(),
    gated=st.booleans(),
    min_likes=st.integers(0, 2),
    sources=st.sampled_from([SOURCES, SOURCES[:1], SOURCES[1:]]),
    max_age_hours=st.sampled_from([None, 48]),
    min_age_hours=st.sampled_from([0, 2]),
)
configs = st.lists(rules, min_size=1, max_size=3, unique_by=lambda rule: rule.name).map(
    lambda found: make_config(*found)
)


def as_listed(candidate: Candidate) -> Candidate:
    """The same model as a list entry of the Hub."""
    unlisted: dict[str, Any] = {
        "model_type": "",
        "architectures": (),
        "opted_out": False,
        "form": "",
        "files": None,
        "weights": (),
        "fingerprint": "",
    }
    return replace(candidate, **unlisted)


@settings(max_examples=500)
@given(candidate=candidates, config=configs)
def test_what_a_list_rules_out_is_ruled_out_with_everything_known_too(candidate, config):
    if decide(as_listed(candidate), config, now=NOW).skip is not None:
        assert decide(candidate, config, now=NOW).skip is not None


@settings(max_examples=500)
@given(candidate=candidates, config=configs)
def test_the_first_rule_that_takes_a_model_alone_takes_it_among_others(candidate, config):
    alone = [
        rule.name
        for rule in config.rules
        if decide(candidate, make_config(rule), now=NOW).skip is None
    ]
    decision = decide(candidate, config, now=NOW)
    assert (decision.skip is None) == bool(alone)
    if alone:
        assert decision.rule == alone[0]


@settings(max_examples=300)
@given(candidate=candidates, config=configs)
def test_nothing_that_is_covered_only_by_name_is_ever_taken(candidate, config):
    if not may_cover(candidate.repo_id, config):
        assert decide(candidate, config, now=NOW).skip is not None


def test_the_documentation_explains_every_reason():
    page = (Path(__file__).parents[2] / "docs" / "watcher.md").read_text(encoding="utf-8")
    for skip in Skip:
        assert f"| `{skip}` | {skip.sentence} |" in page
