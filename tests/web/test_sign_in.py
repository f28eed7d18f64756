from __future__ import annotations

import gc
from dataclasses import replace

import pytest

from dynquant.errors import (
    DestinationError,
    HubUnavailableError,
    InvalidOptionError,
    RequestError,
    RetryLaterError,
)
from dynquant.hub.accounts import Account
from dynquant.hub.hardware import Mac
from dynquant.jobs.request import Priority
from dynquant.model.naming import WATCHER, local_name
from dynquant.settings import ACCOUNT
from dynquant.web.limits import LIMITS
from dynquant.web.settings import WebSettings
from dynquant.web.sign_in import SignIn, Visitor
from tests.runner.test_live_board import make_job

SPACE = {"SPACE_ID": "you/dynquant", "SPACE_HOST": "you-dynquant.hf.space, quant.example.org"}
TOKEN = "hf_canary_of_a_visitor"


MACS = (Mac(name="Apple M3 Max", memory_gib=64),)


def make_sign_in(**settings) -> tuple[SignIn, list[str]]:
    asked: list[str] = []

    def account(token: str) -> Account:
        asked.append(token)
        if token != TOKEN:
            raise DestinationError("The Hub does not accept it.")
        return Account(name="ann", hub_id="id0ann", namespaces=("ann", "team"), role="read")

    def macs(token: str) -> tuple[Mac, ...]:
        asked.append(token)
        if token != TOKEN:
            raise HubUnavailableError("It does not say.")
        return MACS

    web = WebSettings(**{"is_space": True, "signs_in": True} | settings)
    return SignIn(web, account=account, macs=macs, user="owner"), asked


def test_on_ones_own_machine_everybody_is_the_operator_and_the_hub_is_not_asked():
    sign_in, asked = make_sign_in(is_space=False, signs_in=False)
    assert sign_in.require(None) == Visitor(name="owner", is_operator=True)
    assert sign_in.require("whatever").name == "owner"
    assert asked == []


def test_on_a_space_the_hub_says_who_a_visitor_is():
    sign_in, asked = make_sign_in()
    assert sign_in.visitor(None) is None
    assert sign_in.visitor("hf_forged") is None
    for _ in range(5):
        assert sign_in.require(TOKEN) == Visitor(
            name="ann", hub_id="id0ann", namespaces=("ann", "team")
        )
    assert asked.count(TOKEN) == 1


def test_the_hub_is_not_asked_again_at_once_of_a_token_that_is_none():
    sign_in, asked = make_sign_in()
    assert [sign_in.visitor("hf_forged") for _ in range(5)] == [None] * 5
    assert asked == ["hf_forged"]


@pytest.mark.harden("web")
def test_whoever_makes_tokens_up_is_kept_waiting_and_no_longer_looked_up():
    sign_in, asked = make_sign_in()
    for number in range(LIMITS["sign in"].burst):
        assert sign_in.visitor(f"hf_{number}") is None
    with pytest.raises(RetryLaterError, match="You sign in more often than this page allows"):
        sign_in.visitor("hf_one_more")
    assert sign_in.macs("hf_one_more") is None
    assert "hf_one_more" not in asked


@pytest.mark.parametrize("token", ["", " ", "hf_a b", "hf_\n", "hf_\0", "hf_\xe9", "x" * 5_000])
def test_what_cannot_be_a_token_is_not_shown_to_the_hub(token):
    sign_in, asked = make_sign_in()
    assert sign_in.visitor(token) is None
    assert sign_in.macs(token) is None
    assert asked == []


def test_operators_are_a_list_in_the_settings():
    sign_in, _ = make_sign_in(operator_ids=frozenset({"id0ann"}))
    assert sign_in.require(TOKEN).is_operator


def test_who_has_not_signed_in_is_told_to_or_that_nobody_can():
    with pytest.raises(RequestError, match="Sign in with Hugging Face first"):
        make_sign_in()[0].require(None)
    with pytest.raises(RequestError, match="'hf_oauth: true'"):
        make_sign_in(signs_in=False)[0].require(TOKEN + "x")


@pytest.mark.harden("secrets")
def test_no_token_is_kept():
    sign_in, asked = make_sign_in()
    sign_in.require(TOKEN)
    sign_in.macs(TOKEN)
    asked.clear()
    gc.collect()
    assert TOKEN not in repr(vars(sign_in._accounts))
    assert TOKEN not in repr(vars(sign_in._macs))


def test_the_macs_of_who_has_signed_in_are_asked_for_once():
    sign_in, asked = make_sign_in()
    assert [sign_in.macs(TOKEN) for _ in range(3)] == [MACS] * 3
    assert asked == [TOKEN]


def test_a_hub_that_does_not_tell_of_macs_is_no_error_and_is_not_asked_again_at_once():
    sign_in, asked = make_sign_in()
    assert [sign_in.macs("hf_other") for _ in range(3)] == [None] * 3
    assert asked == ["hf_other"]


def test_nobody_is_asked_for_macs_where_nobody_signs_in():
    for settings, token in (({}, None), ({}, ""), ({"signs_in": False}, TOKEN)):
        sign_in, asked = make_sign_in(**settings)
        assert sign_in.macs(token) is None
        assert asked == []


def test_a_job_belongs_to_who_asked_for_it_and_to_operators():
    job = make_job()
    assert Visitor(name="somebody").owns(job)
    assert not Visitor(name="somebody else").owns(job)
    assert Visitor(name="boss", is_operator=True).owns(job)


@pytest.mark.harden("web")
def test_a_new_account_of_an_old_name_owns_no_job_and_operates_nothing():
    request = replace(make_job().request, requester="ann", requester_id="id0ann")
    assert Visitor(name="ann", hub_id="id0ann").owns(make_job(request=request))
    assert not Visitor(name="ann", hub_id="id1new").owns(make_job(request=request))
    of_before = replace(request, requester_id="")  # an earlier version kept no id
    assert not Visitor(name="ann", hub_id="id1new").owns(make_job(request=of_before))
    sign_in, _ = make_sign_in(operator_ids=frozenset({"id0of0the0first0ann"}))
    assert not sign_in.require(TOKEN).is_operator


@pytest.mark.harden("web")
def test_an_account_named_like_a_user_of_the_machine_or_the_watcher_owns_nothing_of_theirs():
    for requester in (local_name("ann"), WATCHER):
        job = make_job(request=replace(make_job().request, requester=requester))
        for name in ("ann", "watcher", "local"):
            assert not Visitor(name=name).owns(job)
        assert ACCOUNT.fullmatch(requester) is None
    request = replace(make_job().request, requester="watcher", priority=Priority.WATCHER)
    assert not Visitor(name="watcher").owns(make_job(request=request))  # of an earlier version


def test_settings_come_from_the_environment():
    web = WebSettings.from_environment(
        SPACE
        | {
            "OAUTH_CLIENT_ID": "id",
            "SYSTEM": "spaces",
            "DYNQUANT_OPERATORS": "ann:65a1, bob:65b2,",
        }
    )
    assert web == WebSettings(
        operator_ids=frozenset({"65a1", "65b2"}),
        is_space=True,
        signs_in=True,
        address="https://you-dynquant.hf.space",
        host="0.0.0.0",
        repo_url="https://huggingface.co/spaces/you/dynquant/blob/main",
    )
    assert WebSettings.from_environment({"OAUTH_CLIENT_ID": "id"}) == WebSettings()


@pytest.mark.harden("web")
@pytest.mark.parametrize("system", [{}, {"SYSTEM": "docker"}])
def test_a_space_on_which_gradio_would_take_everybody_for_its_owner_does_not_start(system):
    with pytest.raises(InvalidOptionError, match="SYSTEM must be 'spaces'"):
        WebSettings.from_environment(SPACE | {"OAUTH_CLIENT_ID": "id"} | system)


def test_only_this_machine_reaches_the_pages_unless_they_are_to_listen_elsewhere():
    assert WebSettings().is_local
    for name, is_local in (("::1", True), ("localhost", True), ("0.0.0.0", False)):
        web = WebSettings.from_environment({"GRADIO_SERVER_NAME": name})
        assert (web.host, web.is_local) == (name, is_local)
    assert not WebSettings.from_environment(SPACE | {"GRADIO_SERVER_NAME": "127.0.0.1"}).is_local


@pytest.mark.parametrize(
    "environment",
    [
        {"DYNQUANT_OPERATORS": "ann:1; bob:2"},
        {"DYNQUANT_OPERATORS": "ann"},
    ],
)
def test_settings_that_make_no_sense_name_their_variable(environment):
    with pytest.raises(InvalidOptionError, match=next(iter(environment))):
        WebSettings.from_environment(environment)
