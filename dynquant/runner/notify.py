"""Notifies a web address that a job has ended: Slack, Discord, or any service that takes JSON.

The address comes from the requester, and the names in the message from the model's author, so
neither is trusted: the address must not lead to this machine or its network, and no name may become
a mention or a link.
"""

from __future__ import annotations

import ipaddress
import logging
import socket
import threading
import time
from collections.abc import Callable, Mapping
from typing import Any
from urllib.parse import quote, urlsplit

import requests
from requests.adapters import HTTPAdapter

from dynquant.jobs.job import Job
from dynquant.logs import Redactor
from dynquant.report.hub_address import HUB_URL
from dynquant.texts.markdown import clean

__all__ = ["PinnedAdapter", "RefusedAddressError", "host_of", "message_for", "notify", "send"]

Post = Callable[[str, Mapping[str, object]], int]
"""Sends JSON to an address; the status that it answers with."""

_TIMEOUT_SECS = 10.0
_WAITS_SECS = (1.0, 4.0)
"""Between the tries."""

_TOO_MANY_REQUESTS = 429
_SERVER_ERROR = 500

_SLACK_HOST = "hooks.slack.com"
_DISCORD_HOSTS = frozenset(
    {"discord.com", "canary.discord.com", "ptb.discord.com", "discordapp.com"}
)
_SLACK_ESCAPES = str.maketrans({"&": "&amp;", "<": "&lt;", ">": "&gt;"})

# Discord refuses more than 2,000 characters; with these a message stays below.
_MAX_SENTENCE = 400
_MAX_LINKS = 5

_GLOBAL_UNICAST = ipaddress.ip_network("2000::/3")

_redacted = Redactor()
_logger = logging.getLogger(__name__)


class RefusedAddressError(Exception):
    """Nothing is sent there; the message says why."""


def send(url: str, content: Mapping[str, object], *, allow_local: bool = False) -> int:
    """Post `content` as JSON; returns the status of the answer, whose body is not read.

    The connection goes to the IP address that was checked, so a later answer of DNS cannot change
    it. Redirects and proxies are not used: both would choose another address.

    Args:
        url: Begins with `https://`.
        content: JSON types.
        allow_local: Also accept addresses of this machine, those with `http://` as well, and of
            its network.

    Raises:
        RefusedAddressError: The address is not allowed.
        OSError: It does not answer.
    """
    try:
        parts = urlsplit(url)
        host = (parts.hostname or "").encode("idna").decode("ascii")
        port = parts.port or (443 if parts.scheme == "https" else 80)
    except ValueError as error:
        raise RefusedAddressError("it is not a web address") from error
    if parts.username is not None:
        raise RefusedAddressError("it has a name or a password in it")
    address = _checked_address(parts.scheme, host, port, allow_local=allow_local)
    path = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
    with requests.Session() as session:
        session.trust_env = False  # no proxy, no password from ~/.netrc
        session.mount("https://", PinnedAdapter(host))
        with session.post(
            f"{parts.scheme}://{_bracketed(str(address))}:{port}{path}",
            json=content,
            headers={"Host": _bracketed(host) + (f":{port}" if parts.port else "")},
            timeout=_TIMEOUT_SECS,
            allow_redirects=False,
            stream=True,
        ) as response:
            return response.status_code


def notify(
    job: Job,
    *,
    post: Post = send,
    sleep: Callable[[float], None] = time.sleep,
    patience_secs: float = 60.0,
) -> None:
    """Notify the address in the job's request, if there is one; a failure is only logged.

    Args:
        job: It is over.
        post: Sends; `partial(send, allow_local=True)` if addresses of this network are allowed.
        sleep: Waits between two tries.
        patience_secs: Limit for all tries. The client's timeouts do not bound DNS, nor an answer
            that arrives byte by byte.
    """
    url = job.request.notify_url
    if url is None:
        return
    thread = threading.Thread(
        target=_deliver, args=(job, url, post, sleep), name="notify", daemon=True
    )
    thread.start()
    thread.join(patience_secs)
    if thread.is_alive():
        _log_failure(job, url, "it takes too long to answer")


def message_for(job: Job, url: str) -> dict[str, object]:
    """The notification about `job`, in the format of the service at `url`."""
    parts = urlsplit(url)
    if parts.hostname == _SLACK_HOST:
        return {"text": _text(job).translate(_SLACK_ESCAPES)}
    if parts.hostname in _DISCORD_HOSTS and parts.path.startswith("/api/webhooks/"):
        return {"content": _text(job), "allowed_mentions": {"parse": []}}
    return {
        "id": job.id,
        "state": str(job.state),
        "model": job.request.model,
        "sentence": _redacted(job.sentence),
        "reason_code": job.reason_code,
        "results": [
            {"repo_id": each.repo_id, "commit_sha": each.commit_sha, "url": _url(each.repo_id)}
            for each in job.results
        ],
    }


class PinnedAdapter(HTTPAdapter):
    """For URLs with an IP address in them: the certificate must be that of `hostname`."""

    def __init__(self, hostname: str) -> None:
        self._hostname = hostname  # before `__init__`, which makes the pools
        super().__init__()

    def init_poolmanager(self, *args: Any, **options: Any) -> None:
        """Make pools whose connections ask for `hostname` and check that it answers."""
        super().init_poolmanager(*args, server_hostname=self._hostname, **options)


def _deliver(job: Job, url: str, post: Post, sleep: Callable[[float], None]) -> None:
    for wait_secs in (*_WAITS_SECS, None):
        failure, may_help = _try(job, url, post)
        if not failure:
            _logger.info("Notified %s.", host_of(url), extra={"job_id": job.id})
            return
        if wait_secs is None or not may_help:
            _log_failure(job, url, failure)
            return
        sleep(wait_secs)


def _try(job: Job, url: str, post: Post) -> tuple[str, bool]:
    """Why it failed, empty if it did not, and whether another try may help."""
    try:
        status = post(url, message_for(job, url))
    except RefusedAddressError as error:
        return str(error), False
    except Exception as error:  # noqa: BLE001  an error here must not fail the job
        # Not the error's message, which contains the address, a secret of the requester.
        return f"{type(error).__name__}", isinstance(error, OSError)
    if status // 100 == 2:  # noqa: PLR2004
        return "", False
    return f"status {status}", status == _TOO_MANY_REQUESTS or status >= _SERVER_ERROR


def _log_failure(job: Job, url: str, failure: str) -> None:
    _logger.warning(
        "%s could not be notified: %s.",
        host_of(url),
        failure,
        extra={"job_id": job.id},
    )


def host_of(url: str) -> str:
    """The part of an address that may be logged; the rest may be a secret."""
    try:
        return urlsplit(url).hostname or "The address to notify"
    except ValueError:
        return "The address to notify"


def _bracketed(host: str) -> str:
    """The host as URLs and the header `Host` write it."""
    return f"[{host}]" if ":" in host else host


def _checked_address(
    scheme: str, host: str, port: int, *, allow_local: bool
) -> ipaddress.IPv4Address | ipaddress.IPv6Address:
    """The IP address of `host` to connect to.

    Raises:
        RefusedAddressError: One of its addresses, or the scheme, is not allowed.
    """
    if not host:
        raise RefusedAddressError("it is not a web address")
    found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    addresses = [ipaddress.ip_address(each[4][0]) for each in found]
    is_loopback = all(each.is_loopback for each in addresses)
    if scheme != "https" and not (scheme == "http" and allow_local and is_loopback):
        raise RefusedAddressError("it does not begin with https://")
    if not all(map(_is_public, addresses)) and not (
        allow_local and all(each.is_private for each in addresses)
    ):
        raise RefusedAddressError("it leads into a private network")
    return addresses[0]


def _is_public(address: ipaddress.IPv4Address | ipaddress.IPv6Address) -> bool:
    # Other ranges of IPv6, and 6to4, embed IPv4 addresses, which may be private.
    if isinstance(address, ipaddress.IPv6Address) and (
        address not in _GLOBAL_UNICAST or address.sixtofour is not None
    ):
        return False
    return address.is_global and not address.is_multicast


def _text(job: Job) -> str:
    """The message for people. Texts from outside are in code spans, where markup has no effect."""
    bpw = ", ".join(f"{target:g}" for target in job.request.targets_bpw)
    lines = [f"dynquant: {_code(job.request.model)} at {bpw} bits per weight: {job.state}."]
    lines += [_url(each.repo_id) for each in job.results[:_MAX_LINKS]]
    if (num_more := len(job.results) - _MAX_LINKS) > 0:
        lines.append(f"and {num_more} more")
    if job.sentence:
        lines.append(_code(_redacted(job.sentence)[:_MAX_SENTENCE]))
    lines.append(f"Job {_code(job.id)}")
    return "\n".join(lines)


def _code(text: str) -> str:
    words = clean(text).replace("`", "'")
    return f"`{words}`"


def _url(repo_id: str) -> str:
    return f"{HUB_URL}/{quote(repo_id, safe='/')}"
