"""Limits of a request from the inbox: its sender may write there, and has no other authority.

The Space holds a token that may write to the inbox, and a Space is easier to take over than a
runner. So the runner grants a request no more than it would grant a visitor of the Space.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass, replace

from dynquant.errors import RequestError
from dynquant.jobs.request import JobRequest, Priority
from dynquant.model.naming import is_account_name
from dynquant.model.origin import HUB_ID
from dynquant.texts.defaults import CALIBRATIONS

__all__ = ["InboxPolicy"]

_OPTIONS = frozenset({"menu", "calibration"})
"""The options that the pages of a Space offer."""


@dataclass(frozen=True, kw_only=True)
class InboxPolicy:
    """The requests that this runner accepts from its inbox.

    Attributes:
        default_destination: Returns the destination of requests that name none.
        destinations: Other namespaces and name templates that a request may name.
        private_sources: Private repos of the operator that a request may name.
    """

    default_destination: Callable[[], str]
    destinations: Collection[str] = ()
    private_sources: Collection[str] = ()

    def admitted(self, request: JobRequest) -> JobRequest:
        """The request, with its destination filled in and the priority of a person.

        Raises:
            RequestError: A visitor may not ask for this; says why.
            RetryLaterError: The Hub does not answer, so the default destination is unknown.
        """
        if not is_account_name(request.requester):
            raise RequestError(
                "A request from a Space is made in the name of an account on the Hub, and "
                f"'{request.requester[:60]}' is not such a name. Sign in on the Space and ask "
                "again."
            )
        if request.requester_id and not HUB_ID.fullmatch(request.requester_id):
            raise RequestError("The id of the requester is not an id of the Hub. Ask again.")
        if request.public:
            raise RequestError(
                "A request from a Space cannot make a quant of a private model public. Convert it "
                "with 'dynquant submit --public' on a machine of the operator."
            )
        self._check_options(request)
        return replace(request, destination=self._destination(request), priority=Priority.PERSON)

    def may_name_private(self, model: str) -> bool:
        """Whether the operator lets visitors ask for this model although it is private."""
        return model.lower() in {each.lower() for each in self.private_sources}

    def _destination(self, request: JobRequest) -> str:
        default = self.default_destination()
        wanted = request.destination or default
        if wanted not in {default, *self.destinations}:
            raise RequestError(
                f"This runner does not publish to '{wanted[:100]}' for requests from a Space. Its "
                "operator can allow that with DYNQUANT_INBOX_DESTINATIONS."
            )
        return wanted

    @staticmethod
    def _check_options(request: JobRequest) -> None:
        if others := sorted(request.options.to_json().keys() - _OPTIONS):
            raise RequestError(
                f"A request from a Space cannot set '{others[0]}'. Leave that option out."
            )
        if request.options.calibration not in CALIBRATIONS.values():
            raise RequestError(
                "A request from a Space names one of the calibration sets of the Space: "
                f"{'; '.join(CALIBRATIONS.values())}."
            )
        _ = request.recipe  # raises if the targets are out of range for the recipe
