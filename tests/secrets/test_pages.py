"""Canary secrets through the pages of a Space, then a search of all answers and files.

The Space is a process as an operator starts it, with secrets in its environment, and a visitor is
signed in with a token. Only that visitor's own cookie may contain it.
"""

from __future__ import annotations

from collections.abc import Iterator

import httpx2
import pytest

from tests.secrets.search import files_in, teller
from tests.web.scene import SOURCE
from tests.web.sign_in import CLIENT
from tests.web.space import SECRET, Space, opened_space

pytestmark = [pytest.mark.hub, pytest.mark.harden("secrets")]

NOTIFY = "canary-of-the-address-to-notify"
VISITOR, OWNER = "hf_ann", "hf_quants"
hits = teller((VISITOR, OWNER, SECRET, CLIENT["OAUTH_CLIENT_SECRET"], NOTIFY))

PAGES = ("/", "/job", "/board", "/gallery", "/watcher", "/config", "/gradio_api/info", "/theme.css")
LOOKS = ("/live/board", "/live/board?state=over", "/live/watcher", "/live/job?job=0", "/nothing")


@pytest.fixture
def space(tmp_path) -> Iterator[Space]:
    with opened_space(tmp_path, log=tmp_path / "said.log") as space:
        yield space


def signed_in(client: httpx2.Client) -> None:
    """Sign in as `ann`, with a cookie for HTTPS, which browsers accept from this machine too."""
    asked = client.get("/login/huggingface")
    back = httpx2.get(f"{asked.headers['location']}&user=ann")
    client.headers["cookie"] = asked.headers["set-cookie"].partition(";")[0]
    there = client.get(back.headers["location"])
    client.headers["cookie"] = there.headers["set-cookie"].partition(";")[0]


def answers(client: httpx2.Client, **proof: str) -> Iterator[tuple[str, bytes]]:
    """Answers to a visitor who requests every route, with valid and invalid arguments."""

    def call(name: str, *data: object) -> httpx2.Response:
        return client.post(f"/gradio_api/run/{name}", json={"data": data, **proof})

    for path in PAGES + LOOKS:
        answer = client.get(path, follow_redirects=True)
        yield path, answer.content
    notify = f"https://hooks.example.org/{NOTIFY}"
    for model in (SOURCE, "team/missing", "quants/secret"):
        yield f"plan {model}", call("plan", model, [4.5], 4096).content
        asked = call("submit", model, [4.5], "", "", False, notify, "")
        yield f"submit {model}", asked.content
        if asked.status_code == 200:
            job = asked.json()["data"][0]["id"]
            yield "status", call("status", job).content
            yield "look", client.get(f"/live/job?job={job}").content
            yield "page", client.get(f"/job?job={job}").content
            yield "board", client.get("/live/board").content
            yield "cancel", call("cancel", job).content
    yield "submit elsewhere", call("submit", SOURCE, [4.5], "", "bob", False, "", "").content
    yield "nonsense", call("submit", None).content


def test_no_secret_is_in_anything_that_the_pages_answer_or_write(space, tmp_path, harden):
    places: dict[str, bytes] = {}
    tokens: list[str | None] = []
    space.hub.after_request = lambda request: tokens.append(request.token)
    options = {"base_url": space.url, "timeout": 60}
    with httpx2.Client(**options) as ann, httpx2.Client(**options) as nobody:
        signed_in(ann)
        for who, looks in (
            ("ann", answers(ann)),
            ("a program of ann", answers(nobody, oauth_token=VISITOR)),
            ("nobody", answers(nobody)),
        ):
            for what, content in looks:
                places[f"{who}: {what} {len(places)}"] = content
        for path in ("/runner/board", "/webhooks/hub"):
            for secret in ("guessed", SECRET):
                sent = {"authorization": f"Bearer {secret}", "x-webhook-secret": secret}
                places[f"{path} {secret}"] = nobody.post(path, content=b"{}", headers=sent).content
    for who in ("ann", "a program of ann"):
        asked = [
            each for place, each in places.items() if place.startswith(f"{who}: submit {SOURCE}")
        ]
        assert [b'"requester":"ann"' in each for each in asked] == [True]
    # Both tokens were used, else their absence proves nothing.
    assert {VISITOR, OWNER} <= {each for each in tokens if each}
    space.exits.close()
    places |= files_in(tmp_path)
    assert b"The pages are at" in places["file said.log"]
    for (_, repo_id), repo in space.hub.repos.items():
        for sha, commit in repo.commits.items():
            text = f"{commit.title}{commit.description}".encode()
            places[f"Hub {repo_id} {sha[:7]}"] = text
            for name, blob in commit.files.items():
                places[f"Hub {repo_id}/{name} {sha[:7]}"] = blob.read()
    found = {place: told for place, content in places.items() if (told := hits(content))}
    # The address to notify goes to the runner through the private inbox.
    inbox = {place for place in found if place.startswith("Hub quants/inbox/")}
    assert inbox
    assert all(found.pop(place) == [NOTIFY] for place in inbox)
    harden("handled", len(places) - len(found))
    harden("lost", len(found))
    assert found == {}
    assert len(places) > 60
