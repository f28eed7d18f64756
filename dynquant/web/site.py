"""The pages, the API and the routes for machines as one web application."""

from __future__ import annotations

import hmac
import warnings
from collections.abc import Callable, Mapping
from urllib.parse import urlencode

import gradio as gr
from fastapi import FastAPI, Request, Response
from fastapi.responses import JSONResponse, PlainTextResponse, RedirectResponse
from starlette.concurrency import run_in_threadpool
from starlette.datastructures import QueryParams
from starlette.types import ASGIApp, Receive, Scope, Send

from dynquant.errors import RequestError
from dynquant.watch.status import WatchRequests, requests_to_json
from dynquant.watch.webhook import MAX_BODY_BYTES
from dynquant.web.api import add_api
from dynquant.web.guard import Guard
from dynquant.web.live import add_live_routes
from dynquant.web.pages.board import add_board_page
from dynquant.web.pages.convert import add_convert_page
from dynquant.web.pages.gallery import add_gallery_page
from dynquant.web.pages.help import add_help_page
from dynquant.web.pages.job import add_job_page
from dynquant.web.pages.watcher import add_watcher_page
from dynquant.web.service import Service
from dynquant.web.snapshots import Snapshots
from dynquant.web.theme import HEAD, STYLE, theme

__all__ = ["add_runner_routes", "add_webhook", "make_site"]

_MAX_BOARD_BYTES = 4_000_000
"""Runners post 2 MB of jobs at most."""

_SIGNS_IN_AND_OUT = frozenset({"/login/huggingface", "/logout"})

Webhook = Callable[[Mapping[str, str], bytes], tuple[int, str]]
"""Headers and body of a post of the Hub → status and sentence of the answer."""


def make_site(
    service: Service,
    *,
    snapshots: Snapshots | None = None,
    space_secret: str | None = None,
    watch_requests: Callable[[], WatchRequests] = WatchRequests,
    webhook: Webhook | None = None,
    mcp_server: bool = False,
) -> FastAPI:
    """The application.

    Args:
        service: The actions of visitors.
        snapshots: Takes the boards that runners post; None without the route for them.
        space_secret: The secret that runners send with a post.
        watch_requests: Collects requests for a runner's watcher, sent in the answer to its post.
        webhook: Receives the Hub's posts on changed repos; None without the route for them.
        mcp_server: Whether the API is also offered as MCP tools.
    """
    app = FastAPI(openapi_url=None, docs_url=None, redoc_url=None)
    if snapshots is not None and space_secret is not None:
        add_runner_routes(app, snapshots, space_secret, watch_requests)
    if webhook is not None:
        add_webhook(app, webhook)
    add_live_routes(app, service)
    blocks = _blocks(service)
    app.add_middleware(_OtherAddresses)
    app.add_middleware(_SignInTarget)
    app.add_middleware(
        Guard,
        is_space=service.settings.is_space,
        is_local=service.settings.is_local,
        hub_url=service.search.page_url(""),
        endpoints={
            number: (str(each.api_name), len(each.inputs)) for number, each in blocks.fns.items()
        },
        has_mcp=mcp_server,
    )
    with warnings.catch_warnings():
        # Gradio warns about several pages even though SSR mode is off.
        warnings.filterwarnings("ignore", message="SSR mode is not supported")
        return gr.mount_gradio_app(
            app,
            blocks,
            path="/",
            theme=theme(),
            css_paths=STYLE,
            head=HEAD,
            footer_links=[],
            run_history=False,
            show_error=False,
            enable_monitoring=False,
            max_file_size="1kb",  # the guard refuses uploads; Gradio would keep them
            ssr_mode=False,
            mcp_server=mcp_server,
        )


def _blocks(service: Service) -> gr.Blocks:
    with gr.Blocks(title="dynquant", analytics_enabled=False, fill_width=True) as blocks:
        add_convert_page(blocks, service)
        add_api(service)
    with blocks.route("Job", "job", show_in_navbar=False):
        add_job_page(service)
    with blocks.route("Board", "board"):
        add_board_page(service)
    with blocks.route("Gallery", "gallery"):
        add_gallery_page(blocks, service)
    with blocks.route("Watcher", "watcher"):
        add_watcher_page(service)
    with blocks.route("Help", "help"):
        add_help_page(service)
    return blocks


def add_runner_routes(
    app: FastAPI, snapshots: Snapshots, secret: str, watch_requests: Callable[[], WatchRequests]
) -> None:
    """Take the boards of runners that know `secret`, and answer with requests for their watcher."""
    expected = f"Bearer {secret}".encode()

    @app.post("/runner/board")
    async def take_board(request: Request) -> Response:
        given = request.headers.get("authorization", "").encode()
        if not hmac.compare_digest(given, expected):
            return PlainTextResponse("The secret is not that of this Space.", status_code=401)
        content = await _body(request, _MAX_BOARD_BYTES)
        if len(content) > _MAX_BOARD_BYTES:
            return PlainTextResponse("The board is too large.", status_code=413)
        try:
            watches = snapshots.take(content)
        except RequestError as error:
            return PlainTextResponse(str(error), status_code=422)
        if watches and (found := watch_requests()) != WatchRequests():
            return JSONResponse(requests_to_json(found))
        return Response(status_code=204)


def add_webhook(app: FastAPI, webhook: Webhook) -> None:
    """Take the posts of the Hub's webhook."""

    @app.post("/webhooks/hub")
    async def take_event(request: Request) -> Response:
        content = await _body(request, MAX_BODY_BYTES)
        status, sentence = await run_in_threadpool(webhook, request.headers, content)
        return PlainTextResponse(sentence, status_code=status)


async def _body(request: Request, max_bytes: int) -> bytes:
    """The body, cut shortly after `max_bytes`."""
    content = bytearray()
    async for chunk in request.stream():
        content += chunk
        if len(content) > max_bytes:
            break
    return bytes(content)


class _OtherAddresses:
    """Redirect `/?job=ID` to the job: the Hub's page of a Space passes on only the query.

    And `/?view=api`, where Gradio's own pages describe the endpoints, to the page that does here.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        place = ""
        if scope["type"] == "http" and scope["path"] == "/":
            query = QueryParams(scope["query_string"])
            if job_id := query.get("job"):
                place = f"job?{urlencode({'job': job_id})}"
            elif query.get("view") == "api":
                place = "help#api"
        app = RedirectResponse(place) if place else self._app
        await app(scope, receive, send)


class _SignInTarget:
    """Keep the whole query of a page over signing in and out.

    Gradio's button appends the address of the page to `_target_url=` without escaping it, so
    that the target would end at its first `&`.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and scope["path"] in _SIGNS_IN_AND_OUT:
            name, _, target = scope["query_string"].decode("latin-1").partition("=")
            if name == "_target_url" and target.startswith("/"):
                scope = {**scope, "query_string": urlencode({name: target}).encode()}
        await self._app(scope, receive, send)
