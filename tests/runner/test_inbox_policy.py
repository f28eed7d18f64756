"""Limits of a request from the inbox, whose writer may be an attacker."""

from __future__ import annotations

from typing import Any

import pytest

from dynquant.errors import DynquantError, RequestError
from dynquant.jobs.request import JobRequest, Priority
from dynquant.model.naming import WATCHER, local_name
from dynquant.runner.inbox_policy import InboxPolicy
from dynquant.texts.defaults import CALIBRATIONS

POLICY = InboxPolicy(
    default_destination=lambda: "quants",
    destinations=("team", "quants/{model}-{bpw}bpw"),
    private_sources=("me/Secret",),
)


def make_request(**overrides: Any) -> JobRequest:
    fields = {"model": "org/m", "targets_bpw": (4.5,), "destination": "quants", "requester": "ann"}
    return JobRequest(**fields | overrides)


@pytest.mark.harden("inbox")
@pytest.mark.parametrize(
    ("asked", "says"),
    [
        ({"destination": "victim-org"}, "does not publish to 'victim-org'"),
        ({"destination": "quants/anything"}, "does not publish to 'quants/anything'"),
        ({"public": True}, "cannot make a quant of a private model public"),
        ({"requester": local_name("operator")}, "'local:operator' is not such a name"),
        ({"requester": WATCHER}, "'the watcher' is not such a name"),
        ({"requester_id": "../../x"}, "not an id of the Hub"),
        ({"options": {"calibration_tokens": 10**8}}, "cannot set 'calibration_tokens'"),
        ({"options": {"dequantize": True}}, "cannot set 'dequantize'"),
        ({"options": {"evaluation": "me/private-texts"}}, "cannot set 'evaluation'"),
        ({"options": {"calibration": "me/private-texts"}}, "one of the calibration sets"),
        ({"options": {"calibration": ["a"]}}, "'calibration' cannot be"),
        ({"options": {"menu": 4}}, "'menu' cannot be 4"),
        ({"options": {"menu": "4g64," * 100}}, "list of formats is too long"),
        ({"options": {"menu": "5g7"}}, "5g7"),
        ({"targets_bpw": (4.5, 4.5)}, "Two of the targets are the same"),
    ],
)
def test_what_no_visitor_may_ask_for_is_refused(asked, says, harden):
    with pytest.raises(RequestError, match=says):
        POLICY.admitted(make_request(**asked))
    harden("refused")


@pytest.mark.harden("inbox")
def test_nobody_comes_in_with_the_priority_of_the_watcher():
    admitted = POLICY.admitted(make_request(priority=Priority.WATCHER))
    assert admitted.priority is Priority.PERSON


def test_what_the_pages_of_a_space_ask_for_is_admitted_as_it_is():
    for asked in (
        {},
        {"private": True, "requester_id": "65a0000000000000000000aa"},
        {"options": {"menu": "4g64,8g64", "calibration": [*CALIBRATIONS.values()][1]}},
        {"destination": "team"},
        {"destination": "quants/{model}-{bpw}bpw"},
        {"notify_url": "https://hooks.example.org/x"},
    ):
        request = make_request(**asked)
        assert POLICY.admitted(request) == request


def test_a_request_without_a_destination_goes_where_this_runner_publishes():
    assert POLICY.admitted(make_request(destination="")).destination == "quants"


def test_only_private_models_that_the_operator_named_may_be_asked_for():
    assert POLICY.may_name_private("me/secret")
    assert not POLICY.may_name_private("me/other")


def test_every_refusal_is_a_sentence_of_bounded_length():
    with pytest.raises(DynquantError) as caught:
        POLICY.admitted(make_request(destination="x" * 200, options={"menu": "9g9"}))
    assert len(str(caught.value)) < 400
