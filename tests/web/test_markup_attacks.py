"""Texts from outside that are scripts, wherever they stand on a page: none runs in Chromium."""

from __future__ import annotations

import gc
import json
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote

import httpx2
import pytest
from playwright.sync_api import Browser, Page, expect

from dynquant.errors import RequestError
from dynquant.jobs.job import JobState, PublishedRepo
from dynquant.jobs.job_text import job_to_text
from dynquant.report.facts import ModelFacts
from dynquant.web.remote_jobs import RemoteJobs
from dynquant.web.settings import WebSettings
from dynquant.web.snapshots import Snapshots
from dynquant.web.space_watch import SpaceWatch
from tests.fakes import FakeRepos
from tests.report.card_factories import make_facts, make_layer, make_layers, make_plan, make_text
from tests.runner.test_live_board import make_job
from tests.web.browser import PATIENCE_MSECS, settled
from tests.web.scene import SAMPLE, Field, opened, publish
from tests.web.test_boards import make_board, places, with_value
from tests.web.test_remote_jobs import FakeInbox

pytestmark = [pytest.mark.browser, pytest.mark.hub, pytest.mark.harden("web")]

SECRET = "a-secret-canary-of-the-space"
IMAGE = "<img src=x onerror=ran.push(1)>"
EVIL = (
    f"{IMAGE}<svg onload=ran.push(2)><script>ran.push(3)</script>'\"></title></style></script>"
    f'[go](javascript:ran.push(4)) <javascript:ran.push(4)> ![p](x" onerror="ran.push(5)) '
    "<iframe srcdoc='<script>parent.ran.push(6)</script>'></iframe>{{ran.push(7)}}${ran.push(8)}"
)
_FOUND = "[onerror], [onload], iframe[srcdoc], a[href^='javascript:' i]"
_CONTROL = "document.body.insertAdjacentHTML('beforeend', '<img src=y onerror=ran.push(0)>')"


@dataclass
class Attacked:
    """A Space whose every text is an attack."""

    field: Field
    num_texts: int
    jobs: tuple[str, ...]


def evil_board(board: dict[str, Any]) -> tuple[dict[str, Any], int]:
    """A board with the attack in every place that takes any text, and how many there are."""
    num_texts = 0
    for path in list(places(board)):
        value: Any = board
        for name in path:
            value = value[name]
        if not isinstance(value, str) or path[-1] in {"id", "job_id"}:
            continue
        for attack in (EVIL, IMAGE):
            with suppress(RequestError):
                changed = with_value(board, path, attack)
                Snapshots().take(json.dumps(changed).encode())
                board, num_texts = changed, num_texts + 1
                break
    return board, num_texts


def evil_facts() -> ModelFacts:
    """The artefacts of a published model, with the attack in their texts."""
    layers = (*make_layers(2), make_layer(f"model.layers.0.{IMAGE}.q_proj", (1024, 1024)))
    return make_facts(
        name="Evil-MLX-4.5bpw",
        source=EVIL,
        source_is_repo=False,
        model_type=EVIL,
        license_fields={"license": "other", "license_name": EVIL, "license_link": EVIL},
        layers=layers,
        plan=make_plan(layers),
        method=EVIL,
        encoder=EVIL,
        calibration=make_text(EVIL, "a"),
        evaluation=make_text(EVIL, "b"),
        command=EVIL,
        versions={EVIL: EVIL},
        notes=(EVIL,),
        variants=(),
    )


def fill(field: Field) -> Attacked:
    """Post the board, with one more job whose model is there."""
    repo = publish(field.hub, evil_facts())
    board, num_texts = evil_board(make_board())
    results = (PublishedRepo(repo_id=repo.repo_id, commit_sha=repo.commit_sha),)
    at = make_job().submitted_at
    job = make_job("b0", state=JobState.PUBLISHED, started_at=at, ended_at=at, results=results)
    board["jobs"].append(json.loads(job_to_text(job)))
    headers = {"Authorization": f"Bearer {SECRET}"}
    answer = httpx2.post(f"{field.url}/runner/board", json=board, headers=headers)
    assert answer.status_code in {200, 204}
    config = json.loads((SAMPLE / "config.json").read_text())
    files: dict[str, Any] = {path.name: path for path in SAMPLE.iterdir()}
    card = f"---\nlicense: other\nlicense_name: {json.dumps(EVIL)}\n---\n{EVIL}"
    field.hub.add("evil/licensed-sample", {**files, "README.md": card.encode()})
    strange = {"config.json": json.dumps(config | {"model_type": EVIL}).encode()}
    field.hub.add("evil/alien-sample", {**files, **strange})
    field.hub.add(f"evil/{IMAGE}-sample", files)
    field.hub.add(f"evil/{IMAGE}-MLX-4bit", files)
    return Attacked(field, num_texts, tuple(each["id"] for each in board["jobs"]))


@pytest.fixture(scope="module")
def attacked(tmp_path_factory) -> Iterator[Attacked]:
    snapshots = Snapshots()
    with opened(
        tmp_path_factory.mktemp("attacked"),
        settings=WebSettings(is_space=True),
        jobs=RemoteJobs(FakeInbox(), snapshots, FakeRepos()),
        space_watch=SpaceWatch(snapshots),
        snapshots=snapshots,
        space_secret=SECRET,
    ) as field:
        yield fill(field)
    gc.collect()  # the loops that Gradio left, while their warnings are still ignored


@pytest.fixture
def visitor(browser: Browser) -> Iterator[Page]:
    """A visitor in whose pages every script that runs leaves a mark."""
    context = browser.new_context()
    context.add_init_script("window.ran = [];")
    context.set_default_timeout(PATIENCE_MSECS)
    yield context.new_page()
    context.close()


def nothing_ran(page: Page) -> bool:
    """Whether no attack became a part of the page, and none has run before one of our own does."""
    assert page.locator(_FOUND).evaluate_all("found => found.map(e => e.outerHTML)") == []
    page.evaluate(_CONTROL)
    page.wait_for_function("window.ran.includes(0)")
    return page.evaluate("window.ran") == [0]


def test_the_board_takes_the_attack_in_most_of_its_texts(attacked):
    assert attacked.num_texts > 25


@pytest.mark.parametrize("path", ["board", "watcher", "gallery"])
def test_no_text_of_a_board_runs(attacked, visitor, path):
    settled(visitor, f"{attacked.field.url}/{path}")
    expect(visitor.locator("body")).to_contain_text("onerror=ran.push(1)")
    assert nothing_ran(visitor)


def test_no_text_of_a_job_its_log_its_figures_or_its_card_runs(attacked, visitor):
    for job in attacked.jobs:
        settled(visitor, f"{attacked.field.url}/job?job={job}")
        place = visitor.locator("#dq-job .dq-tag")
        expect(place).to_be_visible()
        if job == "b0":
            visitor.get_by_role("button", name="The card").click()
            expect(visitor.locator("#dq-card")).to_contain_text("ran.push(3)")
            visitor.get_by_text("Stored bits per weight").first.wait_for()
        assert nothing_ran(visitor), job


@pytest.mark.parametrize(
    ("model", "shown"),
    [
        ("evil/licensed-sample", "ran.push(3)"),
        ("evil/alien-sample", "cannot be converted"),
        (EVIL, "cannot be converted"),
        (f"evil/{IMAGE}-sample", "cannot be converted"),
    ],
)
def test_no_text_of_a_model_runs(attacked, visitor, model, shown):
    settled(visitor, attacked.field.url)
    visitor.get_by_label("Model", exact=True).fill(model)
    visitor.keyboard.press("Enter")
    expect(visitor.locator(".dq-page")).to_contain_text(shown)
    assert nothing_ran(visitor)


def test_no_name_that_is_offered_and_no_text_of_the_form_runs(attacked, visitor):
    settled(visitor, attacked.field.url)
    visitor.get_by_label("Model", exact=True).press_sequentially("evil", delay=40)
    expect(visitor.get_by_role("option").filter(has_text="onerror").first).to_be_visible()
    assert nothing_ran(visitor)
    settled(visitor, attacked.field.url)
    visitor.get_by_label("Model", exact=True).fill("evil/licensed-sample")
    visitor.keyboard.press("Enter")
    visitor.get_by_role("button", name="Advanced").click()
    visitor.get_by_label("Several sizes at once").fill(EVIL)
    expect(visitor.get_by_role("alert")).to_be_visible()
    assert nothing_ran(visitor)


@pytest.mark.parametrize(
    "address",
    [
        "job?job={}",
        "board?state={}&words={}",
        "?job={}",
        "?deep_link={}",
        "?__theme={}",
        "?view={}",
        "?view=api&x={}",
        "gallery?{}",
        "{}",
        "live/board?words={}",
        "live/job?job={}",
        "gradio_api/{}",
        "gradio_api/info?{}",
    ],
)
def test_no_text_of_an_address_runs(attacked, visitor, address):
    visitor.goto(f"{attacked.field.url}/{address.replace('{}', quote(EVIL, safe=''))}")
    visitor.wait_for_load_state("load")
    assert nothing_ran(visitor)
