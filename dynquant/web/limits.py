"""How much of one request is read at all."""

from __future__ import annotations

from starlette.requests import ClientDisconnect
from starlette.responses import PlainTextResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

__all__ = ["SmallRequests"]

_MAX_BYTES = 1_000_000
"""A page's largest message has some thousand; Gradio reads whatever comes, into memory."""


class SmallRequests:
    """Refuses what is too large to be meant for Gradio, before it is read.

    Args:
        app: What answers the others.
        path: Where it holds.
    """

    def __init__(self, app: ASGIApp, *, path: str) -> None:
        self._app = app
        self._path = path

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """See ASGI."""
        if scope["type"] != "http" or not scope["path"].startswith(self._path):
            await self._app(scope, receive, send)
            return
        num_bytes = 0
        has_answered = False

        async def receive_some() -> Message:
            nonlocal num_bytes, has_answered
            message = await receive()
            num_bytes += len(message.get("body", b""))
            if num_bytes > _MAX_BYTES and not has_answered:
                has_answered = True
                await PlainTextResponse("This request is too large.", status_code=413)(
                    scope, receive, send
                )
            return {"type": "http.disconnect"} if has_answered else message

        async def send_unless_answered(message: Message) -> None:
            if not has_answered:
                await send(message)

        try:
            await self._app(scope, receive_some, send_unless_answered)
        except ClientDisconnect:
            if not has_answered:
                raise
