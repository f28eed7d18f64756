"""Switches that make a request to the local Hub fail, and how each failure is done."""

from __future__ import annotations

import asyncio
import contextlib
import re
import socket
import struct
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field

from starlette.types import Message, Send

from local_hub.answers import Answer

SAFE_METHODS = frozenset({"GET", "HEAD"})
LOGIN_PAGE = b"<html>Please log in</html>"


@dataclass
class Fault:
    """A fault in the next `times` requests whose `METHOD /path` matches `pattern`.

    `action`: `status` answers `status` with `headers`; `reset` drops the connection without an
    answer; `truncate` sends half of the body; `slow` waits `secs` first; `html` answers like a
    hotel's login page.

    `after`: Whether a write takes effect and only its answer is lost. Otherwise it does nothing,
    except that a slow one is done late, if the client still waits.
    """

    pattern: str
    action: str = "status"
    status: int = 503
    times: int = 10**9
    secs: float = 0.0
    headers: dict[str, str] = field(default_factory=dict)
    after: bool = False

    def takes(self, method: str, path: str) -> bool:
        if self.times < 1 or re.search(self.pattern, f"{method} {path}") is None:
            return False
        self.times -= 1
        return True


@dataclass(frozen=True)
class Connection:
    """One connection of a client; `lost` is set when it is gone."""

    transport: asyncio.Transport
    lost: asyncio.Event

    async def reset(self) -> None:
        if self.lost.is_set():
            return
        # Zero linger makes closing a reset.
        self.transport.get_extra_info("socket").setsockopt(
            socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0)
        )
        self.transport.abort()
        await self.lost.wait()

    async def close(self) -> None:
        """End it although more may have been announced; what was sent still arrives."""
        self.transport.close()
        await self.lost.wait()

    async def is_lost_within(self, secs: float) -> bool:
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self.lost.wait(), secs)
        return self.lost.is_set()


async def fail(
    fault: Fault,
    method: str,
    connection: Connection,
    *,
    handle: Callable[[Send], Awaitable[None]],
    send: Send,
) -> None:
    """Answer a request wrongly.

    Args:
        handle: Does what was asked, and sends the answer by what it is given.
        send: The way to the client.
    """
    takes_effect = fault.after or method in SAFE_METHODS
    if fault.action == "slow":
        if not takes_effect and await connection.is_lost_within(fault.secs):
            return
        await handle(_late(send, connection, fault.secs) if takes_effect else send)
    elif fault.action == "truncate":
        half = _half(send)
        await (handle(half) if takes_effect else send_answer(Answer(200, b"{}"), half))
        await connection.close()
    else:
        if takes_effect:
            await handle(_discard)
        if fault.action == "reset":
            await connection.reset()
        elif fault.action == "html":
            await send_answer(Answer(200, LOGIN_PAGE, {"Content-Type": "text/html"}), send)
        else:
            await send_answer(Answer(fault.status, b"{}", fault.headers), send)


async def send_answer(answer: Answer, send: Send) -> None:
    await answer({"type": "http"}, _nothing_received, send)


async def _nothing_received() -> Message:
    return {"type": "http.disconnect"}


async def _discard(_: Message) -> None:
    pass


def _late(send: Send, connection: Connection, secs: float) -> Send:
    async def send_late(message: Message) -> None:
        if message["type"] == "http.response.start":
            await connection.is_lost_within(secs)
        await send(message)

    return send_late


def _half(send: Send) -> Send:
    num_left = 0

    async def send_half(message: Message) -> None:
        nonlocal num_left
        if message["type"] == "http.response.start":
            num_left = int(dict(message["headers"])[b"content-length"]) // 2
            await send(message)
        else:
            part = message.get("body", b"")[:num_left]
            num_left -= len(part)
            await send({"type": "http.response.body", "body": part, "more_body": True})

    return send_half
