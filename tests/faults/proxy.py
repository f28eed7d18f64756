"""A proxy between a client and the local Hub, which injects faults by a seeded schedule.

One exchange is one connection on either side. Bodies are small here and are kept in memory. A fault
depends on the seed, the method, the path and the number of earlier requests for that path, so that
threads which download in parallel meet the same faults in every run.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
import re
import socket
import struct
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from enum import StrEnum

from tests.waiting import PATIENCE_SECS

__all__ = ["FaultyProxy", "Trouble", "TroubleKind", "nothing", "schedule"]

_MAX_HEAD_BYTES = 1 << 16
_RANDOM_NAME = re.compile(r"[0-9a-f]{32,}")


class TroubleKind(StrEnum):
    """A fault of one exchange."""

    REQUEST_LOST = "request lost"
    """The connection is reset, and the Hub gets nothing."""
    REQUEST_CUT = "request cut"
    """The Hub gets the beginning of the request, then both connections end."""
    REQUEST_CORRUPT = "request corrupt"
    """One bit of the request's body is flipped; of the answer's, if the request has none."""
    REQUEST_TWICE = "request twice"
    """The Hub gets the request twice; the second answer counts."""
    REQUEST_AGAIN_LATER = "request again later"
    """A copy of the request arrives after the exchange is over."""
    ANSWER_LOST = "answer lost"
    """The Hub executes the request, and the connection is reset."""
    ANSWER_CUT = "answer cut"
    """It ends before the body does."""
    ANSWER_SHORT = "answer short"
    """It ends before the body does, and its header gives the shorter length."""
    ANSWER_CORRUPT = "answer corrupt"
    """One bit of its body is flipped."""
    ANSWER_LATE = "answer late"


@dataclass(frozen=True, slots=True, kw_only=True)
class Trouble:
    """The fault of one exchange: its `place` in a body, from 0 to 1, and the delay."""

    kind: TroubleKind
    place: float = 0.5
    secs: float = 0.0


Schedule = Callable[[str, str, int], Trouble | None]
"""The fault of a request: of METHOD, PATH and the number of earlier ones; None is no fault."""


def nothing(_method: str, _path: str, _num_before: int) -> Trouble | None:
    """The schedule without faults."""
    return None


def schedule(seed: int, *, longest_secs: float = 1.5) -> Schedule:
    """Random faults in 1 of 50 to 1 of 3 exchanges, by the seed."""
    share = random.Random(seed).uniform(0.02, 0.33)

    def trouble(method: str, path: str, num_before: int) -> Trouble | None:
        chance = random.Random(f"{seed} {method} {path} {num_before}")
        if chance.random() >= share:
            return None
        return Trouble(
            kind=chance.choice([*TroubleKind]),
            place=chance.random(),
            secs=chance.uniform(0.0, longest_secs),
        )

    return trouble


class FaultyProxy:
    """Listens at `port`, to be used as a context; passes everything on to `hub_port`.

    Attributes:
        schedule: Decides the faults; may be changed at any time.
        met: Kind of fault → how often it happened.
    """

    def __init__(self, hub_port: int, schedule: Schedule = nothing) -> None:
        self.schedule = schedule
        self.met: Counter[TroubleKind] = Counter()
        self._hub_port = hub_port
        self._asked: Counter[tuple[str, str]] = Counter()
        self._socket = socket.create_server(("127.0.0.1", 0), backlog=128)
        self.port: int = self._socket.getsockname()[1]
        self._later: set[asyncio.Task[None]] = set()
        self._loop = asyncio.new_event_loop()
        self._stopping = asyncio.Event()
        self._thread = threading.Thread(target=self._run, name="faulty-proxy", daemon=True)

    def __enter__(self) -> FaultyProxy:
        self._thread.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self._loop.call_soon_threadsafe(self._stopping.set)
        self._thread.join()

    def settle(self) -> None:
        """Wait until all delayed requests have arrived at the Hub."""

        async def arrive() -> None:
            await asyncio.gather(*self._later)

        asyncio.run_coroutine_threadsafe(arrive(), self._loop).result(timeout=PATIENCE_SECS)

    def _run(self) -> None:
        with asyncio.Runner(loop_factory=lambda: self._loop) as runner:
            runner.run(self._serve())

    async def _serve(self) -> None:
        server = await asyncio.start_server(self._client, sock=self._socket)
        await self._stopping.wait()
        server.close()
        # Exchanges that are under way, and delayed copies of requests, are dropped.
        for task in asyncio.all_tasks() - {asyncio.current_task()}:
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError, OSError):
                await task

    async def _client(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError, asyncio.IncompleteReadError), _closing(writer):
            request = await _read_request(reader)
            method, target, _ = request.head.split(b"\r\n", 1)[0].decode("latin-1").split(" ", 2)
            key = method, _RANDOM_NAME.sub("*", target.partition("?")[0])
            trouble = self.schedule(*key, self._asked[key])
            self._asked[key] += 1
            if trouble is None:
                writer.write((await self._ask(request)).raw)
            else:
                self.met[trouble.kind] += 1
                await self._fail(request, trouble, writer)
            await writer.drain()

    async def _fail(
        self, request: _Message, trouble: Trouble, writer: asyncio.StreamWriter
    ) -> None:
        kind = trouble.kind
        if kind == TroubleKind.REQUEST_CORRUPT and not request.body:
            kind = TroubleKind.ANSWER_CORRUPT
        if kind == TroubleKind.REQUEST_LOST:
            _reset(writer)
            return
        if kind == TroubleKind.REQUEST_CUT:
            await self._send_part(request, trouble.place)
            _reset(writer)
            return
        if kind == TroubleKind.REQUEST_CORRUPT:
            request = request.corrupt(trouble.place)
        if kind == TroubleKind.REQUEST_TWICE:
            await self._ask(request)
        answer = await self._ask(request)
        if kind == TroubleKind.REQUEST_AGAIN_LATER:
            task = asyncio.create_task(self._ask_later(request, trouble.secs))
            self._later.add(task)
            task.add_done_callback(self._later.discard)
        if kind == TroubleKind.ANSWER_LOST:
            _reset(writer)
            return
        if kind == TroubleKind.ANSWER_LATE:
            await asyncio.sleep(trouble.secs)
        if kind == TroubleKind.ANSWER_CORRUPT:
            answer = answer.corrupt(trouble.place)
        if kind == TroubleKind.ANSWER_SHORT:
            answer = answer.shortened(trouble.place)
        raw = answer.raw
        if kind == TroubleKind.ANSWER_CUT:
            raw = raw[: len(answer.head) + int(trouble.place * len(answer.body))]
        writer.write(raw)

    async def _ask(self, request: _Message) -> _Message:
        reader, writer = await asyncio.open_connection("127.0.0.1", self._hub_port)
        with _closing(writer):
            writer.write(request.raw)
            head, _, body = (await reader.read(-1)).partition(b"\r\n\r\n")
            return _Message(head + b"\r\n\r\n", body)

    async def _ask_later(self, request: _Message, secs: float) -> None:
        await asyncio.sleep(secs)
        await self._ask(request)

    async def _send_part(self, request: _Message, share: float) -> None:
        _, writer = await asyncio.open_connection("127.0.0.1", self._hub_port)
        with _closing(writer):
            writer.write(request.raw[: int(share * len(request.raw))])
            await writer.drain()


@dataclass(frozen=True, slots=True)
class _Message:
    """A request or an answer; `head` ends in an empty line."""

    head: bytes
    body: bytes

    @property
    def raw(self) -> bytes:
        return self.head + self.body

    def corrupt(self, place: float) -> _Message:
        if not self.body:
            return self
        at = int(place * len(self.body))
        flipped = self.body[at] ^ (
            1 << int(place * 1e6) % 7
        )  # bit 7 would make most texts invalid UTF-8
        return _Message(self.head, self.body[:at] + bytes([flipped]) + self.body[at + 1 :])

    def shortened(self, share: float) -> _Message:
        body = self.body[: int(share * len(self.body))]
        length = b"content-length: %d" % len(body)
        return _Message(re.sub(rb"(?i)content-length: *\d+", length, self.head), body)


async def _read_request(reader: asyncio.StreamReader) -> _Message:
    """A whole request, changed so that the connection ends after one answer."""
    head = await reader.readuntil(b"\r\n\r\n")
    assert len(head) < _MAX_HEAD_BYTES
    assert not re.search(rb"(?i)\r\ntransfer-encoding:", head), "the client gives lengths"
    length = re.search(rb"(?i)\r\ncontent-length: *(\d+)", head)
    body = await reader.readexactly(int(length[1])) if length else b""
    head = re.sub(rb"(?i)\r\nconnection:[^\r]*", b"", head)
    return _Message(head[:-2] + b"connection: close\r\n\r\n", body)


def _reset(writer: asyncio.StreamWriter) -> None:
    # Zero linger makes closing a reset.
    writer.get_extra_info("socket").setsockopt(
        socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0)
    )
    writer.transport.abort()


@contextmanager
def _closing(writer: asyncio.StreamWriter) -> Iterator[None]:
    try:
        yield
    finally:
        writer.close()
