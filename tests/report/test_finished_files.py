from __future__ import annotations

import dataclasses

from dynquant.report.facts import SizeVariant
from dynquant.report.finished_files import BITS, CARD, PLAN, REPORT, SIZE_PLOTS, card, file_contents
from tests.report.card_factories import make_facts


def with_variants():
    facts = make_facts()
    variants = tuple(
        SizeVariant(
            name=name,
            target_bpw=bpw,
            stored_bpw=bpw,
            num_bytes=round(bpw * 10**6),
            mean_kl_nats=0.1 / bpw,
            mean_kl_se_nats=0.001,
            top1_agreement=0.9,
        )
        for name, bpw in ((facts.name, 4.5), ("Other-MLX-6.0bpw", 6.0))
    )
    return dataclasses.replace(facts, variants=variants)


def test_every_picture_and_paper_that_a_card_names_is_there():
    found = file_contents(with_variants(), None)
    assert {CARD, PLAN, REPORT, *BITS, *SIZE_PLOTS} == set(found)
    for name in (*BITS, *SIZE_PLOTS):
        assert name in found[CARD]
        assert found[name].startswith("<svg")
    assert found[BITS[0]] != found[BITS[1]]


def test_a_model_alone_has_no_plot_of_sizes():
    assert set(file_contents(make_facts(), None)).isdisjoint(SIZE_PLOTS)


def test_what_marks_a_folder_as_ours_comes_after_everything_but_the_card():
    assert list(file_contents(with_variants(), None))[-2:] == [PLAN, CARD]


def test_a_published_card_links_the_other_sizes():
    said = card(with_variants(), repo_id="you/mine", repo_of={"Other-MLX-6.0bpw": "you/other"})
    assert "https://huggingface.co/you/other" in said
    assert "you/mine" in said
