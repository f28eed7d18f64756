"""The local Hub itself: state, access, and the HTTP server in a thread."""

from __future__ import annotations

import re
import socket
import struct
import threading
from collections.abc import Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, unquote

from tests.local_hub.answers import Answer, RefusalError, Request, error_answer
from tests.local_hub.faults import Fault
from tests.local_hub.repos import Commit, Repo, folder_files
from tests.local_hub.routes import ROUTES


class LocalHub:
    """A Hub at `url`, to be used as a context.

    Attributes:
        repos: (kind, id) → repo.
        tokens: Token → user.
        renamed: Old id → new id.
        requests: Everything that was asked so far.
        faults: What goes wrong; the first that matches is taken.
        ignore_ranges: Whether whole files are sent to who asks for a part.
    """

    def __init__(self) -> None:
        self.repos: dict[tuple[str, str], Repo] = {}
        self.tokens: dict[str, str] = {}
        self.renamed: dict[str, str] = {}
        self.requests: list[Request] = []
        self.faults: list[Fault] = []
        self.lock = threading.RLock()
        self.closing = threading.Event()
        self.ignore_ranges = False
        self._server = _Server(self)
        port = self._server.server_address[1]
        self.url = f"http://127.0.0.1:{port}"
        # Another origin for the client, as the real Hub's storage is.
        self.cdn_url = f"http://localhost:{port}"

    def __enter__(self) -> LocalHub:
        self._thread = threading.Thread(
            target=self._server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True
        )
        self._thread.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self.closing.set()
        self._server.shutdown()
        self._thread.join()
        self._server.close_connections()
        self._server.server_close()

    def add(
        self, repo_id: str, files: Mapping[str, bytes | Path] | Path, **attributes: Any
    ) -> Repo:
        """A new repo with one commit; `files` may be a folder."""
        repo = Repo(id=repo_id, **attributes)
        repo.commit(folder_files(files) if isinstance(files, Path) else files)
        self.repos[repo.kind, repo_id] = repo
        return repo

    def fail(self, pattern: str, **attributes: Any) -> Fault:
        self.faults.append(Fault(pattern, **attributes))
        return self.faults[-1]

    def asked(self, pattern: str) -> list[Request]:
        return [r for r in self.requests if re.search(pattern, f"{r.method} {r.path}")]

    def answer(self, request: Request) -> Answer:
        if request.token is not None and not request.path.startswith("/cdn/"):
            request.user = self.tokens.get(request.token)
            if request.user is None:
                return error_answer(401, None, "Invalid credentials in Authorization header")
        for methods, pattern, route in ROUTES:
            if request.method in methods and (found := pattern.fullmatch(request.path)):
                parts = {name: unquote(part or "") for name, part in found.groupdict().items()}
                try:
                    return route(self, request, **parts)
                except RefusalError as refusal:
                    return refusal.answer
        return error_answer(404, None, "Not Found")

    def repo(self, request: Request, kind: str, repo_id: str) -> Repo:
        """The repo, if it exists and the user may know of it."""
        if (new := self.renamed.get(repo_id)) is not None:
            location = request.path.replace(repo_id, new, 1)
            raise RefusalError(Answer(307, headers={"Location": location}))
        repo = self.repos.get((kind, repo_id))
        if repo is None or (repo.private and not repo.may_read(request.user)):
            # Who sends no token is not told whether there is such a repo.
            status = 401 if request.user is None else 404
            raise RefusalError(error_answer(status, "RepoNotFound", "Repository not found"))
        if repo.disabled:
            raise RefusalError(error_answer(403, None, "Access to this resource is disabled."))
        return repo

    def commit(self, repo: Repo, revision: str) -> Commit:
        if (commit := repo.at(revision or "main")) is None:
            raise RefusalError(error_answer(404, "RevisionNotFound", f"Invalid rev id: {revision}"))
        return commit


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 64

    def __init__(self, hub: LocalHub) -> None:
        self.hub = hub
        self._connections: set[socket.socket] = set()
        super().__init__(("127.0.0.1", 0), _Handler)

    def process_request(self, request: Any, client_address: Any) -> None:
        with self.hub.lock:
            self._connections.add(request)
        super().process_request(request, client_address)

    def shutdown_request(self, request: Any) -> None:
        super().shutdown_request(request)
        with self.hub.lock:
            self._connections.discard(request)

    def close_connections(self) -> None:
        with self.hub.lock:
            connections = list(self._connections)
        for connection in connections:
            try:
                connection.shutdown(socket.SHUT_RDWR)
            except OSError:
                continue

    def handle_error(self, request: Any, client_address: Any) -> None:
        if not self.hub.closing.is_set():
            super().handle_error(request, client_address)


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    server: _Server

    def handle_one_request(self) -> None:
        try:
            super().handle_one_request()
        except (ConnectionError, BrokenPipeError):
            self.close_connection = True

    def do_GET(self) -> None:
        hub = self.server.hub
        path, _, query = self.path.partition("?")
        request = Request(
            method=self.command,
            path=path,
            query=parse_qs(query),
            headers={name.lower(): value for name, value in self.headers.items()},
            body=self.rfile.read(int(self.headers.get("Content-Length", 0))),
        )
        with hub.lock:
            hub.requests.append(request)
            fault = next((f for f in hub.faults if f.takes(self.command, path)), None)
            answer = hub.answer(request)
        if fault is None:
            return self._send(request, answer)
        if fault.action == "slow":
            hub.closing.wait(fault.secs)
            return self._send(request, answer)
        if fault.action == "reset":
            # Zero linger makes closing a reset.
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            self.close_connection = True
            return None
        if fault.action == "truncate":
            answer.length = len(answer.body)
            answer.body = answer.body[: len(answer.body) // 2]
            self.close_connection = True
            return self._send(request, answer)
        if fault.action == "html":
            page = Answer(200, b"<html>Please log in</html>", {"Content-Type": "text/html"})
            return self._send(request, page)
        return self._send(request, Answer(fault.status, b"{}", dict(fault.headers)))

    do_HEAD = do_POST = do_PUT = do_DELETE = do_GET  # noqa: N815

    def _send(self, request: Request, answer: Answer) -> None:
        request.status = answer.status
        body = b"" if self.command == "HEAD" else answer.body
        request.num_bytes = len(body)
        self.send_response(answer.status)
        for name, value in answer.headers.items():
            self.send_header(name, value)
        length = len(answer.body) if answer.length is None else answer.length
        self.send_header("Content-Length", str(length))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002
        """Keep quiet: `LocalHub.requests` is the log."""
