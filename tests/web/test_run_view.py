"""How to run a model, on the page of its job."""

from __future__ import annotations

from dataclasses import replace

import pytest
from playwright.sync_api import expect

from dynquant.jobs.job import JobState, Outcome, PublishedRepo, StepProgress
from dynquant.web.pages.result import card_of
from dynquant.web.pages.run_view import run_view
from tests.report.card_factories import make_facts
from tests.runner.test_live_board import make_job
from tests.web.browser import settled
from tests.web.scene import make_family

pytestmark = [pytest.mark.browser, pytest.mark.hub]


def test_a_model_on_hugging_face_opens_in_lm_studio():
    html = run_view(make_facts(1), "me/x", hub_url="https://huggingface.co/")
    assert 'href="lmstudio://open_from_hf?model=me/x">Open in LM Studio</a>' in html
    assert "<code>lms get https://huggingface.co/me/x</code>" in html


def test_the_name_of_a_model_is_text_in_its_lines():
    evil = "me/<img src=x onerror=alert(1)>"
    html = run_view(make_facts(1), evil, hub_url="https://huggingface.co/")
    assert "<img" not in html
    assert "lmstudio:" not in html


def test_a_card_on_the_page_has_no_link_that_gradio_would_break():
    repo = PublishedRepo(repo_id="me/x", commit_sha="c0ffee")
    job = replace(make_job(), state=JobState.PUBLISHED, results=(repo,))
    text = card_of(make_facts(1), job, hub_url="https://huggingface.co")
    assert "lms get https://huggingface.co/me/x" in text
    assert "lmstudio:" not in text
    assert "LM Studio](" not in text


@pytest.mark.parametrize("width", [1280, 390], ids=["desktop", "phone"])
def test_a_line_is_copied_by_its_button(field, browser, width):
    job_id = field.submit(targets_bpw=(3.5,), model=f"org/Run{width}")
    session = field.run(job_id, StepProgress(step="publish"))
    results = field.publish(make_family(f"org/Run{width}")[:1])
    field.end(job_id, Outcome(state=JobState.PUBLISHED, results=results), session=session)
    context = browser.new_context(viewport={"width": width, "height": 844})
    context.grant_permissions(["clipboard-read", "clipboard-write"])
    page = context.new_page()
    settled(page, f"{field.url}/job?job={job_id}")
    button = page.get_by_role("button", name="Copy: Chat in a terminal")
    button.click()
    expect(button).to_have_text("Copied")
    copied = page.evaluate("navigator.clipboard.readText()")
    assert copied == f"HF_ENDPOINT={field.hub.url} mlx_lm.chat --model {results[0].repo_id}"
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    context.close()
