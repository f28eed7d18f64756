from __future__ import annotations

import dataclasses

from dynquant.report.facts import SizeVariant
from dynquant.report.finished_files import BITS, CARD, LADDER, PLAN, REPORT, card, file_contents
from tests.report.card_factories import make_facts


def with_ladder():
    facts = make_facts()
    rungs = tuple(
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
    return dataclasses.replace(facts, ladder=rungs)


def test_every_picture_and_paper_that_a_card_names_is_there():
    found = file_contents(with_ladder(), None)
    assert {CARD, PLAN, REPORT, *BITS, *LADDER} == set(found)
    for name in (*BITS, *LADDER):
        assert name in found[CARD]
        assert found[name].startswith("<svg")
    assert found[BITS[0]] != found[BITS[1]]


def test_a_model_alone_has_no_picture_of_a_ladder():
    assert set(file_contents(make_facts(), None)).isdisjoint(LADDER)


def test_what_marks_a_folder_as_ours_comes_after_everything_but_the_card():
    assert list(file_contents(with_ladder(), None))[-2:] == [PLAN, CARD]


def test_a_published_card_links_the_other_sizes():
    said = card(with_ladder(), repo_id="you/mine", repo_of={"Other-MLX-6.0bpw": "you/other"})
    assert "https://huggingface.co/you/other" in said
    assert "you/mine" in said
