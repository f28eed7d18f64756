from __future__ import annotations

import json
import logging
import shutil
import ssl
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import requests

from dynquant.jobs.job import Job, JobState, PublishedRepo
from dynquant.jobs.request import JobRequest
from dynquant.runner.notify import (
    PinnedAdapter,
    RefusedAddressError,
    message_for,
    notify,
    send,
)
from tests.post_server import Post, taking_posts
from tests.waiting import PATIENCE_SECS

SLACK = "https://hooks.slack.com/services/T0/B0/xyz"
DISCORD = "https://discord.com/api/webhooks/1/xyz"

send_locally = partial(send, allow_local=True)


def make_job(url: str | None = None, *, model: str = "org/Model", **overrides) -> Job:
    fields: dict[str, Any] = {
        "id": "c0ffee",
        "request": JobRequest(
            model=model, targets_bpw=(4.5, 6.0), requester="somebody", notify_url=url
        ),
        "recipe_version": 1,
        "submitted_at": datetime(2026, 1, 31, tzinfo=UTC),
        "state": JobState.PUBLISHED,
        "results": (
            PublishedRepo(repo_id="me/Model-MLX-4.5bpw", commit_sha="aa"),
            PublishedRepo(repo_id="me/Model-MLX-6bpw", commit_sha="bb"),
        ),
    }
    return Job(**fields | overrides)


@dataclass
class Hook:
    """A server that keeps the requests and answers with the next of `statuses`."""

    statuses: list[int] = field(default_factory=list)
    requests: list[tuple[str, dict[str, str], dict]] = field(default_factory=list)
    port: int = 0

    @property
    def url(self) -> str:
        return f"http://localhost:{self.port}/hook?key=1"

    def take(self, post: Post) -> int | tuple[int, str]:
        self.requests.append((post.path, dict(post.headers), json.loads(post.body)))
        status = self.statuses.pop(0) if self.statuses else 204
        is_redirect = status // 100 == 3
        return (status, f"http://127.0.0.1:{self.port}/elsewhere") if is_redirect else status


@contextmanager
def serving(hook: Hook, tls: ssl.SSLContext | None = None) -> Iterator[Hook]:
    with taking_posts(hook.take, port=hook.port, tls=tls) as hook.port:
        yield hook


@pytest.fixture
def hook() -> Iterator[Hook]:
    with serving(Hook()) as hook:
        yield hook


def notified(job: Job, **options) -> list[float]:
    """The pauses between its tries."""
    waits: list[float] = []
    notify(job, **{"post": send_locally, "sleep": waits.append, **options})
    return waits


def test_any_address_gets_plain_json_with_the_repos_and_their_urls(hook):
    assert notified(make_job(hook.url)) == []
    ((path, headers, content),) = hook.requests
    assert path == "/hook?key=1"
    assert headers["Content-Type"] == "application/json"
    assert headers["Host"] == f"localhost:{hook.port}"
    assert content == {
        "id": "c0ffee",
        "state": "published",
        "model": "org/Model",
        "sentence": "",
        "reason_code": "",
        "results": [
            {
                "repo_id": "me/Model-MLX-4.5bpw",
                "commit_sha": "aa",
                "url": "https://huggingface.co/me/Model-MLX-4.5bpw",
            },
            {
                "repo_id": "me/Model-MLX-6bpw",
                "commit_sha": "bb",
                "url": "https://huggingface.co/me/Model-MLX-6bpw",
            },
        ],
    }


def test_a_request_that_names_no_address_tells_nobody():
    def post(url, content):
        raise AssertionError(url)

    assert notified(make_job(None), post=post) == []


def test_slack_gets_text_whose_names_are_neither_links_nor_mentions():
    job = make_job(
        model="<!channel>/<https://evil.example|x>&`*b*`",
        state=JobState.FAILED,
        results=(),
        sentence="Look at\nevil.example, @here.",
    )
    assert message_for(job, SLACK) == {
        "text": "dynquant: `&lt;!channel&gt;/&lt;https://evil.example|x&gt;&amp;'*b*'` at 4.5, 6 "
        "bits per weight: failed.\n`Look at evil.example, @here.`\nJob `c0ffee`"
    }


def test_discord_gets_content_that_can_mention_nobody():
    message = message_for(make_job(model="@everyone/`@here`"), DISCORD)
    assert message == {
        "content": "dynquant: `@everyone/'@here'` at 4.5, 6 bits per weight: published.\n"
        "https://huggingface.co/me/Model-MLX-4.5bpw\n"
        "https://huggingface.co/me/Model-MLX-6bpw\n"
        "Job `c0ffee`",
        "allowed_mentions": {"parse": []},
    }


@pytest.mark.parametrize(
    "url",
    [
        "https://hooks.slack.com.evil.example/services/x",
        "https://evil.example/hooks.slack.com",
        "https://discord.com/other",
    ],
)
def test_addresses_that_only_look_like_a_service_get_plain_json(url):
    assert message_for(make_job(), url)["id"] == "c0ffee"


def test_the_longest_message_is_one_that_discord_takes():
    request = JobRequest(
        model="m" * 200, targets_bpw=tuple(4 + i / 1e5 for i in range(32)), requester="r"
    )
    results = tuple(
        PublishedRepo(repo_id=f"{'n' * 42}/{'r' * 96}", commit_sha="a" * 40) for _ in range(32)
    )
    job = make_job(request=request, id="f" * 20, results=results, sentence="s" * 9_999)
    text = message_for(job, DISCORD)["content"]
    assert isinstance(text, str)
    assert len(text) < 2_000
    assert "and 27 more" in text


@pytest.mark.parametrize("url", [SLACK, DISCORD, "https://example.org/hook"])
def test_no_token_in_a_sentence_is_sent_on(url):
    canary = "hf_" + "C" * 34
    job = make_job(sentence=f"Refused: {canary}, postgresql://u:pw-canary@h/d.")
    text = json.dumps(message_for(job, url))
    assert canary not in text
    assert "pw-canary" not in text
    assert "Refused" in text


def test_server_errors_and_rate_limits_are_tried_again_and_then_it_arrives(hook):
    hook.statuses[:] = [503, 429]
    assert notified(make_job(hook.url)) == [1.0, 4.0]
    assert len(hook.requests) == 3


def test_after_three_tries_it_is_logged_without_the_address(hook, caplog):
    hook.statuses[:] = [500, 500, 500, 200]
    waits = notified(make_job(hook.url))
    assert waits == [1.0, 4.0]
    assert len(hook.requests) == 3
    (record,) = caplog.records
    assert record.getMessage() == "localhost could not be notified: status 500."
    assert record.job_id == "c0ffee"


def test_an_address_that_says_no_is_asked_once(hook, caplog):
    hook.statuses[:] = [404]
    assert notified(make_job(hook.url)) == []
    assert len(hook.requests) == 1
    assert "status 404" in caplog.text


def test_a_redirect_is_not_followed(hook, caplog):
    hook.statuses[:] = [302]
    assert notified(make_job(hook.url)) == []
    assert [path for path, _, _ in hook.requests] == ["/hook?key=1"]
    assert "status 302" in caplog.text


def test_a_server_that_is_not_there_is_tried_three_times_and_raises_nothing(caplog):
    with serving(Hook()) as hook:
        url = hook.url
    assert notified(make_job(url)) == [1.0, 4.0]
    assert "ConnectionError" in caplog.text
    assert "key=1" not in caplog.text


def test_what_nobody_foresaw_is_logged_and_raises_nothing(caplog):
    def post(url, content):
        raise ZeroDivisionError(url)

    assert notified(make_job(SLACK), post=post) == []
    assert "hooks.slack.com could not be notified: ZeroDivisionError" in caplog.text
    assert "xyz" not in caplog.text


@pytest.mark.parametrize(
    ("url", "why"),
    [
        ("http://example.org/hook", "https://"),
        ("https://127.0.0.1/hook", "private"),
        ("https://localhost/hook", "private"),
        ("https://2130706433/hook", "private"),
        ("https://0x7f.1/hook", "private"),
        ("https://[::1]/hook", "private"),
        ("https://[::ffff:127.0.0.1]/hook", "private"),
        ("https://[64:ff9b::7f00:1]/hook", "private"),
        ("https://[2002:7f00:1::]/hook", "private"),
        ("https://[fe80::1]/hook", "private"),
        ("https://[fd00::1]/hook", "private"),
        ("https://10.0.0.1/hook", "private"),
        ("https://192.168.1.1:8443/hook", "private"),
        ("https://100.64.0.1/hook", "private"),
        ("https://169.254.169.254/latest/meta-data", "private"),
        ("https://0.0.0.0/hook", "private"),
        ("https://224.0.0.1/hook", "private"),
        ("https://[ff0e::1]/hook", "private"),
        ("https://user:pw@8.8.8.8/hook", "password"),
        ("https://8.8.8.8:99999/hook", "web address"),
        ("https://[::1/hook", "web address"),
        (f"https://{'a' * 64}.example/hook", "web address"),
        ("https:///hook", "web address"),
    ],
)
def test_addresses_that_lead_inside_are_refused_without_a_connection(url, why, caplog):
    if url.startswith("http://"):
        url = url.replace("example.org", "127.0.0.1")
    with pytest.raises(RefusedAddressError, match=why):
        send(url, {})
    assert notified(make_job(url), post=send) == []
    (record,) = caplog.records
    assert "pw" not in record.getMessage()


def test_local_addresses_need_leave_and_get_none_for_other_schemes_elsewhere(hook):
    with pytest.raises(RefusedAddressError, match="https://"):
        send(hook.url, {})
    assert send(hook.url, {}, allow_local=True) == 204
    with pytest.raises(RefusedAddressError, match="https://"):
        send("http://10.0.0.1/hook", {}, allow_local=True)


def test_proxies_of_the_environment_are_not_used(hook, monkeypatch):
    for name in ("http_proxy", "https_proxy", "all_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    monkeypatch.delenv("no_proxy", raising=False)
    assert send_locally(hook.url, {}) == 204


def test_it_gives_up_on_a_server_that_never_stops_answering(caplog):
    entered, leave = threading.Event(), threading.Event()

    def post(url, content):
        entered.set()
        leave.wait()
        return 204

    try:
        notify(make_job(SLACK), post=post, patience_secs=0.1)
    finally:
        leave.set()
    assert entered.is_set()
    assert "it takes too long to answer" in caplog.text


@pytest.fixture(scope="module")
def certificate(tmp_path_factory) -> Path:
    """Key and certificate of localhost; no IP address is in it."""
    if shutil.which("openssl") is None:
        pytest.skip("openssl is not installed")
    folder = tmp_path_factory.mktemp("certificate")
    subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1",
         "-nodes", "-days", "2", "-subj", "/CN=localhost",
         "-addext", "subjectAltName=DNS:localhost",
         "-keyout", folder / "key.pem", "-out", folder / "certificate.pem"],
        check=True,
        capture_output=True,
    )  # fmt: skip
    return folder


@pytest.fixture
def secure_hook(certificate) -> Iterator[Hook]:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate / "certificate.pem", certificate / "key.pem")
    with serving(Hook(), context) as hook:
        yield hook


def test_the_certificate_of_the_name_is_asked_for_though_the_address_is_a_number(
    secure_hook, certificate
):
    def post(hostname: str) -> int:
        with requests.Session() as session:
            session.mount("https://", PinnedAdapter(hostname))
            return session.post(
                f"https://127.0.0.1:{secure_hook.port}/",
                json={},
                verify=str(certificate / "certificate.pem"),
                timeout=PATIENCE_SECS,
            ).status_code

    assert post("localhost") == 204
    with pytest.raises(requests.exceptions.SSLError):
        post("example.org")


def test_a_certificate_that_nobody_vouches_for_is_refused(secure_hook, caplog):
    url = f"https://localhost:{secure_hook.port}/"
    assert notified(make_job(url)) == [1.0, 4.0]
    assert secure_hook.requests == []
    assert "SSLError" in caplog.text


def test_success_is_logged_once_with_the_job(hook, caplog):
    with caplog.at_level(logging.INFO, logger="dynquant.runner.notify"):
        notified(make_job(hook.url))
    assert [record.getMessage() for record in caplog.records] == ["Notified localhost."]
