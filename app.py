"""The web pages, on a Space or on a local machine: `python app.py`.

On a local machine this serves the pages and starts a runner as a second process, over one SQLite
file. A Space with DYNQUANT_INBOX_REPO only serves the pages: it sends requests to runners through
the inbox repo, and runners post their boards back by HTTPS. With a budget for Jobs of the Hub a
second process starts such runners while requests wait.
"""

from __future__ import annotations

import logging
import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path

from dynquant.cli.ending import told
from dynquant.cli.starting import make_ready
from dynquant.errors import DynquantError, InvalidOptionError

_MAX_PORT = 65_535


def _port() -> int:
    """The port that the pages listen at.

    Raises:
        InvalidOptionError: GRADIO_SERVER_PORT is no port.
    """
    port = os.environ.get("GRADIO_SERVER_PORT", "").strip() or "7860"
    if not (port.isascii() and port.isdigit() and int(port) <= _MAX_PORT):
        raise InvalidOptionError("GRADIO_SERVER_PORT must be a number from 0 to 65535.")
    return int(port)


with told():
    # Gradio reads variables and opens connections on import, with error messages of its own.
    make_ready()
    _port()
    from dynquant.hub.client_environment import check_connection

    check_connection()

    import uvicorn
    from fastapi import FastAPI

    from dynquant.hub.default_namespace import default_namespace
    from dynquant.hub.inbox import HubInbox
    from dynquant.hub.models import opened_briefly
    from dynquant.hub.published import HubRepos
    from dynquant.hub.publishing import HubPublisher
    from dynquant.hub.search import HubSearch
    from dynquant.hub.visitor import HubVisitor
    from dynquant.jobs.board import DatabaseBoard
    from dynquant.logs import configure_logging, log_to_terminal, secrets_in
    from dynquant.model.access import Access
    from dynquant.model.naming import local_name
    from dynquant.model.origin import Origin
    from dynquant.runner.machine import keep_memory_flat
    from dynquant.settings import Settings, user_name
    from dynquant.watch.service import WatchService
    from dynquant.watch.status import WatchRequests
    from dynquant.watch.webhook import Webhook
    from dynquant.web.finished_models import FinishedModels
    from dynquant.web.model_lookup import ModelLookup
    from dynquant.web.ports import JobsPort, WatchPort
    from dynquant.web.public_view import PublicJobs, PublicWatch
    from dynquant.web.remote_jobs import RemoteJobs
    from dynquant.web.service import Service
    from dynquant.web.settings import WebSettings
    from dynquant.web.sign_in import SignIn
    from dynquant.web.site import make_site
    from dynquant.web.snapshots import Snapshots
    from dynquant.web.space_watch import SpaceWatch

_LOG_FILE = Path("logs", "pages.log")
"""Beside the runner's log: two processes must not share a log file."""

_RESTART_SECS = 10.0
_STOP_SECS = 15.0
_CLOSE_SECS = 3
_REFUSED = 2
"""Exit code of a runner with invalid settings, or beside another runner of the same name."""

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
        # uvicorn raises the signal again when it has stopped; the default would skip the clean-up.
        signal.signal(signal.SIGTERM, lambda *_: sys.exit())
        keep_memory_flat()
        beside: AbstractContextManager[None] = nullcontext()
        if is_whole:
            beside = embedded_runner(os.environ, ("runner",))
        elif settings.hub_jobs_micro_usd_per_day is not None:
            # The runners in Jobs post their boards here.
            address = {"DYNQUANT_SPACE_URL": settings.space_url or web.address}
            beside = embedded_runner(os.environ | address, ("runner", "--elastic"))
        with beside:
            _serve(site, web.host, port)


def _configure_logging(settings: Settings, web: WebSettings) -> None:
    """Log into a file; on a Space, whose files cannot be fetched, to its own log.

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
    """The pages, and whether a runner is to run beside them.

    Raises:
        InvalidOptionError: Settings contradict each other.
    """
    jobs: JobsPort
    watch: WatchService | SpaceWatch | None = None
    snapshots = webhook = None
    if web.is_space and settings.inbox_repo is not None:
        _require_secret(settings)
        snapshots = Snapshots()
        # Runners post only public jobs, so no token is needed to look for their results.
        published = HubRepos(token=False)
        jobs = RemoteJobs(HubInbox(settings.inbox_repo), snapshots, published)
        watch = SpaceWatch(snapshots)
    else:
        jobs = DatabaseBoard(
            settings.database_url, daily_limit=settings.daily_limit, published=HubRepos()
        )
        if settings.watch_config is not None:
            watch = WatchService(settings, settings.watch_config)
    if watch is not None and settings.webhook_secret is not None:
        webhook = Webhook(settings.webhook_secret, covers=watch.covers, look=watch.look_at)
    shown: WatchPort | None = watch
    if web.is_space:
        jobs = public = PublicJobs(jobs)
        if isinstance(watch, WatchService):
            shown = PublicWatch(watch, public)
    # A Space shows visitors only public models; a local machine uses its own token.
    token = False if web.is_space else None
    search = HubSearch(token=token)
    service = Service(
        settings=web,
        jobs=jobs,
        sign_in=SignIn(
            web,
            account=lambda t: HubVisitor(t).account(),
            macs=lambda t: HubVisitor(t).macs(),
            user=local_name(user_name()),
        ),
        model_lookup=ModelLookup(search, open_hub=lambda: opened_briefly(token=token)),
        search=search,
        finished_models=FinishedModels(search, namespace=settings.publish_to),
        namespace=_namespace(settings.publish_to),
        check_destination=_check_destination if snapshots is None else None,
        watch=shown,
    )
    site = make_site(
        service,
        snapshots=snapshots,
        space_secret=settings.space_secret,
        watch_requests=watch.collect if isinstance(watch, SpaceWatch) else WatchRequests,
        webhook=webhook,
        mcp_server=os.environ.get("GRADIO_MCP_SERVER", "").lower() == "true",
    )
    return site, snapshots is None


def _check_destination(repo_id: str, origin: Origin, access: Access) -> None:
    """Refuse a repo that the runner beside these pages could not write."""
    HubPublisher().check(repo_id, origin=origin, access=access)


def _require_secret(settings: Settings) -> None:
    if settings.space_secret is None:
        raise InvalidOptionError(
            "With DYNQUANT_INBOX_REPO runners work for this Space, but without "
            "DYNQUANT_SPACE_SECRET they cannot post their boards. Set it under "
            "'Settings', 'Variables and secrets', to the secret that the runners have."
        )


def _namespace(publish_to: str | None) -> Callable[[], str | None]:
    """As `default_namespace`, with None where the Hub does not say."""
    ask = default_namespace(publish_to)

    def namespace() -> str | None:
        try:
            return ask()
        except DynquantError:
            return None

    return namespace


@contextmanager
def embedded_runner(environment: Mapping[str, str], words: Sequence[str]) -> Iterator[None]:
    """`dynquant WORDS` as a child process, started again when it dies."""
    stopping = threading.Event()
    processes: list[subprocess.Popen[bytes]] = []

    def keep() -> None:
        while not stopping.is_set():
            process = subprocess.Popen(
                [sys.executable, "-m", "dynquant", *words], env=dict(environment)
            )
            processes[:] = [process]
            code = process.wait()
            if stopping.is_set():
                return
            if code == _REFUSED:
                _logger.warning("No runner was started; the line above says why.")
                return
            _logger.warning("The runner ended with code %s; restarting it", code)
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
        log_config=None,  # its log lines go to our log
        log_level="warning",
        access_log=False,
        proxy_headers=False,  # web.visitor_ids decides which hops are proxies
        timeout_graceful_shutdown=_CLOSE_SECS,  # open pages keep their connections
    )


if __name__ == "__main__":
    main()
