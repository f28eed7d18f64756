"""The account of a token, and where the token may write, from the Hub's `whoami`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from dynquant.errors import DestinationError, HubJobError, HubUnavailableError, Reason

__all__ = ["RUN_JOBS", "WRITE", "Account", "account_of"]

WRITE = "repo.write"
"""The permission that a fine-grained token needs to publish."""

RUN_JOBS = "job.write"
"""The permission that a fine-grained token needs to start Jobs."""

_READERS = frozenset({"read", "no_access"})
"""Roles in an organization, or in a resource group of it, that may not write."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Account:
    """The account of the token in use.

    Attributes:
        name: The user.
        hub_id: The Hub's own id of the user, which an account that takes the name later does not
            get.
        namespaces: The user and the organizations that the user may write in.
        role: Of the token: `read`, `write` or `fineGrained`.
        scopes: Of a fine-grained token: account, organization or repo → its permissions there;
            permissions that hold everywhere are under the empty name.
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
        return self._may(WRITE, place)

    def _may(self, permission: str, place: str) -> bool:
        if self.role != "fineGrained":
            return self.may_write
        places = ("", place.partition("/")[0], place)
        return any(permission in self.scopes.get(each, ()) for each in places)

    def require_may_run_jobs(self, namespace: str) -> None:
        """Refuse an account in which the token may start no Jobs.

        Raises:
            HubJobError: It may not.
        """
        if namespace not in self.namespaces:
            raise HubJobError(
                f"'{self.name}' cannot run Jobs as '{namespace[:100]}'. Name one of "
                f"{', '.join(self.namespaces)} with --namespace."
            )
        if not self._may(RUN_JOBS, namespace):
            raise HubJobError(
                f"The token in use may not start Jobs in '{namespace}'. Set HF_TOKEN to one with "
                "write access, or give it the permission to start and manage Jobs (job.write) "
                "there."
            )

    def require_may_publish(self, repo_id: str) -> None:
        """Refuse a repo that the token may not write to.

        Raises:
            DestinationError: It may not.
        """
        if not self.may_write:
            raise DestinationError(
                "The token in use may only read. Set HF_TOKEN to a token that may write to "
                f"'{repo_id}'.",
                reason=Reason.NO_ACCESS,
            )
        namespace, slash, _ = repo_id.partition("/")
        if not slash or namespace not in self.namespaces:
            raise DestinationError(
                f"The token in use belongs to '{self.name}', who cannot publish as "
                f"'{namespace}'. Publish to one of: {', '.join(self.namespaces)}; or set "
                "HF_TOKEN to a token of the other account.",
                reason=Reason.DESTINATION_FORBIDDEN,
            )
        if not self.may_write_to(repo_id):
            raise DestinationError(
                f"The fine-grained token in use may not write to '{repo_id}'. Give it write access "
                f"to the contents and settings of all repos of '{namespace}', or set HF_TOKEN to "
                "a token that has it.",
                reason=Reason.NO_ACCESS,
            )


def account_of(answer: Mapping[str, Any]) -> Account:
    """The account in an answer of `whoami`.

    Raises:
        HubUnavailableError: The answer cannot be read.
    """
    try:
        token = answer.get("auth", {}).get("accessToken", {})
        orgs = [org["name"] for org in answer.get("orgs", ()) if _may_write_in(org)]
        return Account(
            name=answer["name"],
            hub_id=str(answer.get("id") or ""),  # a mirror may leave it out
            namespaces=(answer["name"], *orgs),
            role=token.get("role", ""),
            scopes=_scopes(token.get("fineGrained", {})),
        )
    except (AttributeError, KeyError, TypeError) as error:
        raise HubUnavailableError(
            "The Hub's answer about the account in use cannot be read. Try again."
        ) from error


def _scopes(fine_grained: Mapping[str, Any]) -> dict[str, frozenset[str]]:
    scoped = {
        str(each["entity"].get("name", "")): frozenset(each["permissions"])
        for each in fine_grained.get("scoped", ())
    }
    return scoped | {"": frozenset(fine_grained.get("global", ()))}


def _may_write_in(org: Mapping[str, Any]) -> bool:
    """By the user's role there; if the Hub names no role, a write is tried."""
    groups = org.get("resourceGroups", ())
    roles = [org.get("roleInOrg", ""), *(each.get("role", "") for each in groups)]
    return any(role not in _READERS for role in roles)
