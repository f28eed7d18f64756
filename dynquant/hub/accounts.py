"""Whose a token is, and where it may write, as the Hub's `whoami` says."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from dynquant.errors import HubUnavailableError

__all__ = ["WRITE", "Account", "account_of"]

WRITE = "repo.write"
"""What a fine-grained token must be allowed to do, where it publishes."""

_READERS = frozenset({"read", "no_access"})
"""Roles in an organization, or in a resource group of it, that may not write."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Account:
    """Whose token is in use.

    Attributes:
        name: The user.
        hub_id: The Hub's own id of the user, which an account that takes the name later does not
            get.
        namespaces: The user and the organizations that it may write in.
        role: Of the token: `read`, `write` or `fineGrained`.
        scopes: Of a fine-grained token, account, organization or repo → what it may do there; what
            it may do everywhere is under the empty name.
    """

    name: str
    hub_id: str
    namespaces: tuple[str, ...]
    role: str
    scopes: Mapping[str, frozenset[str]] = field(default_factory=dict)

    @property
    def may_write(self) -> bool:
        """Whether the token may write anywhere at all."""
        return self.role != "read"

    def may_write_to(self, place: str) -> bool:
        """Whether the token may write to a namespace, or to a repo that need not be there yet."""
        if self.role != "fineGrained":
            return self.may_write
        places = ("", place.partition("/")[0], place)
        return any(WRITE in self.scopes.get(each, ()) for each in places)


def account_of(told: Mapping[str, Any]) -> Account:
    """The account in an answer of `whoami`.

    Raises:
        HubUnavailableError: The answer makes no sense.
    """
    try:
        token = told.get("auth", {}).get("accessToken", {})
        orgs = [org["name"] for org in told.get("orgs", ()) if _may_write_in(org)]
        return Account(
            name=told["name"],
            hub_id=str(told.get("id") or ""),  # a mirror may leave it out
            namespaces=(told["name"], *orgs),
            role=token.get("role", ""),
            scopes=_scopes(token.get("fineGrained", {})),
        )
    except (AttributeError, KeyError, TypeError) as error:
        raise HubUnavailableError(
            "The Hub's answer about the account in use makes no sense. Try again."
        ) from error


def _scopes(fine_grained: Mapping[str, Any]) -> dict[str, frozenset[str]]:
    scoped = {
        str(each["entity"].get("name", "")): frozenset(each["permissions"])
        for each in fine_grained.get("scoped", ())
    }
    return scoped | {"": frozenset(fine_grained.get("global", ()))}


def _may_write_in(org: Mapping[str, Any]) -> bool:
    """By the user's role there; where the Hub names none, the write itself will tell."""
    groups = org.get("resourceGroups", ())
    roles = [org.get("roleInOrg", ""), *(each.get("role", "") for each in groups)]
    return any(role not in _READERS for role in roles)
