"""Which of Gradio's routes strangers reach: those that pages and programs use, and no other."""

from __future__ import annotations

import gc
import re
from collections.abc import Iterator
from pathlib import Path

import httpx2
import pytest
from gradio.route_utils import API_PREFIX
from gradio.routes import App
from gradio_client import Client
from playwright.sync_api import expect

from dynquant.web.allowed_routes import is_allowed
from dynquant.web.settings import WebSettings
from tests.waiting import PATIENCE_SECS
from tests.web.browser import settled
from tests.web.scene import SOURCE, Field, opened, populated

pytestmark = [pytest.mark.hub, pytest.mark.harden("web")]

NUM_FILES = 800
"""In one post of a stranger, of which three made 2,400 files; each may have a kilobyte."""

USED = {
    "/gradio_api/call/{api_name}",
    "/gradio_api/call/{api_name}/{event_id}",
    "/gradio_api/run/{api_name}",
    "/gradio_api/api/{api_name}",
    "/gradio_api/call/v2/{api_name}",
    "/gradio_api/call/v2/{api_name}/{event_id}",
    "/gradio_api/info",
    "/gradio_api/openapi.json",
    "/gradio_api/queue/data",
    "/gradio_api/queue/join",
}


@pytest.fixture(scope="module")
def kept(tmp_path_factory) -> Iterator[Path]:
    """Where Gradio keeps what it is sent."""
    folder = tmp_path_factory.mktemp("kept")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("GRADIO_TEMP_DIR", str(folder))
        yield folder


@pytest.fixture(scope="module")
def space(kept, tmp_path_factory) -> Iterator[Field]:
    settings = WebSettings(is_space=True)
    with opened(tmp_path_factory.mktemp("space"), settings=settings, mcp_server=True) as space:
        yield space
    gc.collect()  # the loops that Gradio left, while their warnings are still ignored


def files_below(folder: Path) -> list[Path]:
    return [path for path in folder.rglob("*") if path.is_file()]


@pytest.mark.parametrize("path", ["upload", "upload/", "upload?upload_id=1", "%75pload"])
def test_a_stranger_who_uploads_files_leaves_nothing_on_the_disk(space, kept, path):
    files = [("files", (f"{n}.txt", b"x" * 50)) for n in range(NUM_FILES)]
    for _ in range(3):
        answer = httpx2.post(f"{space.url}/gradio_api/{path}", files=files, timeout=PATIENCE_SECS)
        assert answer.status_code == 404
        assert "take no files" in answer.json()["error"]
    assert files_below(kept) == []


@pytest.mark.parametrize(
    "path", ["process_recording", "component_server", "mcp/upload", "mcp/../upload", "/upload"]
)
def test_no_other_way_leaves_a_file_there(space, kept, path):
    files = {"files": ("a.wav", b"x" * 900), "data": ("data", b"x")}
    answer = httpx2.post(f"{space.url}/gradio_api/{path}", files=files, timeout=PATIENCE_SECS)
    assert 400 <= answer.status_code < 500
    assert files_below(kept) == []


def test_a_link_to_the_state_of_a_page_is_not_kept_on_the_disk(space, kept):
    call = {"data": [SOURCE, [4.5], 4096], "session_hash": "stranger"}
    answer = httpx2.post(f"{space.url}/gradio_api/run/plan", json=call, timeout=PATIENCE_SECS)
    assert answer.status_code == 200
    link = httpx2.get(f"{space.url}/gradio_api/deep_link?session_hash=stranger")
    assert link.status_code == 404
    assert files_below(kept) == []


@pytest.mark.parametrize("name", ["plan", "status", "predict"])
@pytest.mark.parametrize("key", ["path", "p\\u0061th"])
def test_a_value_that_has_the_space_fetch_a_file_is_refused(space, kept, name, key):
    file = f'{{"{key}": "https://big.example/1TB", "meta": {{"_type": "gradio.\\u0046ileData"}}}}'
    content = f'{{"data": [{file}, [4.5], 4096], "fn_index": null}}'.encode()
    headers = {"content-type": "application/json"}
    answer = httpx2.post(
        f"{space.url}/gradio_api/run/{name}", content=content, headers=headers, timeout=60
    )
    assert answer.status_code == 422
    assert "take no files" in answer.json()["error"]
    nested = {"jsonrpc": "2.0", "id": 1, "method": "tools/call", "params": {"name": "plan"}}
    nested["params"]["arguments"] = {  # type: ignore[index]
        "model": {"path": "https://big.example/1TB", "meta": {"_type": "gradio.FileData"}}
    }
    answer = httpx2.post(f"{space.url}/gradio_api/mcp/", json=nested, timeout=PATIENCE_SECS)
    assert answer.status_code == 422
    assert files_below(kept) == []


@pytest.mark.parametrize(
    "path",
    [
        "file=https://evil.example/page.html",
        "file=/etc/passwd",
        "file/requirements.txt",
        "proxy=https://evil.example",
        "custom_component/x/client/component/index.js",
        "stream/a/1/1/playlist.m3u8",
        "heartbeat/stranger",
        "upload_progress?upload_id=1",
        "dev/reload",
        "queue/status",
        "token",
        "runs",
        "vibe-code",
        "run-history/buckets",
    ],
)
def test_a_route_that_no_page_uses_is_refused_in_a_sentence(space, path):
    answer = httpx2.get(f"{space.url}/gradio_api/{path}", timeout=PATIENCE_SECS)
    assert answer.status_code == 404
    assert "/gradio_api/info" in answer.json()["error"]


def test_every_route_that_gradio_has_is_known_to_be_used_or_is_closed(space):
    """A new release of Gradio may bring new ones."""
    gradio = next(each.app for each in space.site.routes if isinstance(each.app, App))
    found = {
        (method.upper(), path)
        for path, methods in gradio.openapi()["paths"].items()
        for method in methods
        if path.startswith(API_PREFIX)
    }
    reached = {
        path.rstrip("/")
        for method, path in found
        if is_allowed(method, re.sub(r"\{api_name\}", "plan", re.sub(r"\{event_id\}", "e1", path)))
    }
    assert len(found) > 50, sorted(found)
    assert reached == USED
    assert httpx2.get(f"{space.url}/monitoring/summary").status_code == 403


@pytest.mark.parametrize("version", ["", "v2/"])
def test_programs_without_a_client_call_and_fetch_the_answer(space, version):
    body = {"model": SOURCE, "bits_per_weight": [4.5]} if version else {"data": [SOURCE, [4.5], 1]}
    url = f"{space.url}/gradio_api/call/{version}plan"
    event = httpx2.post(url, json=body, timeout=PATIENCE_SECS).json()["event_id"]
    said = httpx2.get(f"{url}/{event}", timeout=PATIENCE_SECS).text
    assert "event: complete" in said
    assert SOURCE in said
    unknown = httpx2.post(f"{space.url}/gradio_api/call/v2/nothing", json={})
    assert unknown.status_code == 404


def test_programs_with_the_client_see_the_api_and_call_it(space):
    client = Client(space.url, verbose=False, httpx_kwargs={"timeout": PATIENCE_SECS})
    assert set(client.view_api(return_format="dict", print_info=False)["named_endpoints"]) == {
        "/plan",
        "/submit",
        "/status",
        "/cancel",
    }
    assert client.submit(SOURCE, [4.5], api_name="/plan").result()["model"] == SOURCE
    client.close()


def test_mcp_is_closed_where_it_was_not_asked_for():
    for path in ("mcp/", "mcp/http", "mcp/sse", "mcp/schema", "mcp/messages/"):
        assert not is_allowed("GET", f"/gradio_api/{path}")
        assert is_allowed("GET", f"/gradio_api/{path}", mcp=True)
    assert not is_allowed("POST", "/gradio_api/mcp/upload", mcp=True)


@pytest.mark.browser
def test_the_pages_ask_for_nothing_that_is_closed(space, page):
    refused: list[str] = []
    page.on("response", lambda got: refused.append(got.url) if got.status >= 400 else None)
    jobs = populated(space)
    for path in ("", "board", "gallery", "watcher", f"job?job={jobs['published']}"):
        settled(page, f"{space.url}/{path}")
        page.wait_for_load_state("load")
    settled(page, space.url)
    page.get_by_label("Model", exact=True).fill(SOURCE)
    page.keyboard.press("Enter")
    expect(page.locator(".dq-card h2")).to_have_text(SOURCE)
    assert refused == []
