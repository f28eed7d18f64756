from __future__ import annotations

import hashlib
import socket
import subprocess
import sys
import threading

import httpx2
import pytest

from local_hub import LocalHub
from tests.local_hub.conftest import TOKEN
from tests.waiting import PATIENCE_SECS

pytestmark = pytest.mark.hub

REPO = "alice/tiny"
URL = f"/api/models/{REPO}/branch/dev"
FILE = f"/{REPO}/resolve/main/a.txt"


@pytest.fixture(autouse=True)
def repo(hub: LocalHub):
    return hub.add(REPO, {"a.txt": b"0123456789"})


def was_done(hub: LocalHub) -> bool:
    return "dev" in hub.repos["model", REPO].branches


@pytest.mark.parametrize("after", [False, True])
def test_a_write_fails_before_or_after_it_is_done(hub, http: httpx2.Client, after):
    hub.fail("POST", status=503, headers={"Retry-After": "7"}, times=1, after=after)
    answer = http.post(URL, json={})
    assert (answer.status_code, answer.headers["retry-after"]) == (503, "7")
    assert was_done(hub) == after
    assert http.post(URL, json={}).status_code == (409 if after else 200)


@pytest.mark.parametrize("after", [False, True])
def test_a_reset_is_one(hub, http: httpx2.Client, after):
    hub.fail("POST", action="reset", times=1, after=after)
    with pytest.raises(httpx2.ReadError):
        http.post(URL, json={})
    assert was_done(hub) == after


def test_a_reset_reaches_the_socket_as_such(hub: LocalHub):
    hub.fail("GET", action="reset")
    address = ("127.0.0.1", httpx2.URL(hub.url).port or 0)
    with socket.create_connection(address) as plain:
        plain.sendall(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
        with pytest.raises(ConnectionResetError):
            plain.recv(1)


@pytest.mark.parametrize("after", [False, True])
def test_a_truncated_answer_ends_early(hub, http: httpx2.Client, after):
    hub.fail("POST", action="truncate", times=1, after=after)
    with pytest.raises(httpx2.RemoteProtocolError):
        http.post(URL, json={})
    assert was_done(hub) == after


@pytest.mark.parametrize("size", [10, 5_000_000])
def test_half_of_a_file_comes_with_the_length_of_the_whole(hub, http, tmp_path, size):
    path = tmp_path / "file"
    path.write_bytes(bytes(size))
    hub.add("alice/other", {"a.txt": path})
    hub.fail("GET", action="truncate", times=1)
    with http.stream("GET", "/alice/other/resolve/main/a.txt") as answer:
        assert answer.headers["content-length"] == str(size)
        with pytest.raises(httpx2.RemoteProtocolError):
            answer.read()
    assert answer.num_bytes_downloaded == size // 2
    assert hub.requests[-1].num_bytes == size // 2


@pytest.mark.parametrize("after", [False, True])
def test_a_page_comes_in_place_of_an_answer(hub, http: httpx2.Client, after):
    hub.fail("POST", action="html", times=1, after=after)
    answer = http.post(URL, json={})
    assert (answer.status_code, answer.headers["content-type"]) == (200, "text/html")
    assert was_done(hub) == after


@pytest.mark.parametrize("after", [False, True])
def test_a_slow_answer_to_a_client_that_waits(hub, http: httpx2.Client, after):
    hub.fail("POST", action="slow", secs=0.2, times=1, after=after)
    assert http.post(URL, json={}).status_code == 200
    assert was_done(hub)


@pytest.mark.parametrize("after", [False, True])
def test_a_client_that_gives_up_on_a_slow_write(hub, http: httpx2.Client, after):
    hub.fail("POST", action="slow", secs=1e6, times=1, after=after)
    answered = threading.Event()
    hub.after_request = lambda _: answered.set()
    with pytest.raises(httpx2.ReadTimeout):
        http.post(URL, json={}, timeout=httpx2.Timeout(PATIENCE_SECS, read=0.2))
    assert answered.wait(PATIENCE_SECS)
    assert was_done(hub) == after


def test_a_hub_ends_while_it_is_slow(hub: LocalHub):
    other = LocalHub()
    with other:
        other.fail("GET", action="slow", secs=1e6)
        asked = threading.Event()
        other.on_request = lambda _: asked.set()
        results: list[object] = []

        def ask() -> None:
            try:
                results.append(httpx2.get(other.url, timeout=None))
            except httpx2.TransportError as error:
                results.append(error)

        client = threading.Thread(target=ask)
        client.start()
        assert asked.wait(PATIENCE_SECS)
    client.join()
    assert isinstance(results[0], httpx2.TransportError)


def test_the_first_fault_that_matches_is_taken_as_often_as_it_says(hub, http: httpx2.Client):
    hub.fail(f"GET {FILE}", status=500, times=2)
    hub.fail("GET", status=502)
    assert [http.get(FILE).status_code for _ in range(3)] == [500, 500, 502]
    hub.faults.clear()
    assert http.get(FILE).status_code == 200


@pytest.mark.parametrize("after", [False, True])
def test_an_upload_that_fails_stores_nothing_or_everything(hub, http: httpx2.Client, after):
    content = bytes(100_000)
    oid = hashlib.sha256(content).hexdigest()
    batch = {"operation": "upload", "objects": [{"oid": oid, "size": len(content)}]}
    told = http.post(f"/{REPO}.git/info/lfs/objects/batch", json=batch).json()
    hub.fail("PUT /lfs/", action="reset", times=1, after=after)
    with pytest.raises(httpx2.TransportError):
        httpx2.put(told["objects"][0]["actions"]["upload"]["href"], content=content)
    assert (oid in hub.repos["model", REPO].lfs_objects) == after


def test_hooks_see_every_request_before_and_after(hub: LocalHub, http: httpx2.Client):
    seen: list[tuple[str, str, int]] = []
    done = threading.Event()
    hub.on_request = lambda r: seen.append(("before", r.path, r.status))

    def after(request) -> None:
        seen.append(("after", request.path, request.status))
        done.set()

    hub.after_request = after
    http.post(URL, json={"startingPoint": "main"})
    assert done.wait(PATIENCE_SECS)
    assert seen == [("before", URL, 0), ("after", URL, 200)]
    assert (hub.requests[0].body, hub.requests[0].user) == (b'{"startingPoint":"main"}', "alice")


def test_a_hook_can_choose_what_happens_to_its_request(hub: LocalHub, http: httpx2.Client):
    def fail_the_second(_) -> None:
        if len(hub.asked("POST")) == 2:
            hub.fail("POST", status=500, times=1)

    hub.on_request = fail_the_second
    answers = [http.post(f"{URL}-{i}", json={}).status_code for i in range(3)]
    assert answers == [200, 500, 200]
    assert set(hub.repos["model", REPO].branches) == {"main", "dev-0", "dev-2"}


def test_a_client_can_be_killed_at_any_request(hub: LocalHub):
    code = (
        "import httpx2\n"
        f"with httpx2.Client(headers={{'authorization': 'Bearer {TOKEN}'}}) as client:\n"
        f"    for i in range(9): client.post(f'{hub.url}{URL}-{{i}}', json={{}})\n"
    )

    killed = threading.Event()

    def kill_at_the_third(_) -> None:
        if len(hub.requests) == 3:
            client.kill()
            client.wait()
            killed.set()

    hub.on_request = kill_at_the_third
    client = subprocess.Popen([sys.executable, "-c", code])
    assert killed.wait(PATIENCE_SECS)
    assert client.returncode == -9
    assert len(hub.requests) == 3
