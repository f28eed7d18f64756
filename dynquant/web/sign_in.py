"""Who a visitor is, and what they may do. Identity comes from the Hub, never from a form."""

from __future__ import annotations

import hashlib
import logging
import re
from collections.abc import Callable
from dataclasses import dataclass

from dynquant.errors import DestinationError, DynquantError, RequestError
from dynquant.hub.hardware import Mac
from dynquant.hub.publishing import Account
from dynquant.jobs.job import Job
from dynquant.jobs.request import Priority
from dynquant.web.limits import Limits
from dynquant.web.settings import WebSettings
from dynquant.web.single_flight import SingleFlightCache
from dynquant.web.visitor_ids import visitor_id

__all__ = ["SignIn", "Visitor"]

_KNOWN_SECS = 60.0
"""So long a token is taken to be whose it was; then the Hub is asked again."""

_TOKEN = re.compile(r"[!-~]{1,4096}")
"""What a header can carry. Programs send theirs in the body of a call, where anything may stand."""

_logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class Visitor:
    """Somebody who may ask for models.

    Attributes:
        name: Account on the Hub, or as `model.naming.local_name` says.
        hub_id: The Hub's own id of the account; empty for a user of this machine.
        namespaces: Where they may have copies put.
        is_operator: Whether every job is theirs to cancel.
    """

    name: str
    hub_id: str = ""
    namespaces: tuple[str, ...] = ()
    is_operator: bool = False

    def owns(self, job: Job) -> bool:
        """Whether they may cancel `job` and try it again.

        What the watcher asked for is no account's, whatever it was called when it did.
        """
        request = job.request
        # An account of the same name may be another one by now, so its id counts.
        asked = (request.requester, request.requester_id) == (self.name, self.hub_id)
        return self.is_operator or (asked and request.priority is Priority.PERSON)


class SignIn:
    """Tells visitors apart.

    Args:
        settings: Whether they sign in at all, and who operates this.
        account: Asks the Hub whose a token is.
        macs: Asks the Hub for the Macs that who has a token shows on their profile.
        user: Who everybody is on one's own machine.
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
        # None for a token that is none: it is refused without asking again, too.
        self._accounts: SingleFlightCache[str, Account | None] = SingleFlightCache(
            fresh_secs=_KNOWN_SECS, max_keys=1_000
        )
        self._macs: SingleFlightCache[str, tuple[Mac, ...] | None] = SingleFlightCache(
            fresh_secs=_KNOWN_SECS, max_keys=1_000
        )

    def visitor(self, token: str | None) -> Visitor | None:
        """Who has this token; None for somebody who has not signed in.

        Raises:
            RetryLaterError: The Hub cannot be asked, or was asked too often.
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
            RequestError: Nobody is signed in.
        """
        visitor = self.visitor(token)
        if visitor is not None:
            return visitor
        if not self._settings.signs_in:
            raise RequestError(
                "Nobody can sign in here, so nobody can ask for models. The owner of this Space "
                "has to set 'hf_oauth: true' in its README.md."
            )
        raise RequestError("Sign in with Hugging Face first; then ask again.")

    def macs(self, token: str | None) -> tuple[Mac, ...] | None:
        """The Macs of who has this token, the one to think of first.

        None for somebody who has not signed in, and where the Hub does not say: that it does not
        is remembered too, so that nobody waits for it again.
        """
        if not (self._settings.signs_in and token and _TOKEN.fullmatch(token)):
            return None
        return self._macs(_digest(token), lambda: self._asked_for_macs(token))

    def _asked_for_account(self, token: str) -> Account | None:
        self._limits.count("sign in")  # anybody can make tokens up
        try:
            return self._account(token)
        except DestinationError:  # it has expired, or is none
            return None

    def _asked_for_macs(self, token: str) -> tuple[Mac, ...] | None:
        try:
            self._limits.count("sign in")
            return self._ask_for_macs(token)
        except DynquantError as error:
            _logger.info("Nothing is known of a visitor's hardware: %s", error)
            return None


def _digest(token: str) -> str:
    """By what something is remembered of who has a token, so that no token is kept."""
    return hashlib.sha256(token.encode()).hexdigest()
