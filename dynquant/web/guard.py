"""Middleware before all routes: checks origin, host, size and depth of requests; sets headers.

On a Space Gradio accepts every origin with its cookies, so any page that a visitor opens could act
as the visitor. On a local machine a page that uses DNS rebinding has the same origin as ours for
the browser; its host name gives it away.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from urllib.parse import urlsplit

from fastapi.responses import JSONResponse
from gradio.route_utils import FnIndexInferError
from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from dynquant.web.allowed_routes import NO_FILES, NOT_FOUND, holds_file, is_allowed

__all__ = ["MAX_BODY_BYTES", "MAX_DEPTH", "Guard"]

MAX_BODY_BYTES = 256 * 1024
"""The largest form has some 10 kB."""

MAX_DEPTH = 32
"""Maximum nesting of lists and objects; a form has five levels."""

_CHANGING = frozenset({"POST", "PUT", "PATCH", "DELETE"})
_OWN_LIMITS = ("/runner/", "/webhook")
"""Routes for machines, which authenticate first and have their own size limits."""

# Programs call the named endpoints by these routes.
_CALLS = ("/gradio_api/run/", "/gradio_api/api/")
_OF_PAGES = "predict"
"""The name in calls of pages, whose endpoints have only numbers."""
_PUBLIC = ("/plan", "/submit", "/status", "/cancel")
_GRADIO = "/gradio_api/"
_QUEUE = "/gradio_api/queue/join"
_CALL = "/gradio_api/call/"
_SERVER_ERROR = 500
_REFUSED = 422

_LOCAL_HOST = re.compile(r"(?:127\.0\.0\.1|localhost|\[::1\])(?::\d+)?", re.IGNORECASE)

# An unterminated string extends to the last byte, so the scan stays linear.
_STRINGS = re.compile(rb'"(?:[^"\\]|\\.)*+"?', re.DOTALL)
_NO_BRACKETS = bytes(set(range(256)) - set(b"[]{}"))

# Gradio has inline scripts and styles and compiles text to functions, which needs the two `unsafe`
# keywords. Cards link to pictures anywhere. The Hub shows a Space in a frame, whose height a script
# from cdnjs sets.
_POLICY = (
    "default-src 'self'; "
    "script-src 'self' 'unsafe-inline' 'unsafe-eval'{scripts}; "
    "style-src 'self' 'unsafe-inline'; "
    "img-src 'self' data: blob: https:{pictures}; "
    "font-src 'self' data:; "
    "connect-src 'self' data: blob:; "
    "worker-src 'self' blob:; "
    "frame-src 'none'; object-src 'none'; base-uri 'self'; form-action 'self'; "
    "frame-ancestors 'self'{frames}"
)
_SPACE_FRAMES = " https://huggingface.co https://*.huggingface.co"
_SPACE_SCRIPTS = " https://cdnjs.cloudflare.com"


class Guard:
    """Middleware around the whole application.

    Args:
        app: The application.
        is_space: Whether the Hub shows the pages in a frame.
        is_local: Whether only this machine reaches the pages. Elsewhere any host name is allowed: a
            Space has several, and its sessions depend on cookies.
        hub_url: Source of pictures, besides any https address.
        endpoints: Number of an endpoint → its name, and the number of values of a call.
        has_mcp: Whether the endpoints are also offered as MCP tools.
    """

    def __init__(
        self,
        app: ASGIApp,
        *,
        is_space: bool,
        is_local: bool,
        hub_url: str,
        endpoints: Mapping[int, tuple[str, int]],
        has_mcp: bool = False,
    ) -> None:
        self._app = app
        self._has_mcp = has_mcp
        self._is_local = is_local
        self._endpoints = endpoints
        self._numbers = {name: number for number, (name, _) in endpoints.items()}
        parts = urlsplit(hub_url)
        self._headers = {
            "Content-Security-Policy": _POLICY.format(
                scripts=_SPACE_SCRIPTS if is_space else "",
                pictures=f" {parts.scheme}://{parts.netloc}" if parts.scheme == "http" else "",
                frames=_SPACE_FRAMES if is_space else "",
            ),
            "X-Content-Type-Options": "nosniff",
            "Referrer-Policy": "strict-origin-when-cross-origin",
        }

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Refuse a request, or pass it on."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return

        async def with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                for name, value in self._headers.items():
                    headers.setdefault(name, value)
            await send(message)

        refusal = self._misnamed(scope)
        if refusal is None and not is_allowed(scope["method"], scope["path"], mcp=self._has_mcp):
            refusal = _refusal(404, NOT_FOUND)
        if refusal is None and scope["method"] in _CHANGING:
            refusal, receive = await self._look_at(scope, receive)
        if refusal is not None:
            await refusal(scope, receive, with_headers)
        elif scope["method"] in _CHANGING and scope["path"].startswith(_CALLS):
            await _called(self._app, scope, receive, with_headers)
        else:
            await self._app(scope, receive, with_headers)

    def _misnamed(self, scope: Scope) -> JSONResponse | None:
        """Refuse requests for another host name, also if they only read."""
        if not self._is_local or scope["path"].startswith(_OWN_LIMITS):
            return None
        if _LOCAL_HOST.fullmatch(Headers(scope=scope).get("host", "")):
            return None
        return _refusal(
            403,
            "These pages answer only to 127.0.0.1 or localhost. Set GRADIO_SERVER_NAME to the "
            "address to listen at if other machines may open them.",
        )

    async def _look_at(self, scope: Scope, receive: Receive) -> tuple[JSONResponse | None, Receive]:
        """The refusal of a request, if any, and the source of its body."""
        refusal = _foreign(Headers(scope=scope))
        if refusal is not None or scope["path"].startswith(_OWN_LIMITS):
            return refusal, receive
        content = await _body(receive)
        if not isinstance(content, bytes):
            return content, receive
        if scope["path"].startswith(_GRADIO):
            refusal = self._refuse_call(scope["path"], content)
        return refusal, _given(content, receive)

    def _refuse_call(self, path: str, content: bytes) -> JSONResponse | None:
        """Refuse calls that would be server errors in Gradio; it refuses invalid JSON itself."""
        try:
            found = json.loads(content)
        except ValueError:
            return None
        try:
            text = json.dumps(found, allow_nan=False, ensure_ascii=False)
            text.encode()
        except ValueError:  # an answer that repeats these values could not be written
            return _refusal(422, "NaN, Infinity and lone surrogates are not valid JSON.")
        if holds_file(text):
            return _refusal(422, NO_FILES)
        return self._refuse_values(path, found) if isinstance(found, dict) else None

    def _refuse_values(self, path: str, found: Mapping[str, object]) -> JSONResponse | None:
        """Refuse calls of unknown endpoints, or with too few values."""
        session = found.get("session_hash")
        if session == "" or (path.startswith(_QUEUE) and not session):
            return _refusal(422, "'session_hash' must name a session.")
        data, number = found.get("data"), found.get("fn_index")
        name = path.rstrip("/").rpartition("/")[2]
        if number is None:
            number = self._numbers.get(name)
        elif (
            path.startswith((*_CALLS, _CALL))
            and name != _OF_PAGES
            and number != self._numbers.get(name)
        ):
            return _refusal(404, "There is no such endpoint here.")
        if type(number) is not int:
            return None
        if number not in self._endpoints:
            return _refusal(404, "There is no such endpoint here.")
        least = self._endpoints[number][1]
        if isinstance(data, list) and len(data) < least:
            return _refusal(422, f"'data' must be a list of {least} values.")
        return None


def _foreign(headers: Headers) -> JSONResponse | None:
    """Refuse requests that pages of other sites send; programs send no origin."""
    origin = headers.get("origin")
    if origin is None or origin.partition("://")[2] == headers.get("host"):
        return None
    return _refusal(403, "A page of another site may not act for you here. Open this page itself.")


async def _body(receive: Receive) -> bytes | JSONResponse:
    """The whole body, or the refusal of it."""
    content = bytearray()
    more = True
    while more:
        message = await receive()
        if message["type"] == "http.disconnect":
            return _refusal(400, "The request was cut off.")
        content += message.get("body", b"")
        if len(content) > MAX_BODY_BYTES:
            return _refusal(413, f"A request may have at most {MAX_BODY_BYTES // 1024} kB.")
        more = message.get("more_body", False)
    if not json.detect_encoding(content).startswith("utf-8"):  # brackets would go uncounted
        return _refusal(400, "A request must be JSON in UTF-8.")
    if _depth(content) > MAX_DEPTH:
        return _refusal(400, f"Lists and objects may be nested at most {MAX_DEPTH} deep.")
    return bytes(content)


def _depth(content: bytes | bytearray) -> int:
    """Nesting depth of lists and objects in a JSON text; an upper bound for invalid JSON."""
    depth = deepest = 0
    for bracket in _STRINGS.sub(b"", content).translate(None, _NO_BRACKETS):
        depth += 1 if bracket in b"[{" else -1
        deepest = max(deepest, depth)
    return deepest


def _given(content: bytes, rest: Receive) -> Receive:
    """Replay a body that was read already, then pass on later messages such as a disconnect."""
    parts = [content]

    async def receive() -> Message:
        if parts:
            return {"type": "http.request", "body": parts.pop(), "more_body": False}
        return await rest()

    return receive


async def _called(app: ASGIApp, scope: Scope, receive: Receive, send: Send) -> None:
    """Call an endpoint. Gradio answers 500 also to invalid requests; these become 422."""
    held: list[Message] = []

    async def hold(message: Message) -> None:
        is_error = message["type"] == "http.response.start" and message["status"] == _SERVER_ERROR
        if is_error or held:
            held.append(message)
        else:
            await send(message)

    try:
        await app(scope, receive, hold)
    except FnIndexInferError:
        held.clear()
        await _refusal(404, "There is no such endpoint here.")(scope, receive, send)
    finally:
        if held and _is_refusal(scope["path"], held[-1].get("body", b"")):
            held[0]["status"] = _REFUSED
        for message in held:
            await send(message)


def _is_refusal(path: str, body: bytes) -> bool:
    """Whether an error is a refusal with a sentence, or invalid values at a page's own endpoint."""
    try:
        return bool(json.loads(body)["error"]) or not path.endswith(_PUBLIC)
    except (ValueError, KeyError, TypeError):
        return False


def _refusal(status: int, sentence: str) -> JSONResponse:
    # Gradio's clients look for `detail`, its pages for `error`.
    return JSONResponse({"detail": sentence, "error": sentence}, status_code=status)
