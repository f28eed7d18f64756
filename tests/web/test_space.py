"""A Space as people meet it: a process of its own, visitors who sign in, runners elsewhere."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime

import pytest
import requests
from gradio_client.exceptions import AppError
from playwright.sync_api import Page, expect

from dynquant.jobs.job import Job, JobState, PublishedRepo, StepProgress
from dynquant.jobs.request import JobRequest
from tests.waiting import PATIENCE_SECS
from tests.web.browser import settled
from tests.web.scene import SOURCE, make_family, publish
from tests.web.space import SECRET, Space, asking, opened_space, visiting

pytestmark = [pytest.mark.browser, pytest.mark.hub]


@pytest.fixture(scope="module")
def space(tmp_path_factory) -> Iterator[Space]:
    with opened_space(tmp_path_factory.mktemp("space")) as space:
        yield space


def ask_for(page: Page, space: Space, bpw: float) -> str:
    settled(page, space.url)
    page.get_by_label("Model", exact=True).fill(SOURCE)
    page.keyboard.press("Enter")
    number = page.locator("#dq-bpw input[type=number]")
    number.fill(str(bpw))
    number.press("Enter")
    expect(page.locator(".dq-tiles dd").first).to_contain_text(f"{bpw:g}")
    page.get_by_role("button", name="Convert").click()
    page.wait_for_url(re.compile(r"/job\?job=[0-9a-f]{20}$"))
    return page.url.rpartition("=")[2]


def job_of(request: JobRequest, job_id: str, **fields) -> Job:
    job = Job(id=job_id, request=request, recipe_version=1, submitted_at=datetime.now(UTC))
    return replace(job, **fields)


def test_who_has_not_signed_in_looks_and_is_told_to_sign_in(space, browser):
    with visiting(browser, space) as page:
        page.get_by_label("Model", exact=True).fill(SOURCE)
        page.keyboard.press("Enter")
        expect(page.locator(".dq-card h2")).to_have_text(SOURCE)
        page.get_by_role("button", name="Convert").click()
        expect(page.get_by_role("alert")).to_contain_text("Sign in with Hugging Face first")


def test_a_signed_in_visitor_asks_watches_and_copies_what_came_of_it(space, browser):
    with visiting(browser, space, "ann") as page:
        job_id = ask_for(page, space, 4.6)
        expect(page.locator("#dq-job")).to_contain_text("in the inbox")
        request = space.request()
        assert (request.requester, request.destination) == ("ann", "quants")
        assert "hf_ann" not in repr(request)

        running = job_of(
            request,
            job_id,
            state=JobState.RUNNING,
            runner="mac-studio",
            progress=StepProgress(step="measure", fraction=0.3),
        )
        assert space.post(running) == 204
        expect(page.get_by_role("progressbar", name="Measure every layer")).to_have_attribute(
            "aria-valuenow", "30"
        )

        space.restart()
        assert space.post(running) == 204
        expect(page.locator(".dq-now")).to_contain_text("Measure every layer")

        repo = publish(space.hub, make_family("team/sample-2m")[1])
        results = (PublishedRepo(repo_id=repo.repo_id, commit_sha=repo.commit_sha),)
        assert (
            space.post(
                replace(
                    running, state=JobState.PUBLISHED, results=results, ended_at=datetime.now(UTC)
                )
            )
            == 204
        )
        expect(page.locator("#dq-job .dq-tag")).to_have_text("Published")
        page.get_by_role("button", name="Copy to my account").click()
        expect(page.get_by_text("Copied")).to_be_visible()
        assert ("model", f"ann/{repo.repo_id.rpartition('/')[2]}") in space.hub.repos


@pytest.mark.harden("web")
def test_a_job_of_somebody_else_cannot_be_cancelled_by_page_or_by_api(space, browser):
    with visiting(browser, space, "ann") as ann, visiting(browser, space, "bob") as bob:
        job_id = ask_for(ann, space, 4.7)
        settled(bob, f"{space.url}/job?job={job_id}")
        expect(bob.locator("#dq-job .dq-tag")).to_have_text("Waiting")
        expect(bob.get_by_role("button", name="Cancel this job")).to_have_count(0)
        for token in (None, "hf_forged", "hf_bob"):
            with (
                asking(space, token) as client,
                pytest.raises(AppError, match=r"Sign in|belongs to another account"),
            ):
                client.predict(job_id, api_name="/cancel")
        ann.get_by_role("button", name="Cancel this job").click()
        ann.get_by_role("button", name="Really cancel it?").click()
        expect(ann.locator("#dq-job .dq-tag")).to_have_text("Cancelled")


@pytest.mark.harden("web")
def test_strangers_do_not_see_what_the_space_may_read(space):
    wanted = {"model": SOURCE, "bits_per_weight": [4.8]}
    with asking(space, "hf_ann") as client:
        with pytest.raises(AppError, match="no model 'quants/secret' on the Hub, or it is private"):
            client.predict("quants/secret", [4.5], api_name="/plan")
        with pytest.raises(AppError, match="Models are published to 'quants' here"):
            client.predict(**wanted, destination="ann", api_name="/submit")
        with pytest.raises(AppError, match="private copy in your account"):
            client.predict(**wanted, private=True, api_name="/submit")


@pytest.mark.harden("web")
def test_only_runners_with_the_secret_post_boards(space):
    assert space.post(secret="guess-guess-guess-guess") == 401
    url = f"{space.url}/runner/board"
    headers = {"Authorization": f"Bearer {SECRET}"}
    assert requests.post(url, data=b"{}", headers=headers, timeout=PATIENCE_SECS).status_code == 422
    assert (
        requests.post(
            url, data=bytes(5_000_000), headers=headers, timeout=PATIENCE_SECS
        ).status_code
        == 413
    )
