"""A session of MCP with the pages of a Space, by the client that programs use."""

from __future__ import annotations

import asyncio
import gc
from collections.abc import Awaitable, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import httpx2
import pytest
from mcp import ClientSession
from mcp.client.streamable_http import streamable_http_client
from mcp.types import CallToolResult

from dynquant.web.guard import MAX_BODY_BYTES
from dynquant.web.limits import Limit
from dynquant.web.settings import WebSettings
from local_hub import account_id
from tests.waiting import PATIENCE_SECS
from tests.web.scene import SOURCE, Field, opened

pytestmark = [pytest.mark.hub, pytest.mark.harden("web")]

PLAN: dict[str, Any] = {"model": SOURCE, "bits_per_weight": [4.5]}


@pytest.fixture(scope="module")
def space(tmp_path_factory) -> Iterator[Field]:
    """A Space that offers tools and keeps what it is sent in a folder of its own."""
    settings = WebSettings(
        is_space=True,
        signs_in=False,
        operator_ids=frozenset({account_id("bob")}),
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("GRADIO_TEMP_DIR", str(tmp_path_factory.mktemp("kept")))
        with opened(tmp_path_factory.mktemp("s"), settings=settings, mcp_server=True) as space:
            yield space
    gc.collect()  # the loops that Gradio left, while their warnings are still ignored


def in_session(
    space: Field, act: Callable[[ClientSession], Awaitable[Any]], *, come_from: str = "198.51.100.1"
) -> Any:
    """The result of `act` in a session that begins like that of every client."""

    async def run() -> Any:
        url, headers = f"{space.url}/gradio_api/mcp/", {"X-Forwarded-For": come_from}
        async with (
            httpx.AsyncClient(headers=headers, timeout=PATIENCE_SECS) as client,
            streamable_http_client(url, http_client=client) as (reading, writing, _),
            ClientSession(reading, writing) as session,
        ):
            await session.initialize()
            return await act(session)

    # In a thread of its own: Playwright leaves a running loop in that of the tests.
    with ThreadPoolExecutor(1) as thread:
        return thread.submit(lambda: asyncio.run(run())).result()


def call(space: Field, tool: str, come_from: str = "198.51.100.1", **values: Any) -> CallToolResult:
    return in_session(space, lambda session: session.call_tool(tool, values), come_from=come_from)


def said(result: CallToolResult) -> str:
    return "".join(getattr(each, "text", "") for each in result.content)


def test_a_session_offers_the_four_tools_and_nothing_else(space):
    async def look(session: ClientSession) -> tuple[Any, Any, Any]:
        return (
            await session.list_tools(),
            await session.list_resources(),
            await session.list_prompts(),
        )

    tools, resources, prompts = in_session(space, look)
    assert [each.name for each in tools.tools] == ["plan", "submit", "status", "cancel"]
    assert resources.resources == prompts.prompts == []
    arguments = {name for each in tools.tools for name in each.inputSchema["properties"]}
    assert not arguments & {"token", "oauth_token"}


def test_a_tool_answers_as_the_endpoint_does(space):
    assert f"'model': '{SOURCE}'" in said(call(space, "plan", **PLAN))
    result = call(space, "plan", model="team/missing", bits_per_weight=[4.5])
    assert result.isError
    assert "no model 'team/missing' on the Hub" in said(result)


def test_a_session_meets_the_limits_of_its_address(space, monkeypatch):
    few = {"look at models": Limit(burst=2, secs=1e6)}
    monkeypatch.setattr(space.service._limits, "_limits", few)
    results = [call(space, "plan", "1.1.1.1, 198.51.100.2", **PLAN) for _ in range(3)]
    assert [each.isError for each in results] == [False, False, True]
    assert "more often than this page allows" in said(results[-1])
    assert not call(space, "plan", "198.51.100.3", **PLAN).isError


@pytest.mark.parametrize("extra", [{}, {"token": "hf_bob"}, {"oauth_token": "hf_bob"}])
def test_a_session_without_sign_in_asks_for_nothing_and_cancels_nothing(space, extra):
    job = space.submit(requester="carol", model="team/of-carol")
    for tool, values in (("submit", PLAN), ("cancel", {"job_id": job})):
        result = call(space, tool, **values, **extra)
        assert result.isError
    assert not space.board.get(job).is_over
    assert [each.request.model for each in space.board.list()] == ["team/of-carol"]


@pytest.mark.parametrize(
    "tool", ["forecast", "choose", "convert", "update", "upload_file_to_gradio"]
)
def test_what_only_pages_call_is_no_tool(space, tool):
    assert call(space, tool, model=SOURCE).isError


def post(space: Field, **options: Any) -> httpx2.Response:
    url, accept = f"{space.url}/gradio_api/mcp/", "application/json, text/event-stream"
    headers = {"Accept": accept, **options.pop("headers", {})}
    return httpx2.post(url, headers=headers, timeout=PATIENCE_SECS, **options)


def message(**values: Any) -> dict[str, Any]:
    params = {"name": "plan", "arguments": PLAN | values}
    return {"jsonrpc": "2.0", "id": 1, "method": "tools/call", "params": params}


def test_the_guard_stands_before_sessions_too(space):
    assert post(space, json=message()).status_code == 200
    assert (
        post(space, json=message(), headers={"Origin": "https://evil.example"}).status_code == 403
    )
    assert post(space, json=message(model="x" * MAX_BODY_BYTES)).status_code == 413
    assert post(space, content=b"[" * 1_000).status_code == 400
    file = {"path": "https://big.example/1TB", "meta": {"_type": "gradio.FileData"}}
    for place in (file, [file], {"a": file}):
        refused = post(space, json=message(model=place))
        assert (refused.status_code, "take no files" in refused.text) == (422, True)


@pytest.mark.parametrize("value", ["https://big.example/1TB", "file:///etc/passwd", "data:,x"])
def test_no_argument_becomes_a_file(space, value, tmp_path_factory):
    call(space, "plan", model=value, bits_per_weight=[4.5])
    kept = next(tmp_path_factory.getbasetemp().glob("kept*"))
    assert [path for path in Path(kept).rglob("*") if path.is_file()] == []
