"""Checks the environment variables of the Hub's client, with a sentence for each problem.

The client itself fails with the errors of its libraries, some of them while it is imported. No
sentence repeats a value: a proxy's address may contain a password, and a token is a secret.
"""

from __future__ import annotations

import importlib.util
import os
import re
from pathlib import Path
from urllib.parse import urlsplit
from urllib.request import getproxies, proxy_bypass

import httpx2

from dynquant.errors import InvalidOptionError

__all__ = [
    "certificates_problem",
    "check_connection",
    "check_imports",
    "check_token",
    "is_bearer",
    "proxy_for",
    "proxy_in_use",
    "proxy_problem",
    "token_problem",
]

_SECONDS = ("HF_HUB_DOWNLOAD_TIMEOUT", "HF_HUB_ETAG_TIMEOUT")
_TOKENS = ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN")
_SCHEMES = ("http", "https", "all")
_SOCKS = ("socks5", "socks5h")
_MAX_PORT = 65_535

_BEARER = re.compile(r"[A-Za-z0-9._~+/=-]+")


def check_imports() -> None:
    """Refuse values with which huggingface_hub cannot be imported.

    Raises:
        InvalidOptionError: Names the variable.
    """
    for name in _SECONDS:
        value = os.environ.get(name)
        if value is not None and not (value.isascii() and value.strip().isdigit()):
            raise InvalidOptionError(
                f"{name} must be a whole number of seconds, such as 30. Correct it, or unset it."
            )
    endpoint = os.environ.get("HF_ENDPOINT")
    if endpoint is not None and not _is_web_address(endpoint):
        raise InvalidOptionError(
            "HF_ENDPOINT must be the web address of a Hub, such as 'https://huggingface.co'. "
            "Correct it, or unset it."
        )


def check_connection() -> None:
    """Refuse proxies and certificates with which no connection can be made.

    Raises:
        InvalidOptionError: Names the variable.
    """
    if problem := proxy_problem() or certificates_problem():
        raise InvalidOptionError(problem)


def check_token() -> None:
    """Refuse a malformed token; a missing token is accepted.

    Raises:
        InvalidOptionError: Names the variable or file.
    """
    if problem := token_problem():
        raise InvalidOptionError(problem)


def proxy_problem() -> str | None:
    """Why a proxy that the environment names cannot work; None if there is no problem."""
    found = getproxies()
    if "*" in (host.strip() for host in found.get("no", "").split(",")):
        return None
    for scheme in _SCHEMES:
        if url := found.get(scheme):
            variable = _variable(scheme)
            if problem := _proxy_fault(url if "://" in url else f"http://{url}"):
                return f"{variable} {problem}, or unset {variable}."
    return None


def proxy_for(url: str) -> str | None:
    """The variable that names the proxy for requests to `url`; None if they use no proxy."""
    parts = urlsplit(url)
    found = getproxies()
    if not parts.hostname or proxy_bypass(parts.hostname):
        return None
    scheme = next((each for each in (parts.scheme, "all") if found.get(each)), None)
    return None if scheme is None else _variable(scheme)


def proxy_in_use() -> str | None:
    """The variable that names the proxy for requests to the Hub; None if they use no proxy."""
    from huggingface_hub import constants  # noqa: PLC0415  `check_imports` comes before it

    return proxy_for(constants.ENDPOINT)


def certificates_problem() -> str | None:
    """Why the certificates that the environment names cannot be read; None if they can."""
    file, folder = (os.environ.get(name) for name in ("SSL_CERT_FILE", "SSL_CERT_DIR"))
    if file:
        try:
            httpx2.create_ssl_context()
        except OSError:  # missing, not readable, or without certificates
            return (
                "SSL_CERT_FILE must name a file of certificates in PEM format that you may read. "
                "Correct it, or unset it."
            )
    elif folder and not Path(folder).is_dir():
        return "SSL_CERT_DIR must name a folder of certificates. Correct it, or unset it."
    return None


def token_problem() -> str | None:
    """Why the client's token is malformed or cannot be read; None if there is no problem."""
    variable = next((name for name in _TOKENS if os.environ.get(name)), None)
    if variable is not None:
        place, mend = variable, f"Set {variable} to the token alone, as the Hub shows it"
        content = os.environ[variable]
    else:
        from huggingface_hub import constants  # noqa: PLC0415  `check_imports` comes before it

        place, mend = "the file that 'hf auth login' writes", "Log in again with 'hf auth login'"
        try:
            content = Path(constants.HF_TOKEN_PATH).read_text(encoding="utf-8")
        except FileNotFoundError:
            return None
        except (OSError, UnicodeDecodeError):
            return (
                f"The token in {place} cannot be read. {mend}, or correct HF_HOME and "
                "HF_TOKEN_PATH if they are set."
            )
    token = content.replace("\r", "").replace("\n", "").strip()  # as the client does
    if not token or is_bearer(token):
        return None
    return f"The token in {place} {_token_fault(token)}. {mend}."


def is_bearer(token: str) -> bool:
    """Whether `token` may stand behind `Bearer` in a header (RFC 6750, section 2.1)."""
    return _BEARER.fullmatch(token) is not None


def _token_fault(token: str) -> str:
    if token.lower().startswith("bearer"):
        return "has the word 'Bearer' in front of it"
    if token[0] in "'\"" or token[-1] in "'\"":
        return "has quotes around it"
    if not token.isascii():
        return "has characters that are not ASCII"
    if len(token.split()) > 1:
        return "has spaces in it"
    return "has characters that are not allowed in a token"


def _variable(scheme: str) -> str:
    """The variable in which urllib found the proxy: first in lower case, then in any case."""
    name = f"{scheme}_proxy"
    if os.environ.get(name):
        return name
    others = (each for each in os.environ if each.lower() == name and os.environ[each])
    return next(others, "the system's proxy setting")


def _proxy_fault(url: str) -> str | None:
    """Why the address of a proxy is invalid, and what to do; None if it is valid."""
    scheme = url.partition("://")[0].lower()
    try:
        proxy = httpx2.Proxy(url)
    except (ValueError, httpx2.InvalidURL):
        kind = f" of the kind '{scheme}'" if re.fullmatch(r"[a-z][a-z0-9]{0,9}", scheme) else ""
        kind = "" if scheme in {"http", "https", *_SOCKS} else kind
        return (
            f"names a proxy{kind} that cannot be used. Write its address as http://, https://, "
            "socks5:// or socks5h:// with host and port, such as 'socks5://127.0.0.1:1080'"
        )
    host, port = proxy.url.host, proxy.url.port
    if not host or re.search(r"[\s%]", host) or (port is not None and not 0 < port <= _MAX_PORT):
        return (
            "names a proxy that has no valid host or port. Write its address with both, such as "
            "'http://proxy.example.org:3128'"
        )
    if proxy.url.scheme in _SOCKS and importlib.util.find_spec("socksio") is None:
        return (
            "names a SOCKS proxy, and the package 'socksio' is not installed. Install it with "
            "'pip install socksio'"
        )
    return None


def _is_web_address(url: str) -> bool:
    try:
        parts = urlsplit(url.strip())
        return (
            parts.scheme in {"http", "https"}
            and bool(parts.hostname)
            and parts.port != 0  # reading an invalid port raises ValueError
            and url.isprintable()
            and " " not in url
        )
    except ValueError:
        return False
