"""Serves an ASGI app from a thread, with uvicorn's HTTP on a loop of its own.

uvicorn's own server looks every tenth of a second whether it is to stop; hundreds of tests start
one, so this one starts and stops at once.
"""

from __future__ import annotations

import asyncio
import socket
import threading
from typing import cast

import uvicorn
from starlette.types import ASGIApp
from uvicorn.protocols.http.h11_impl import H11Protocol
from uvicorn.server import ServerState

from local_hub.faults import Connection

# A connection that the server ends while the client takes it up again looks like a failure.
KEEP_ALIVE_SECS = 3600
STEP_SECS = 0.01
# Far more than any answer takes; an answer that still runs then hangs, and its test fails.
STOP_SECS = 30.0


class ServerThread:
    """An app at 127.0.0.1:`port`, from `start` to `stop`."""

    def __init__(self, app: ASGIApp, port: int = 0) -> None:
        self._config = uvicorn.Config(
            app,
            http=_Protocol,
            ws="none",
            lifespan="off",
            log_config=None,
            access_log=False,
            timeout_keep_alive=KEEP_ALIVE_SECS,
        )
        self._config.load()
        self._socket = socket.create_server(("127.0.0.1", port), backlog=128)
        self.port: int = self._socket.getsockname()[1]
        self._stopping = asyncio.Event()
        self._thread = threading.Thread(target=self._run, name="local-hub", daemon=True)

    def start(self) -> None:
        # The socket listens already: a client that connects now is answered once the loop runs.
        self._loop = asyncio.new_event_loop()
        self._thread.start()

    def stop(self) -> None:
        self._loop.call_soon_threadsafe(self._stopping.set)
        self._thread.join(2 * STOP_SECS)
        if self._thread.is_alive():
            raise AssertionError("the local Hub does not stop: a thread of it waits for something")

    def _run(self) -> None:
        with asyncio.Runner(loop_factory=lambda: self._loop) as runner:
            runner.run(self._serve())

    async def _serve(self) -> None:
        state = ServerState()
        server = await self._loop.create_server(
            lambda: _Protocol(self._config, state, {}, self._loop), sock=self._socket
        )
        await self._stopping.wait()
        server.close()
        # Connections still being accepted or answered; aborting a connection ends its answer.
        until = self._loop.time() + STOP_SECS
        while (others := asyncio.all_tasks() - {asyncio.current_task()}) or state.connections:
            if self._loop.time() > until:
                raise AssertionError(f"the local Hub does not stop: {others or state.connections}")
            for connection in list(state.connections):
                cast("_Protocol", connection).transport.abort()
            await (asyncio.wait(others, timeout=STEP_SECS) if others else asyncio.sleep(0))


class _Protocol(H11Protocol):
    """Tells the app over which connection a request came, so that it can be cut."""

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        # asyncio does this only for sockets that were made with the protocol's number; without it
        # the end of an answer waits 40 ms for the client to confirm its beginning.
        transport.get_extra_info("socket").setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._connection = Connection(transport, asyncio.Event())
        self.app_state = {"connection": self._connection}

    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc)
        self._connection.lost.set()
