"""By what a visitor is counted: the account that signed in, else the address it all comes from.

Neither may be made up: whoever had as many as they like could use up what all visitors share.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Mapping, Sequence
from typing import Any

from gradio.context import LocalContext

__all__ = ["account_key", "address_of", "visitor_id"]

_IPV6_NETWORK = 64
"""Bits of an IPv6 address that a provider chooses; the others are the visitor's own."""

_PROXIES = tuple(
    ipaddress.ip_network(network)
    for network in (
        *("127.0.0.0/8", "::1/128"),  # this machine
        *("10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16", "fc00::/7"),  # private
        *("169.254.0.0/16", "fe80::/10"),  # link-local
        "100.64.0.0/10",  # shared, within a provider
    )
)
"""Where the platform's own proxies are: from outside nobody connects with such an address."""

_Address = ipaddress.IPv4Address | ipaddress.IPv6Address


def visitor_id() -> str:
    """Who sent the request that Gradio answers now; empty where there is none."""
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
    """By what somebody is counted who has an account on the Hub, from wherever they ask."""
    return f"account {account}"


def address_of(peer: str, forwarded: Sequence[str]) -> str:
    """Where a request comes from: an IPv4 address or an IPv6 network; `?` if that is not known.

    A proxy appends the address of its own peer to the header, so the header is true only from its
    right end to the first address that is no proxy's; what stands before is the visitor's word.

    Args:
        peer: The other end of the connection. A public one is no proxy of ours.
        forwarded: Each `X-Forwarded-For` of the request.
    """
    hops = [each for line in forwarded for each in line.split(",")]
    for hop in (peer, *reversed(hops)):
        address = _address(hop)
        if address is None:
            break
        if not any(address in network for network in _PROXIES):
            return _counted(address)
    # All of it within one network: the proxy counts, so that no header helps.
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
    """The account in a session, which the Space has signed itself; empty if nobody signed in."""
    userinfo = (session.get("oauth_info") or {}).get("userinfo") or {}
    return str(userinfo.get("preferred_username") or "")
