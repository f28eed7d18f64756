"""The Space, and the pages on one's own machine: `python app.py`.

On a machine of one's own everything runs here: the pages, and beside them a runner as a process
of its own, over one SQLite file. A Space that has DYNQUANT_INBOX_REPO only shows the pages: its
requests go to runners elsewhere by mail, and their boards come back by HTTPS.
"""

from __future__ import annotations

import logging
import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path

from dynquant.cli.ending import told
from dynquant.cli.starting import make_ready
from dynquant.errors import DynquantError, InvalidOptionError

_MAX_PORT = 65_535


def _port() -> int:
    """Where the pages listen.

    Raises:
        InvalidOptionError: GRADIO_SERVER_PORT is no port.
    """
    port = os.environ.get("GRADIO_SERVER_PORT", "").strip() or "7860"
    if not (port.isascii() and port.isdigit() and int(port) <= _MAX_PORT):
        raise InvalidOptionError("GRADIO_SERVER_PORT must be a number from 0 to 65535.")
    return int(port)


with told():
    # Gradio reads variables and opens connections as it is imported, and fails in its own words.
    make_ready()
    _port()
    from dynquant.hub.client_environment import check_connection

    check_connection()

    import uvicorn
    from fastapi import FastAPI

    from dynquant.hub.inbox import HubInbox
    from dynquant.hub.models import opened_briefly
    from dynquant.hub.published import HubRepos
    from dynquant.hub.publishing import HubPublisher
    from dynquant.hub.search import HubSearch
    from dynquant.hub.visitor import HubVisitor
    from dynquant.jobs.board import DatabaseBoard
    from dynquant.logs import configure_logging, log_to_terminal, secrets_in
    from dynquant.model.naming import local_name
    from dynquant.runner.machine import keep_memory_flat
    from dynquant.settings import Settings, user_name
    from dynquant.watch import Webhook
    from dynquant.watch.service import WatchService
    from dynquant.watch.status import WatchRequests
    from dynquant.web.catalogue import Catalogue
    from dynquant.web.desk import BoardDesk, JobDesk
    from dynquant.web.model_lookup import ModelLookup
    from dynquant.web.public_view import PublicDesk, PublicWatch
    from dynquant.web.remote_jobs import RemoteJobs
    from dynquant.web.service import Service
    from dynquant.web.settings import WebSettings
    from dynquant.web.sign_in import SignIn
    from dynquant.web.site import make_site
    from dynquant.web.snapshots import Snapshots
    from dynquant.web.space_watch import SpaceWatch
    from dynquant.web.watch_desk import WatchDesk

_LOG_FILE = Path("logs", "pages.log")
"""Beside that of the runner: two processes must not share one."""

_RESTART_SECS = 10.0
_STOP_SECS = 15.0
_CLOSE_SECS = 3
_REFUSED = 2
"""Exit code of a runner that cannot work as it is set up, or is not needed."""

_logger = logging.getLogger("dynquant.app")


def main() -> None:
    """Serve the pages until SIGTERM or Ctrl-C."""
    with told():
        make_ready()
        settings = Settings.from_environment(os.environ)
        web = WebSettings.from_environment(os.environ)
        _configure_logging(settings, web)
        port = _port()
        _require_free(web.host, port)
        site, is_whole = make_app(settings, web)
        # uvicorn sends itself the signal again when it is done, which must not skip what comes
        # after.
        signal.signal(signal.SIGTERM, lambda *_: sys.exit())
        keep_memory_flat()
        if is_whole:
            with embedded_runner(os.environ):
                _serve(site, web.host, port)
        else:
            _serve(site, web.host, port)


def _configure_logging(settings: Settings, web: WebSettings) -> None:
    """Log into a file; on a Space, whose files cannot be fetched, everything goes to its log.

    Raises:
        InvalidOptionError: The file cannot be written.
    """
    secrets = secrets_in(os.environ)
    if web.is_space:
        log_to_terminal(secrets=secrets, verbose=True)
    else:
        configure_logging(settings.home, secrets=secrets, file=_LOG_FILE)
    for name in ("httpx", "httpx2"):
        logging.getLogger(name).setLevel(logging.WARNING)


def make_app(settings: Settings, web: WebSettings) -> tuple[FastAPI, bool]:
    """The pages, and whether everything else is to run beside them.

    Raises:
        InvalidOptionError: Settings contradict each other.
    """
    desk: JobDesk
    watch: WatchService | SpaceWatch | None = None
    snapshots = webhook = None
    if web.is_space and settings.inbox_repo is not None:
        if settings.space_secret is None:
            raise InvalidOptionError(
                "DYNQUANT_INBOX_REPO has runners work for this Space, and without "
                "DYNQUANT_SPACE_SECRET none of them could show it what it does. Set it under "
                "'Settings', 'Variables and secrets', to what the runners have."
            )
        snapshots = Snapshots()
        # Runners post what is public, and to see that it is there takes no token.
        published = HubRepos(token=False)
        desk = RemoteJobs(HubInbox(settings.inbox_repo), snapshots, published)
        watch = SpaceWatch(snapshots)
    else:
        desk = BoardDesk(
            DatabaseBoard(
                settings.database_url, daily_limit=settings.daily_limit, published=HubRepos()
            )
        )
        if settings.watch_config is not None:
            watch = WatchService(settings, settings.watch_config)
    if watch is not None and settings.webhook_secret is not None:
        webhook = Webhook(settings.webhook_secret, covers=watch.covers, look=watch.look_at)
    shown: WatchDesk | None = watch
    if web.is_space:
        desk = public = PublicDesk(desk)
        if isinstance(watch, WatchService):
            shown = PublicWatch(watch, public)
    # Strangers see what everybody may see; on one's own machine its token counts.
    token = False if web.is_space else None
    search = HubSearch(token=token)
    namespace = _namespace(web)
    service = Service(
        settings=web,
        desk=desk,
        reception=SignIn(
            web,
            account=lambda t: HubVisitor(t).account(),
            macs=lambda t: HubVisitor(t).macs(),
            user=local_name(user_name()),
        ),
        prospects=ModelLookup(search, open_hub=lambda: opened_briefly(token=token)),
        search=search,
        catalogue=Catalogue(search, namespace=web.publish_to),
        namespace=namespace,
        watch=shown,
    )
    site = make_site(
        service,
        snapshots=snapshots,
        space_secret=settings.space_secret,
        errands=watch.collect if isinstance(watch, SpaceWatch) else WatchRequests,
        webhook=webhook,
        mcp_server=os.environ.get("GRADIO_MCP_SERVER", "").lower() == "true",
    )
    return site, snapshots is None


def _namespace(web: WebSettings) -> Callable[[], str | None]:
    """Where models go: what is set, else where this machine's token belongs."""

    @lru_cache(maxsize=1)
    def ask() -> str:
        return HubPublisher().account().name

    def namespace() -> str | None:
        if web.publish_to is not None:
            return web.publish_to
        try:
            return ask()
        except DynquantError:
            return None

    return namespace


@contextmanager
def embedded_runner(environment: Mapping[str, str]) -> Iterator[None]:
    """A runner in a process of its own, started again when it dies."""
    stopping = threading.Event()
    processes: list[subprocess.Popen[bytes]] = []

    def keep() -> None:
        while not stopping.is_set():
            process = subprocess.Popen(
                [sys.executable, "-m", "dynquant", "runner"], env=dict(environment)
            )
            processes[:] = [process]
            code = process.wait()
            if stopping.is_set():
                return
            if code == _REFUSED:
                _logger.warning("There is no runner here; the line above says why.")
                return
            _logger.warning("The runner ended with code %s; it is started again", code)
            stopping.wait(_RESTART_SECS)

    keeper = threading.Thread(target=keep, name="runner", daemon=True)
    keeper.start()
    try:
        yield
    finally:
        stopping.set()
        for process in processes:
            process.terminate()
        keeper.join(_STOP_SECS)
        for process in processes:
            if process.poll() is None:
                process.kill()


def _require_free(host: str, port: int) -> None:
    """Refuse an address that nothing can listen at.

    Raises:
        InvalidOptionError: There is no such address here, or something listens there already.
    """
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
        for family, *_, address in found:
            socket.create_server(address[:2], family=family).close()
    except (OSError, UnicodeError) as error:
        raise InvalidOptionError(
            f"The pages cannot listen at {host}, port {port}: another program may do so already. "
            "Set GRADIO_SERVER_PORT to another port, or correct GRADIO_SERVER_NAME if it is set."
        ) from error


def _serve(site: FastAPI, host: str, port: int) -> None:
    sys.stderr.write(f"The pages are at http://{host}:{port}\n")
    uvicorn.run(
        site,
        host=host,
        port=port,
        log_config=None,  # its lines go where ours go
        log_level="warning",
        access_log=False,
        proxy_headers=False,  # web.askers decides which of its hops are proxies
        timeout_graceful_shutdown=_CLOSE_SECS,  # open pages hold a connection for ever
    )


if __name__ == "__main__":
    main()
