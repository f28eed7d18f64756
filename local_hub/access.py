"""Users, tokens and rights on the local Hub."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from local_hub.answers import Request, refusal
from local_hub.repos import Repo

if TYPE_CHECKING:
    from local_hub.hub import LocalHub

COOKIE = "local-hub-token"


def user_of(hub: LocalHub, request: Request) -> str | None:
    token = request.token or _cookie_token(request)
    return None if token is None or token in hub.expired_tokens else hub.tokens.get(token)


def _cookie_token(request: Request) -> str | None:
    """The token of a person who logged in by the browser; it serves to look at things only."""
    if request.method not in {"GET", "HEAD"}:
        return None
    pairs = (part.strip().partition("=") for part in request.headers.get("cookie", "").split(";"))
    return next((value for name, _, value in pairs if name == COOKIE), None)


def may_read(hub: LocalHub, repo: Repo, user: str | None) -> bool:
    """Whether a repo that is not for all is for this user."""
    if user is None:
        return False
    return (
        user in repo.readers or user == repo.namespace or repo.namespace in hub.orgs.get(user, {})
    )


def may_write(hub: LocalHub, namespace: str, user: str) -> bool:
    return user == namespace or hub.orgs.get(user, {}).get(namespace) == "write"


def require_write_token(hub: LocalHub, request: Request) -> str:
    """The user, if their token may write at all."""
    if request.user is None or request.token is None:
        raise refusal(401, "Invalid username or password.")
    if hub.token_roles.get(request.token) == "read":
        raise refusal(403, "Forbidden: you must use a write token to upload to a repository.")
    return request.user


def require_write(hub: LocalHub, request: Request, repo: Repo) -> str:
    user = require_write_token(hub, request)
    if not may_write(hub, repo.namespace, user):
        raise refusal(
            403, "You have read access but not the required permissions for this operation"
        )
    return user


def require_namespace(hub: LocalHub, request: Request, kind: str, namespace: str) -> str:
    user = require_write_token(hub, request)
    if not may_write(hub, namespace, user):
        message = f'You don\'t have the rights to create a {kind} under the namespace "{namespace}"'
        raise refusal(403, message)
    return user


def whoami(hub: LocalHub, request: Request) -> dict[str, Any]:
    user, token = request.user, request.token
    if user is None or token is None:
        raise refusal(401, "Invalid user token.")
    orgs = hub.orgs.get(user, {})
    role = hub.token_roles.get(token, "write")
    access_token: dict[str, Any] = {"displayName": f"token of {user}", "role": role}
    if role == "fineGrained":
        writable = [user, *(name for name, org_role in orgs.items() if org_role == "write")]
        scopes = hub.scopes.get(token, dict.fromkeys(writable, hub.permissions))
        access_token["fineGrained"] = {
            "canReadGatedRepos": True,
            "global": [*scopes.get("", ())],
            "scoped": [
                {
                    "entity": {"_id": name, "type": _entity_type(name, user), "name": name},
                    "permissions": [*permissions],
                }
                for name, permissions in scopes.items()
                if name
            ],
        }
    return {
        "type": "user",
        "id": hub.account_id(user),
        "name": user,
        "fullname": user.capitalize(),
        "isPro": False,
        "orgs": [
            {"type": "org", "name": name, "fullname": name, "roleInOrg": org_role}
            for name, org_role in orgs.items()
        ],
        "auth": {"type": "access_token", "accessToken": access_token},
    }


def _entity_type(name: str, user: str) -> str:
    if "/" in name:
        return "model"
    return "user" if name == user else "org"


def overview(hub: LocalHub, name: str) -> dict[str, Any]:
    """The public profile of a user."""
    if name not in hub.tokens.values():
        raise refusal(404, "This user does not exist")
    return {
        "_id": hub.account_id(name),
        "type": "user",
        "user": name,
        "fullname": name.capitalize(),
        "avatarUrl": "",
        "isPro": False,
        "orgs": [{"name": org, "fullname": org, "avatarUrl": ""} for org in hub.orgs.get(name, {})],
        **shown_hardware(hub, name),
    }


def shown_hardware(hub: LocalHub, name: str) -> dict[str, Any]:
    """The field with a user's hardware; none where they do not show it."""
    return {} if name in hub.discreet else {"hardwareItems": hub.hardware.get(name, [])}
