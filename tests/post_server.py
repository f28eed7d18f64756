"""A server on this machine that takes POST requests, as a Space or a notified address would."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from ssl import SSLContext

__all__ = ["Post", "taking_posts"]


@dataclass(frozen=True)
class Post:
    """One request as it came in."""

    path: str
    headers: Mapping[str, str]
    body: bytes


@contextmanager
def taking_posts(
    answer: Callable[[Post], int | tuple[int, str]],
    *,
    port: int = 0,
    tls: SSLContext | None = None,
) -> Iterator[int]:
    """Yields the port.

    Args:
        answer: Status of the answer, or that and where a redirect leads.
        port: 0 for a free one.
        tls: Certificate of the server, if it speaks HTTPS.
    """

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            found = answer(Post(self.path, dict(self.headers), body))
            status, *location = found if isinstance(found, tuple) else (found,)
            self.send_response(status)
            for url in location:
                self.send_header("Location", url)
            self.end_headers()

        def log_message(self, *args) -> None:
            """Says nothing."""

    server = ThreadingHTTPServer(("127.0.0.1", port), Handler)
    if tls is not None:
        server.socket = tls.wrap_socket(server.socket, server_side=True)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield server.server_port
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
