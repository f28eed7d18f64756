"""Settings of the web pages, from the environment."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

from dynquant.errors import InvalidOptionError
from dynquant.model.origin import HUB_ID
from dynquant.report.hub_address import HUB_URL

__all__ = ["WebSettings"]

_LOOPBACK = frozenset({"127.0.0.1", "localhost", "::1"})
_OPERATOR = re.compile(rf"[A-Za-z0-9][A-Za-z0-9._-]{{0,95}}:({HUB_ID.pattern})")


@dataclass(frozen=True, slots=True, kw_only=True)
class WebSettings:
    """How the pages are served.

    Attributes:
        operator_ids: Hub ids of the accounts that may cancel every job and choose destinations.
        is_space: Whether this is a Space, whose visitors are unknown accounts.
        signs_in: Whether visitors can sign in with Hugging Face.
        address: Public address of the pages; empty if unknown.
        host: Address that the pages listen at.
        repo_url: Address of the files of this repository; empty where it has none.
    """

    operator_ids: frozenset[str] = frozenset()
    is_space: bool = False
    signs_in: bool = False
    address: str = ""
    host: str = "127.0.0.1"
    repo_url: str = ""

    @property
    def is_local(self) -> bool:
        """Whether only this machine reaches the pages."""
        return not self.is_space and self.host in _LOOPBACK

    def after_sign_in(self, page: str) -> str:
        """The page to come back to after a sign-in; empty where visitors cannot sign in."""
        return page if self.signs_in else ""

    @classmethod
    def from_environment(cls, environment: Mapping[str, str]) -> WebSettings:
        """The settings that `environment` asks for; a Space sets some of it by itself.

        Raises:
            InvalidOptionError: A variable has an invalid value; names the variable.
        """
        space_id = environment.get("SPACE_ID", "")
        is_space = bool(space_id)
        # Elsewhere Gradio signs every visitor in as the owner of this machine's token.
        signs_in = is_space and bool(environment.get("OAUTH_CLIENT_ID"))
        if signs_in and environment.get("SYSTEM") != "spaces":
            raise InvalidOptionError(
                "SYSTEM must be 'spaces' where visitors sign in, as the Dockerfile sets it: else "
                "Gradio takes every visitor for the owner of HF_TOKEN."
            )
        # A Space with a custom domain has several hosts; the first is the Hub's.
        host = environment.get("SPACE_HOST", "").split(",")[0].strip()
        return cls(
            operator_ids=_operator_ids(environment),
            is_space=is_space,
            signs_in=signs_in,
            address=f"https://{host}" if is_space and host else "",
            host=environment.get("GRADIO_SERVER_NAME") or ("0.0.0.0" if is_space else "127.0.0.1"),  # noqa: S104
            repo_url=f"{HUB_URL}/spaces/{space_id}/blob/main" if is_space else "",
        )


def _operator_ids(environment: Mapping[str, str]) -> frozenset[str]:
    """The ids in `name:id`; the name is only for readers, since names can change owners."""
    found = [each.strip() for each in environment.get("DYNQUANT_OPERATORS", "").split(",")]
    matches = [_OPERATOR.fullmatch(each) for each in found if each]
    if not all(matches):
        raise InvalidOptionError(
            "DYNQUANT_OPERATORS must be accounts on the Hub with their ids, as 'name:id', with "
            "commas between them. The id of 'name' is '_id' at "
            "https://huggingface.co/api/users/name/overview."
        )
    return frozenset(each[1] for each in matches if each is not None)
