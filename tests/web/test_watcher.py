"""The watcher in the pages, and what the Hub posts to them."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta

import pytest
import requests
from playwright.sync_api import expect

from app import make_app
from dynquant.errors import RequestError
from dynquant.settings import Settings
from dynquant.watch.status import WatchAct
from dynquant.web.settings import WebSettings
from dynquant.web.sign_in import Visitor
from tests.waiting import PATIENCE_SECS, wait_until
from tests.watch.scene import add_model, model_files
from tests.watch.test_webhook import body
from tests.web.browser import settled
from tests.web.scene import WEBHOOK_SECRET, Field, opened

pytestmark = [pytest.mark.browser, pytest.mark.hub]

RULES = """
rules:
  - {name: big, authors: [org], max_parameters: 15B, licenses: [apache-2.0], bpw: [3.5, 4.5],
     destination: quants, hours_per_day: 8}
  - {name: "macs", search: <b>, memory: [16GB, 32GB], destination: "quants/{model}-{bpw}"}
"""


@pytest.fixture(scope="module")
def field(tmp_path_factory) -> Iterator[Field]:
    """The pages on one's own machine, with rules."""
    with opened(tmp_path_factory.mktemp("watched"), rules=RULES) as field:
        now = datetime.now(UTC)
        add_model(field.hub, "org/New", now - timedelta(minutes=9))
        add_model(field.hub, "org/Closed", now - timedelta(minutes=9), gated="auto")
        alien = model_files(config={"model_type": "alien"})
        add_model(field.hub, "org/Alien", now - timedelta(minutes=9), alien)
        yield field


def post(field: Field, content: bytes, secret: str = WEBHOOK_SECRET) -> requests.Response:
    headers = {"X-Webhook-Secret": secret, "Content-Type": "application/json"}
    return requests.post(
        f"{field.url}/webhooks/hub", data=content, headers=headers, timeout=PATIENCE_SECS
    )


def models(field: Field) -> list[str]:
    return [job.request.model for job in field.board.list()]


def test_an_operator_begins_a_sweep_and_sees_what_it_queued_and_skipped(field, page):
    settled(page, f"{field.url}/watcher")
    view = page.locator("#dq-watcher")
    expect(view).to_contain_text("No sweep yet")
    expect(view).to_contain_text("by org · text-generation, image-text-to-text, audio-text-to-text")
    expect(view).to_contain_text("up to 15.0 B parameters")
    expect(view).to_contain_text("the largest quants for 16 GB and 32 GB")
    expect(view).to_contain_text("'<b>' in the name")
    page.get_by_role("button", name="Sweep now").click()
    expect(view.get_by_role("region", name="Reasons to skip")).to_contain_text("unsupported")
    assert models(field) == ["org/New"]
    expect(view).to_contain_text("It has an architecture that mlx-lm does not know.")
    expect(view.get_by_role("link", name="org/Alien")).to_have_attribute(
        "href", f"{field.hub.url}/org/Alien"
    )
    page.set_viewport_size({"width": 390, "height": 844})
    assert page.evaluate("document.documentElement.scrollWidth") <= 390
    view.get_by_role("link", name="org/New").click()
    page.wait_for_url(f"**/job?job={field.board.list()[0].id}")


def test_an_operator_pauses_the_watcher_and_lets_it_go_on(field, page):
    assert field.service.watch is not None
    settled(page, f"{field.url}/watcher")
    page.get_by_role("button", name="Pause").click()
    expect(page.locator("#dq-watcher .dq-tag").first).to_have_text("Paused")
    expect(page.get_by_role("button", name="Sweep now")).to_have_count(0)
    assert field.service.watch.status().is_paused
    with pytest.raises(RequestError, match="paused"):
        field.service.watch.control(WatchAct.SWEEP)
    page.get_by_role("button", name="Resume").click()
    expect(page.locator("#dq-watcher .dq-tag").first).to_have_text("Watching")
    assert not field.service.watch.status().is_paused


def test_a_mistake_in_the_rules_stands_on_the_page_and_is_gone_when_it_is_mended(
    field, page, tmp_path_factory
):
    rules = next(tmp_path_factory.getbasetemp().glob("watched*/watch.yaml"))
    rules.write_text("rules: [{name: a, destinaton: b, bpw: [4]}]")
    try:
        settled(page, f"{field.url}/watcher")
        expect(page.get_by_role("alert")).to_contain_text("watch.yaml, line 1")
        expect(page.get_by_role("button", name="Sweep now")).to_have_count(0)
        assert post(field, body()).status_code == 503
    finally:
        rules.write_text(RULES)
    expect(page.locator("#dq-watcher")).to_contain_text("by org")


@pytest.mark.harden("web")
def test_only_operators_steer_the_watcher(field):
    for act in WatchAct:
        with pytest.raises(RequestError, match="Only operators"):
            field.service.control_watcher(Visitor(name="eve"), act)


def test_the_hub_posts_and_the_repo_is_looked_at_at_once(field):
    now = datetime.now(UTC)
    add_model(field.hub, "org/Pushed", now)
    add_model(field.hub, "org/Other", now)
    content = body(repo={"name": "org/Pushed", "headSha": "1" * 40})
    answer = post(field, content)
    assert (answer.status_code, answer.text) == (202, "'org/Pushed' will be looked at.")
    wait_until(lambda: "org/Pushed" in models(field))
    assert "org/Other" not in models(field)
    assert post(field, content).status_code == 409
    talk = body(event={"action": "create", "scope": "discussion"}, repo={"headSha": "2" * 40})
    assert post(field, talk).status_code == 200


@pytest.mark.harden("web")
def test_what_is_forged_or_too_large_or_covered_by_no_rule_brings_nothing_about(field):
    asked = len(field.hub.requests)
    assert post(field, body(), secret="guessed").status_code == 401
    assert post(field, body(repo={"name": "else/Model"})).status_code == 403
    assert post(field, b"{}").status_code == 422
    assert post(field, b"[" * 200_000).status_code == 413
    endless = (b" " * 50_000 for _ in range(1_000))  # fifty megabytes, of which few are read
    try:
        answer = requests.post(
            f"{field.url}/webhooks/hub",
            data=endless,
            headers={"X-Webhook-Secret": WEBHOOK_SECRET},
            timeout=PATIENCE_SECS,
        )
        assert answer.status_code == 413
    except requests.ConnectionError:  # it hung up before all was said
        pass
    assert requests.get(f"{field.url}/webhooks/hub", timeout=PATIENCE_SECS).status_code != 202
    assert len(field.hub.requests) == asked


def test_a_webhook_queues_nothing_while_the_watcher_is_paused(field):
    assert field.service.watch is not None
    field.service.watch.control(WatchAct.PAUSE)
    try:
        add_model(field.hub, "org/Paused", datetime.now(UTC))
        num_reports = len(field.service.watch.status().reports)
        assert post(field, body(repo={"name": "org/Paused"})).status_code == 202
        wait_until(lambda: len(field.service.watch.status().reports) > num_reports)
        assert "org/Paused" not in models(field)
    finally:
        field.service.watch.control(WatchAct.RESUME)


@pytest.mark.parametrize(
    ("extra", "is_space"),
    [({"DYNQUANT_WATCH_CONFIG": "watch.yaml"}, False), ({"DYNQUANT_INBOX_REPO": "you/in"}, True)],
)
def test_who_has_a_watcher_and_a_secret_has_the_route(tmp_path, extra, is_space):
    environment = {
        "DYNQUANT_HOME": str(tmp_path),
        "DYNQUANT_SPACE_SECRET": "0123456789abcdef",
        "DYNQUANT_WEBHOOK_SECRET": "0123456789abcdef",
    }
    settings = Settings.from_environment(environment | extra)
    site, _ = make_app(settings, WebSettings(is_space=is_space))
    assert "/webhooks/hub" in {getattr(each, "path", "") for each in site.routes}


def test_without_rules_the_page_says_how_to_set_some(tmp_path, browser):
    with opened(tmp_path, settings=WebSettings()) as field:
        page = browser.new_page()
        settled(page, f"{field.url}/watcher")
        expect(page.locator("#dq-watcher")).to_contain_text("DYNQUANT_WATCH_CONFIG")
        assert requests.post(f"{field.url}/webhooks/hub", timeout=PATIENCE_SECS).status_code in {
            404,
            405,
        }
        found = requests.get(f"{field.url}/live/watcher", timeout=PATIENCE_SECS).json()
        assert "has no rules" in found["html"]
        page.close()
