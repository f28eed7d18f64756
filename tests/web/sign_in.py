"""Signing in with the Hub: the OAuth endpoints of the real one, for a local one.

A page lists the users; each link signs the visitor in as that user, with the user's own token.
"""

from __future__ import annotations

import secrets
import time
from html import escape
from typing import Annotated, Any
from urllib.parse import urlencode

from fastapi import APIRouter, Form
from joserfc import jwt
from joserfc.jwk import KeySet, RSAKey
from starlette.responses import HTMLResponse, RedirectResponse

from local_hub import LocalHub
from local_hub.access import shown_hardware
from local_hub.answers import Answer, json_answer, refusal
from local_hub.app import app
from local_hub.calls import Here

__all__ = ["CLIENT", "install"]

CLIENT = {"OAUTH_CLIENT_ID": "dynquant-client", "OAUTH_CLIENT_SECRET": "canary-of-the-client"}
_KEY = RSAKey.generate_key(2048, {"kid": "one", "use": "sig", "alg": "RS256"})

router = APIRouter()
_codes: dict[str, tuple[str, str]] = {}
"""Code → user and nonce."""


def install() -> None:
    """Put the routes before the one that refuses what the local Hub does not know."""
    if router.routes[0] not in app.router.routes:
        app.router.routes[:0] = router.routes


@router.get("/.well-known/openid-configuration")
async def get_configuration(call: Here) -> Answer:
    url = call.hub.url
    return json_answer(
        {
            "issuer": url,
            "authorization_endpoint": f"{url}/oauth/authorize",
            "token_endpoint": f"{url}/oauth/token",
            "userinfo_endpoint": f"{url}/oauth/userinfo",
            "jwks_uri": f"{url}/oauth/jwks",
            "id_token_signing_alg_values_supported": ["RS256"],
        }
    )


@router.get("/oauth/jwks")
async def get_keys() -> Answer:
    return json_answer(KeySet([_KEY]).as_dict(private=False))


@router.get("/oauth/authorize", response_model=None)
async def get_authorize(
    call: Here, redirect_uri: str, state: str, nonce: str = "", user: str = ""
) -> HTMLResponse | RedirectResponse:
    if user not in call.hub.tokens.values():
        query = {"redirect_uri": redirect_uri, "state": state, "nonce": nonce}
        links = "".join(
            f'<p><a href="?{escape(urlencode(query | {"user": name}))}">Go on as {name}</a></p>'
            for name in sorted(set(call.hub.tokens.values()))
        )
        return HTMLResponse(f"<h1>Who are you?</h1>{links}")
    code = secrets.token_hex(8)
    _codes[code] = (user, nonce)
    joint = "&" if "?" in redirect_uri else "?"
    return RedirectResponse(f"{redirect_uri}{joint}{urlencode({'code': code, 'state': state})}")


@router.post("/oauth/token")
async def post_token(call: Here, code: Annotated[str, Form()]) -> Answer:
    if code not in _codes:
        raise refusal(400, "There is no such code.")
    user, nonce = _codes.pop(code)
    now = int(time.time())
    claims = {
        "iss": call.hub.url,
        "aud": CLIENT["OAUTH_CLIENT_ID"],
        "iat": now,
        "exp": now + 600,
        "nonce": nonce,
        **_profile(call.hub, user),
    }
    token = next(token for token, name in call.hub.tokens.items() if name == user)
    return json_answer(
        {
            "access_token": token,
            "token_type": "bearer",
            "expires_in": 600,
            "scope": "openid profile",
            "id_token": jwt.encode({"alg": "RS256", "kid": "one"}, claims, _KEY),
        }
    )


@router.get("/oauth/userinfo")
async def get_user(call: Here) -> Answer:
    user = call.request.user
    if user is None or call.request.token is None:
        raise refusal(401, "Invalid credentials in Authorization header")
    return json_answer(_profile(call.hub, user) | shown_hardware(call.hub, user))


def _profile(hub: LocalHub, user: str) -> dict[str, Any]:
    """The fields of the scope `profile` that other endpoints than /oauth/userinfo have too."""
    return {
        "sub": user,
        "name": user.capitalize(),
        "preferred_username": user,
        "profile": f"{hub.url}/{user}",
        "picture": "",
    }
