"""Visitor ids for rate limits: the signed-in account, else the address of the request.

Visitors must not be able to forge ids: with many of them one visitor could use up the limit that
all share.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Mapping, Sequence
from typing import Any

from gradio.context import LocalContext

__all__ = ["account_key", "address_of", "visitor_id"]

_IPV6_NETWORK = 64
"""Prefix length of the network that a provider assigns; the visitor chooses the other bits."""

_PROXIES = tuple(
    ipaddress.ip_network(network)
    for network in (
        *("127.0.0.0/8", "::1/128"),  # this machine
        *("10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16", "fc00::/7"),  # private
        *("169.254.0.0/16", "fe80::/10"),  # link-local
        "100.64.0.0/10",  # shared, within a provider
    )
)
"""Networks of the platform's proxies; no connection from outside has such an address."""

_Address = ipaddress.IPv4Address | ipaddress.IPv6Address


def visitor_id() -> str:
    """The id of the visitor whose request Gradio handles now; empty outside of a request."""
    found = LocalContext.request.get(None)
    # Gradio's own record holds the request; MCP hands over the request itself.
    request = getattr(found, "request", None) or found
    if request is None:
        return ""
    account = _signed_in(request.scope.get("session", {}))
    if account:
        return account_key(account)
    peer = request.client.host if request.client else ""
    return f"address {address_of(peer, request.headers.getlist('x-forwarded-for'))}"


def account_key(account: str) -> str:
    """The id of a visitor who has signed in, the same from every address."""
    return f"account {account}"


def address_of(peer: str, forwarded: Sequence[str]) -> str:
    """The origin of a request: an IPv4 address or an IPv6 network; `?` if unknown.

    Each proxy appends its peer's address to the header, so the header is trusted from its right end
    to the first address that is not a proxy's; the visitor may have written the rest.

    Args:
        peer: The other end of the connection; a public address is not a proxy.
        forwarded: Each `X-Forwarded-For` of the request.
    """
    hops = [each for line in forwarded for each in line.split(",")]
    for hop in (peer, *reversed(hops)):
        address = _address(hop)
        if address is None:
            break
        if not any(address in network for network in _PROXIES):
            return _counted(address)
    # Only proxy addresses: the nearest counts, since the header may be forged.
    nearest = _address(peer)
    return _counted(nearest) if nearest else "?"


def _counted(address: _Address) -> str:
    if address.version == 4:  # noqa: PLR2004  of the Internet protocol
        return str(address)
    return str(ipaddress.ip_network((address, _IPV6_NETWORK), strict=False))


def _address(text: str) -> _Address | None:
    """The address in `1.2.3.4`, `1.2.3.4:80`, `2001:db8::1` or `[2001:db8::1]:443`."""
    host = text.strip()
    if host.startswith("["):
        host = host[1:].partition("]")[0]
    elif host.count(":") == 1:
        host = host.partition(":")[0]
    try:
        found = ipaddress.ip_address(host.partition("%")[0])
    except ValueError:
        return None
    mapped = found.ipv4_mapped if isinstance(found, ipaddress.IPv6Address) else None
    return mapped or found


def _signed_in(session: Mapping[str, Any]) -> str:
    """The account in a session, which the Space has signed; empty without a sign-in."""
    userinfo = (session.get("oauth_info") or {}).get("userinfo") or {}
    return str(userinfo.get("preferred_username") or "")
