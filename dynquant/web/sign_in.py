"""Identity and permissions of visitors. Identity comes from the Hub, never from a form."""

from __future__ import annotations

import hashlib
import logging
import re
from collections.abc import Callable
from dataclasses import dataclass

from dynquant.errors import DestinationError, DynquantError, Reason, RequestError
from dynquant.hub.accounts import Account
from dynquant.hub.hardware import Mac
from dynquant.jobs.job import Job
from dynquant.jobs.request import Priority
from dynquant.web.limits import Limits
from dynquant.web.settings import WebSettings
from dynquant.web.single_flight import SingleFlightCache
from dynquant.web.visitor_ids import visitor_id

__all__ = ["SignIn", "Visitor"]

_KNOWN_SECS = 60.0
"""How long the answer of the Hub on a token is kept."""

_TOKEN = re.compile(r"[!-~]{1,4096}")
"""Characters of an HTTP header. Programs send tokens in the body of a call, unchecked."""

_logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class Visitor:
    """An account, or the user of this machine, that may ask for models.

    Attributes:
        name: Account on the Hub, or the name that `model.naming.local_name` gives.
        hub_id: The Hub's id of the account; empty for a user of this machine.
        namespaces: Namespaces that the visitor may copy models to.
        is_operator: Whether the visitor may cancel every job.
    """

    name: str
    hub_id: str = ""
    namespaces: tuple[str, ...] = ()
    is_operator: bool = False

    def owns(self, job: Job) -> bool:
        """Whether the visitor may cancel and retry `job`; the watcher's jobs are the operators'."""
        request = job.request
        # A name can change owners, so the id counts as well.
        asked = (request.requester, request.requester_id) == (self.name, self.hub_id)
        return self.is_operator or (asked and request.priority is Priority.PERSON)


class SignIn:
    """Identifies visitors by their tokens.

    Args:
        settings: Whether visitors sign in, and which accounts are operators.
        account: Asks the Hub for the account of a token.
        macs: Asks the Hub for the Macs on the profile of a token's account.
        user: Name of the visitor on a local machine.
    """

    def __init__(
        self,
        settings: WebSettings,
        *,
        account: Callable[[str], Account],
        macs: Callable[[str], tuple[Mac, ...]],
        user: str,
    ) -> None:
        self._settings = settings
        self._account = account
        self._ask_for_macs = macs
        self._user = user
        self._limits = Limits(visitor=visitor_id)
        # An invalid token is kept as None, so that it is refused without asking again.
        self._accounts: SingleFlightCache[str, Account | None] = SingleFlightCache(
            fresh_secs=_KNOWN_SECS, max_keys=1_000
        )
        self._macs: SingleFlightCache[str, tuple[Mac, ...] | None] = SingleFlightCache(
            fresh_secs=_KNOWN_SECS, max_keys=1_000
        )

    def visitor(self, token: str | None) -> Visitor | None:
        """The visitor of this token; None if the visitor has not signed in.

        Raises:
            RetryLaterError: The Hub is unavailable, or was asked too often.
        """
        if not self._settings.is_space:
            return Visitor(name=self._user, is_operator=True)
        if not token or not _TOKEN.fullmatch(token):
            return None
        account = self._accounts(_digest(token), lambda: self._asked_for_account(token))
        if account is None:
            return None
        return Visitor(
            name=account.name,
            hub_id=account.hub_id,
            namespaces=account.namespaces,
            is_operator=account.hub_id in self._settings.operator_ids,
        )

    def require(self, token: str | None) -> Visitor:
        """As `visitor`.

        Raises:
            RequestError: The visitor has not signed in.
        """
        visitor = self.visitor(token)
        if visitor is not None:
            return visitor
        if not self._settings.signs_in:
            raise RequestError(
                "Visitors cannot sign in here, so they cannot ask for models. The owner of this "
                "Space has to set 'hf_oauth: true' in its README.md."
            )
        raise RequestError(
            "Sign in with Hugging Face first; then ask again.", reason=Reason.NOT_SIGNED_IN
        )

    def macs(self, token: str | None) -> tuple[Mac, ...] | None:
        """The Macs on the profile of this token's account, the primary Mac first.

        None if the visitor has not signed in, or the Hub does not answer; the latter is kept for a
        minute too, so that later pages do not wait again.
        """
        if not (self._settings.signs_in and token and _TOKEN.fullmatch(token)):
            return None
        return self._macs(_digest(token), lambda: self._asked_for_macs(token))

    def _asked_for_account(self, token: str) -> Account | None:
        self._limits.count("sign in")  # a visitor may send made-up tokens
        try:
            return self._account(token)
        except DestinationError:  # it has expired, or is invalid
            return None

    def _asked_for_macs(self, token: str) -> tuple[Mac, ...] | None:
        try:
            self._limits.count("sign in")
            return self._ask_for_macs(token)
        except DynquantError as error:
            _logger.info("A visitor's hardware is unknown: %s", error)
            return None


def _digest(token: str) -> str:
    """Hash of a token, as a key of what is kept: tokens themselves are never kept."""
    return hashlib.sha256(token.encode()).hexdigest()
