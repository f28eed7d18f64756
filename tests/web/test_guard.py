"""Requests that a Space accepts from strangers, and its headers for browsers."""

from __future__ import annotations

from collections.abc import Iterator

import httpx2
import pytest
from gradio_client import Client
from gradio_client.exceptions import AppError
from playwright.sync_api import expect

from dynquant.errors import RetryLaterError
from dynquant.web.guard import MAX_BODY_BYTES, MAX_DEPTH, _depth
from dynquant.web.limits import LIMITS, Limit, Limits
from dynquant.web.pages.choice import DEFAULT_OTHERS
from dynquant.web.settings import WebSettings
from local_hub import account_id
from tests.waiting import PATIENCE_SECS
from tests.web.browser import settled
from tests.web.scene import SOURCE, Field, opened, populated

pytestmark = [pytest.mark.hub, pytest.mark.harden("web")]

PLAN = {"data": [SOURCE, [4.5], 4096]}
STRANGERS = ["https://evil.example", "http://127.0.0.1:1", "null", "https://huggingface.co"]


@pytest.fixture(scope="module")
def space(tmp_path_factory) -> Iterator[Field]:
    """The pages as on a Space, where every visitor is a stranger."""
    settings = WebSettings(is_space=True, operator_ids=frozenset({account_id("bob")}))
    with opened(tmp_path_factory.mktemp("space"), settings=settings) as space:
        yield space


def post(space: Field, content: bytes | None = None, path: str = "plan", **options):
    body = {"content": content} if content is not None else {"json": options.pop("json", PLAN)}
    return httpx2.post(
        f"{space.url}/gradio_api/run/{path}", timeout=PATIENCE_SECS, **body, **options
    )


@pytest.mark.parametrize("origin", STRANGERS)
@pytest.mark.parametrize("path", ["plan", "submit", "cancel", "choose"])
def test_a_page_of_somebody_else_may_not_act_for_a_visitor(space, origin, path):
    answer = post(space, path=path, headers={"Origin": origin, "Cookie": "session=theirs"})
    assert answer.status_code == 403
    assert "may not act for you" in answer.json()["error"]


def test_the_own_page_and_programs_may(space):
    assert post(space).status_code == 200
    assert post(space, headers={"Origin": space.url}).status_code == 200


@pytest.mark.parametrize("path", ["/", "/live/board", "/config"])
@pytest.mark.parametrize("host", ["evil.example:7860", "localhost.evil.example", "127.0.0.1.x", ""])
def test_a_name_of_somebody_else_that_leads_to_ones_own_machine_shows_nothing(field, path, host):
    answer = httpx2.get(f"{field.url}{path}", headers={"Host": host}, timeout=PATIENCE_SECS)
    assert answer.status_code == 403
    assert "127.0.0.1 or localhost" in answer.json()["error"]


def test_a_page_whose_name_leads_to_ones_own_machine_may_not_act_there(field):
    job = field.submit(model="team/to-be-kept")
    theirs = {"Host": "evil.example:7860", "Origin": "http://evil.example:7860"}
    assert post(field, path="cancel", json={"data": [job]}, headers=theirs).status_code == 403
    assert not field.board.get(job).is_over


def test_ones_own_machine_answers_to_each_of_its_names_and_others_to_any(field, space):
    for host in ("127.0.0.1", "localhost:7860", "LOCALHOST", "[::1]:8000"):
        assert httpx2.get(f"{field.url}/config", headers={"Host": host}).status_code == 200, host
        mine = {"Host": host, "Origin": f"http://{host}"}
        assert post(field, headers=mine).status_code == 200, host
    # The Hub comes through a tunnel, and shows a secret.
    through = httpx2.post(f"{field.url}/webhooks/hub", headers={"Host": "tunnel.example"})
    assert through.status_code in {404, 405}
    for host in ("you-dynquant.hf.space", "quant.example.org", "10.0.0.7:7860"):
        assert httpx2.get(f"{space.url}/config", headers={"Host": host}).status_code == 200, host


def test_a_request_that_is_too_large_is_refused_with_and_without_a_length(space):
    large = b'{"data": ["' + b"x" * MAX_BODY_BYTES + b'"]}'
    assert post(space, large).status_code == 413
    parts = iter([large[:1000], large[1000:]])
    answer = httpx2.post(f"{space.url}/gradio_api/run/plan", content=parts, timeout=PATIENCE_SECS)
    assert answer.status_code == 413
    assert "256 kB" in answer.json()["error"]


@pytest.mark.parametrize("content", [b"[" * 100_000, b'{"data":' * 50, b'{"a":"]]]","b":' * 40])
def test_lists_within_lists_without_end_are_refused(space, content):
    answer = post(space, content)
    assert answer.status_code == 400
    assert "nested" in answer.json()["error"]


@pytest.mark.parametrize(
    "content", [b'{"data": [NaN]}', b'{"data": -Infinity}', rb'{"data": ["\ud800"], "x": 1}']
)
def test_what_no_answer_could_repeat_is_refused(space, content):
    answer = post(space, content, headers={"Content-Type": "application/json"})
    assert answer.status_code == 422
    assert "not valid JSON" in answer.json()["error"]


@pytest.mark.parametrize(
    ("path", "data", "words"),
    [
        ("plan", [SOURCE], "a list of 3 values"),
        ("plan", [SOURCE, ["x"], 4096], "bits_per_weight must be a list of numbers"),
        ("plan", [SOURCE, [10**400], 4096], "cannot be met"),
        ("plan", [SOURCE, [4.5], "much"], "context_tokens must be a whole number"),
        ("plan", [SOURCE, [4.5], 10**30], "context_tokens must be a whole number from 0 to"),
        ("plan", [None, [4.5], 4096], "model must be a text"),
        ("status", [["a"]], "job_id must be a text"),
    ],
)
def test_a_value_of_another_type_is_refused_by_its_name(space, path, data, words):
    answer = post(space, path=path, json={"data": data})
    assert answer.status_code == 422
    assert words in answer.json()["error"]


def test_brackets_within_strings_do_not_count_and_odd_texts_cost_no_time():
    assert _depth(rb'{"a": "[[[[\"[[[", "b": [1]}') == 2
    assert _depth(b"]]]][") <= MAX_DEPTH
    for odd in (b'"' + rb"\"" * 120_000, b'"' * 250_001, b"\\" * 250_000):
        assert _depth(odd) == 0


@pytest.mark.parametrize("encoding", ["utf-16-le", "utf-16-be", "utf-32-le", "utf-16"])
def test_depth_that_another_encoding_hides_is_refused(space, encoding):
    # In UTF-16 a byte of this letter is a quotation mark, which hides all that comes after it.
    nested = '{"data": ["\u2200", ' + "[" * 30_000 + "]" * 30_000 + "]}"
    for path in ("plan", "submit"):
        answer = post(space, nested.encode(encoding), path=path)
        assert answer.status_code == 400
        assert "UTF-8" in answer.json()["error"]


def test_a_refusal_is_no_error_of_the_server(space):
    answer = post(space, json={"data": ["team/missing", [4.5], 4096]})
    assert answer.status_code == 422
    assert "no model 'team/missing' on the Hub" in answer.json()["error"]


def test_an_endpoint_that_there_is_not_is_no_error_of_the_server(space):
    answer = post(space, path="nothing")
    assert answer.status_code == 404
    assert answer.json()["error"] == "There is no such endpoint here."
    handlers = httpx2.get(f"{space.url}/config", timeout=PATIENCE_SECS).json()["dependencies"]
    forecast = next(each["id"] for each in handlers if each["api_name"] == "forecast")
    for path, number, status in (
        ("plan", 0, 404),
        ("predict", 999, 404),
        ("predict", forecast, 422),
    ):
        answer = post(space, path=path, json={"data": [{}] * 20, "fn_index": number})
        assert answer.status_code == status, path


@pytest.mark.parametrize("session", ["", None])
def test_nobody_joins_the_queue_without_a_session(space, session):
    call = {"data": [{}] * 4, "fn_index": 0, "session_hash": session}
    answer = httpx2.post(f"{space.url}/gradio_api/queue/join", json=call, timeout=PATIENCE_SECS)
    assert answer.status_code == 422
    assert "name a session" in answer.json()["error"]


@pytest.mark.parametrize(
    "token",
    [
        None,
        "hf_forged",
        "hf_ann\nX: y",
        "hf_ann\r\n\r\n",
        "hf_ann\0",
        "ann",
        '{"name": "bob"}',
        "hf_\xe9",
        "hf_\u202e",
        "hf_" + "x" * 100_000,
        "",
        " ",
        ["hf_bob"],
        {"token": "hf_bob"},
        5,
    ],
)
def test_a_forged_token_is_nobody(space, token):
    wanted = {"data": [SOURCE, [4.5], "", "", False, "", ""]}
    answer = post(space, path="submit", json=wanted | {"oauth_token": token})
    assert answer.status_code == 422
    if token is None or isinstance(token, str):
        assert "sign in" in answer.json()["error"].lower()
    # A token is not taken from the values of a call either, nor from a header.
    forged = {"data": [*wanted["data"], {"token": "hf_bob", "scope": "", "expires_at": 9e9}]}
    headers = {"x-hf-authorization": "Bearer hf_bob", "authorization": "Bearer hf_bob"}
    assert post(space, path="submit", json=forged, headers=headers).status_code == 422
    assert not space.board.list()


def test_a_token_that_is_none_of_these_is_somebody(space):
    """The test above would pass if it sent its tokens to a place that is never read."""
    job = space.submit(requester="ann", requester_id=account_id("ann"), model="team/of-ann")
    answer = post(space, path="cancel", json={"data": [job], "oauth_token": "hf_ann"})
    assert answer.json()["data"][0]["state"] == "cancelled"


def test_a_job_of_another_visitor_is_theirs_and_an_operators(space):
    job = space.submit(requester="carol")
    for token in ("hf_ann", "hf_forged"):
        with pytest.raises(AppError, match=r"belongs to another account|[Ss]ign in"):
            Client(space.url, oauth_token=token, verbose=False).predict(job, api_name="/cancel")
    operator = Client(space.url, oauth_token="hf_bob", verbose=False)
    assert operator.predict(job, api_name="/cancel")["state"] == "cancelled"


@pytest.mark.parametrize("path", ["/", "/job", "/board", "/gallery", "/live/board", "/nothing"])
def test_every_answer_tells_browsers_what_they_may_do(space, path):
    headers = httpx2.get(f"{space.url}{path}", timeout=PATIENCE_SECS).headers
    assert headers["X-Content-Type-Options"] == "nosniff"
    assert headers["Referrer-Policy"] == "strict-origin-when-cross-origin"
    policy = headers["Content-Security-Policy"]
    assert "object-src 'none'" in policy
    assert "frame-ancestors 'self' https://huggingface.co" in policy


def test_on_ones_own_machine_nobody_frames_the_pages(field):
    policy = httpx2.get(field.url, timeout=PATIENCE_SECS).headers["Content-Security-Policy"]
    assert policy.endswith("frame-ancestors 'self'")


@pytest.mark.browser
def test_the_pages_work_within_their_policy(space, page):
    broken: list[str] = []
    page.on("console", lambda said: broken.append(said.text) if _is_policy(said.text) else None)
    jobs = populated(space)
    for path in ("/", "/board", "/gallery", f"/job?job={jobs['published']}"):
        settled(page, f"{space.url}{path}")
        page.wait_for_load_state("load")
    settled(page, space.url)
    page.get_by_label("Model", exact=True).fill(SOURCE)
    page.keyboard.press("Enter")
    expect(page.locator(".dq-card h2")).to_have_text(SOURCE, timeout=30_000)
    assert broken == []


def _is_policy(text: str) -> bool:
    return "Content Security Policy" in text


# Limits of a visitor


def make_limits(**limits: Limit) -> tuple[Limits, list[float], list[str]]:
    now, who = [0.0], ["address 1.2.3.4"]
    return Limits(limits, clock=lambda: now[0], visitor=lambda: who[0]), now, who


def test_a_visitor_may_do_so_many_at_once_and_then_one_now_and_then():
    limits, now, who = make_limits(search=Limit(burst=3, secs=10.0))
    for _ in range(3):
        limits.count("search")
    with pytest.raises(RetryLaterError, match=r"You search more often .* Wait 10 s"):
        limits.count("search")
    who[0] = "address 5.6.7.8"
    limits.count("search")  # somebody else is not kept waiting
    who[0] = "address 1.2.3.4"
    now[0] = 10.0
    limits.count("search")
    with pytest.raises(RetryLaterError):
        limits.count("search")


def test_whoever_has_many_addresses_meets_the_limit_of_all():
    limits, _, who = make_limits(search=Limit(burst=3, secs=10.0, share=2))
    for number in range(6):
        who[0] = f"address {number}"
        limits.count("search")
    who[0] = "address another"
    with pytest.raises(RetryLaterError, match="All visitors together search"):
        limits.count("search")


def test_what_is_remembered_of_visitors_is_bounded():
    limits, _, who = make_limits(search=Limit(burst=3, secs=10.0, share=10**6))
    for number in range(12_000):
        who[0] = f"address {number}"
        limits.count("search")
    assert len(limits._spent_until) <= 10_000


def test_a_stranger_who_looks_too_often_is_told_so_and_others_are_not(space, monkeypatch):
    few = {"look at models": Limit(burst=3, secs=1e6)}
    monkeypatch.setattr(space.service._limits, "_limits", few)
    mine = {"X-Forwarded-For": "203.0.113.7, 10.0.0.1"}
    assert [post(space, headers=mine).status_code for _ in range(4)] == [200, 200, 200, 422]
    sentence = post(space, headers=mine).json()["error"]
    assert "look at models more often than this page allows" in sentence
    assert post(space, headers={"X-Forwarded-For": "203.0.113.8"}).status_code == 200


def test_the_page_foresees_only_what_counted_as_a_look(space, monkeypatch):
    few = {"look at models": Limit(burst=3, secs=1e6)}
    monkeypatch.setattr(space.service._limits, "_limits", few)
    handlers = httpx2.get(f"{space.url}/config", timeout=PATIENCE_SECS).json()["dependencies"]
    forecast = next(each["id"] for each in handlers if each["api_name"] == "forecast")
    fresh = {"X-Forwarded-For": "203.0.113.9"}  # somebody who has not looked at anything yet

    def forecast_of(model: str) -> str:
        choice = [model, "Bits per weight", 4.5, 16, 4096, "", ["4", "8"], ["64"], []]
        others = [DEFAULT_OTHERS.calibration, "", False, ""]
        call = {"fn_index": forecast, "data": [*choice, *others]}
        answer = post(space, path="predict", json=call, headers=fresh)
        return answer.json()["data"][0]

    space.service.model_lookup(SOURCE)
    for number in range(10):
        assert forecast_of(f"team/unseen-{number}") == ""
    asked = {request.path for request in space.hub.requests if "unseen" in request.path}
    assert {path.rpartition("-")[2] for path in asked} == {"0", "1", "2"}
    assert "4.5" in forecast_of(SOURCE)  # the slider of a model that is known costs nothing


def test_on_ones_own_machine_there_is_no_limit(field):
    for _ in range(LIMITS["search"].burst + 20):
        assert field.service.find("sample-2m")
