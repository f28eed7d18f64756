"""Pieces of pages as HTML, without a page around them."""

from __future__ import annotations

import re
from dataclasses import replace
from typing import Any
from xml.etree import ElementTree as ET

import pytest

from dynquant.hub.search import HubSearch
from dynquant.jobs.job import JobState
from dynquant.jobs.ports import JobEvent
from dynquant.quant.formats import QuantFormat
from dynquant.web import markup
from dynquant.web.bits_chart import bits_chart
from dynquant.web.finished_models import FinishedModels
from dynquant.web.pages.board_view import board_view
from dynquant.web.pages.job_view import job_view
from dynquant.web.queue_summary import summarize_queue
from dynquant.web.service import Board
from dynquant.web.sparkline import sparkline
from tests.report.card_factories import make_facts
from tests.runner.test_live_board import make_job, make_runner
from tests.waiting import wait_until
from tests.web.scene import NAMESPACE, make_family, publish


def test_each_layer_has_a_bar_as_high_as_its_bits():
    facts = make_facts(num_blocks=3)
    figure = ET.fromstring(bits_chart(facts))
    strips = {strip.findtext("code"): strip for strip in figure.findall("div")}
    assert list(strips)[:2] == ["q_proj", "k_proj"]
    assert "embed_tokens" in strips
    bars = strips["q_proj"].findall(".//rect")
    assert len(bars) == 3
    formats = [facts.plan.formats[f"model.layers.{i}.self_attn.q_proj"] for i in range(3)]
    bits = [fmt.bits + 32 / fmt.group_size for fmt in formats]
    assert [float(bar.get("height", 0)) for bar in bars] == pytest.approx(
        [40 * each / 8.5 for each in bits], rel=0.01
    )
    assert strips["q_proj"].findtext("span") == f"{sum(bits) / 3:.2f}"


def test_a_layer_that_is_left_as_it_is_sets_the_scale():
    facts = make_facts(num_blocks=2)
    formats = dict.fromkeys(facts.plan.formats, QuantFormat.from_name("4g64"))
    formats["model.embed_tokens"] = QuantFormat.from_name("unquantized")
    figure = ET.fromstring(bits_chart(replace(facts, plan=replace(facts.plan, formats=formats))))
    heights = {float(bar.get("height", 0)) for bar in figure.iter("rect")}
    assert heights == {40.0, 11.25}


def test_what_is_of_others_is_text_in_every_piece():
    evil = "<img src=x onerror=alert(1)>'\""
    job = replace(make_job(), request=replace(make_job().request, model=evil, requester=evil))
    runner = make_runner(id=evil, chip=evil, version=evil)
    board = Board(jobs=(job,), runners=(runner,), queue=summarize_queue((job,), (runner,)))
    event = JobEvent(number=1, at=job.submitted_at, kind="step", sentence=evil)
    pieces = [
        board_view(board, (), state="All", wanted=""),
        job_view(job, [event], page_url="javascript:alert(1)"),
        markup.notice(evil, evil),
        markup.table((evil,), [("",)], align="l", name=evil),
        bits_chart(make_facts(num_blocks=1, name=evil, source=evil)),
    ]
    assert all("<img" not in piece and "javascript:" not in piece for piece in pieces)
    assert all(evil not in piece for piece in pieces)


def test_the_log_names_steps_as_the_page_does():
    job = make_job()
    events = [
        JobEvent(number=i, at=job.submitted_at, kind="step", sentence=sentence)
        for i, sentence in enumerate(("Step measure begins.", "Step nonsense begins."))
    ]
    html = job_view(job, events, page_url="https://huggingface.co/org/Model")
    assert "Now: measure every layer." in html
    assert "Step nonsense begins." in html


def test_a_job_that_waits_says_for_what():
    def said(*, has_runner: bool = True, **fields: Any) -> str:
        job = replace(make_job(), state=JobState.WAITING, progress=None, **fields)
        return job_view(job, [], page_url="", has_runner=has_runner)

    assert "It is number 3 in the queue. It waits for the 2 before it." in said(position=3)
    assert "The next free runner takes it." in said(position=1)
    assert "in the inbox. No runner has been seen; it waits" in said(
        sentence="It is in the inbox.", has_runner=False
    )
    assert "No runner has been seen" not in said(
        sentence="It waits for a runner: none is running.", has_runner=False
    )


def test_a_row_has_a_header_and_its_cells_know_their_columns_where_there_is_no_header_to_see():
    html = markup.table(("Model", "Size"), [("<b>a</b>", "1 MB")], align="lr", name="Models")
    assert re.findall(r'data-name="(\w+)"', html) == ["Size"]
    row = ET.fromstring(html).find(".//tbody/tr")
    assert row is not None
    assert row.findtext("th[@scope='row']/b") == "a"
    assert row.findtext("td") == "1 MB"


def test_nobody_waits_for_the_list_of_finished_models(hub, pauses):
    publish(hub, make_family()[0])
    finished_models = FinishedModels(
        HubSearch(endpoint=hub.url, token=False, sleep=pauses.append), namespace=NAMESPACE
    )
    assert finished_models.known() == ()
    wait_until(finished_models.known)
    assert [each.repo_id for each in finished_models.known()] == ["quants/Qwen3-0.6B-MLX-3.5bpw"]


def test_a_plot_that_has_no_figure_is_none():
    variant = make_family()[0].variants[0]
    assert sparkline([replace(variant, mean_kl_nats=float("nan"))]) == ""
    assert sparkline([]) == ""
