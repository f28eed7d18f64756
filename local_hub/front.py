"""The layer around all routes: each request to the local Hub passes it before and after."""

from __future__ import annotations

from typing import TYPE_CHECKING
from urllib.parse import parse_qs

from starlette.types import Message, Receive, Scope, Send

from local_hub import faults
from local_hub.access import user_of
from local_hub.answers import Request, error_answer
from local_hub.app import app
from local_hub.calls import Call

if TYPE_CHECKING:
    from local_hub.hub import LocalHub

# Another origin for clients: who has the URL needs no token, and bodies are as large as files.
STORAGE = ("/cdn/", "/lfs/")


class Front:
    """Records requests, lets them fail, knows their user, and keeps what they changed."""

    def __init__(self, hub: LocalHub) -> None:
        self._hub = hub

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        hub = self._hub
        request = _request(scope)
        if not _is_storage(request):
            body = await _body(receive)
            if body is None:
                return
            request.body = body
            request.user = user_of(hub, request)
            receive = _replay(body, receive)
        hub.requests.append(request)
        if hub.on_request is not None:
            hub.on_request(request)
        await self._answer(request, scope, receive, _recording(request, send))
        if hub.after_request is not None:
            hub.after_request(request)

    async def _answer(self, request: Request, scope: Scope, receive: Receive, send: Send) -> None:
        async def handle(send: Send) -> None:
            await self._handle(request, scope, receive, send)

        fault = next((f for f in self._hub.faults if f.takes(request.method, request.path)), None)
        if fault is None:
            await handle(send)
        else:
            connection = scope["state"]["connection"]
            await faults.fail(fault, request.method, connection, handle=handle, send=send)

    async def _handle(self, request: Request, scope: Scope, receive: Receive, send: Send) -> None:
        hub = self._hub
        call = Call(hub, request)

        async def send_when_saved(message: Message) -> None:
            if message["type"] == "http.response.start" and call.changed:
                hub.save(call.changed)
            await send(message)

        if request.token is not None and request.user is None and not _is_storage(request):
            refused = error_answer(401, None, "Invalid credentials in Authorization header")
            await faults.send_answer(refused, send)
        else:
            # Revisions arrive as refs%2Fpr%2F1: routes match the raw path and decode its parts.
            scope = {**scope, "path": request.path, "call": call}
            await app(scope, receive, send_when_saved)


def _is_storage(request: Request) -> bool:
    return request.path.startswith(STORAGE)


def _request(scope: Scope) -> Request:
    return Request(
        method=scope["method"],
        path=scope["raw_path"].decode("ascii"),
        query=parse_qs(scope["query_string"].decode("latin-1")),
        headers={
            name.decode("latin-1"): value.decode("latin-1") for name, value in scope["headers"]
        },
        body=b"",
    )


async def _body(receive: Receive) -> bytes | None:
    """The whole body; None if the client left before its end."""
    parts = []
    more = True
    while more:
        message = await receive()
        if message["type"] == "http.disconnect":
            return None
        parts.append(message["body"])
        more = message["more_body"]
    return b"".join(parts)


def _replay(body: bytes, rest: Receive) -> Receive:
    """Give a body that was read already, then what comes after it: that the client leaves."""
    parts = [body]

    async def receive() -> Message:
        if parts:
            return {"type": "http.request", "body": parts.pop(), "more_body": False}
        return await rest()

    return receive


def _recording(request: Request, send: Send) -> Send:
    async def send_recorded(message: Message) -> None:
        if message["type"] == "http.response.start":
            request.status = message["status"]
        elif request.method != "HEAD":
            request.num_bytes += len(message.get("body", b""))
        await send(message)

    return send_recorded
