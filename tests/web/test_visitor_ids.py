"""The address that counts a visitor of a Space, whatever headers the visitor sends."""

from __future__ import annotations

import gc
import itertools
from collections.abc import Iterator

import httpx2
import pytest

from dynquant.errors import RetryLaterError
from dynquant.web.limits import Limit, Limits
from dynquant.web.settings import WebSettings
from dynquant.web.visitor_ids import address_of
from tests.secrets.test_pages import signed_in
from tests.waiting import PATIENCE_SECS
from tests.web.scene import SOURCE, Field, opened
from tests.web.space import Space, opened_space

pytestmark = [pytest.mark.hub, pytest.mark.harden("web")]

PROXY = "10.16.3.80"
"""The peer of every connection of a Space."""
MINE, OTHER = "198.51.100.7", "203.0.113.8"


@pytest.mark.parametrize(
    ("peer", "forwarded", "address"),
    [
        (PROXY, [MINE], MINE),
        (PROXY, [f"{OTHER}, {MINE}"], MINE),
        (PROXY, [f"{OTHER}, {MINE}, 10.0.0.1, 100.64.3.3,fd12::1"], MINE),
        (PROXY, [OTHER, MINE], MINE),
        (PROXY, [f"{OTHER}, {MINE}:4711"], MINE),
        (PROXY, [f"{OTHER}, ::ffff:{MINE}"], MINE),
        (PROXY, [f"1.1.1.1, {OTHER}, 2001:db8:1:2:3:4:5:6"], "2001:db8:1:2::/64"),
        (PROXY, [f"{OTHER}, [2001:db8:1:2::9]:443"], "2001:db8:1:2::/64"),
        (PROXY, [f"{OTHER}, nonsense"], PROXY),
        (PROXY, [f"{OTHER}, unknown, 10.0.0.1"], PROXY),
        (PROXY, ["10.1.2.3, 192.168.0.9"], PROXY),
        (PROXY, [], PROXY),
        (PROXY, [""], PROXY),
        ("fe80::1%eth0", [], "fe80::/64"),
        (MINE, [OTHER], MINE),
        ("", [], "?"),
    ],
)
def test_only_what_the_nearest_proxies_say_is_believed(peer, forwarded, address):
    assert address_of(peer, forwarded) == address


def test_many_addresses_keep_nobody_waiting_who_has_signed_in():
    limits = Limits({"search": Limit(burst=3, secs=10.0, share=2)}, clock=lambda: 0.0, visitor=str)
    for number in range(6):
        limits.count("search", who=f"address {number}")
    with pytest.raises(RetryLaterError, match="All visitors together search"):
        limits.count("search", who="address 7")
    limits.count("search", who="account ann")


@pytest.fixture(scope="module")
def space(tmp_path_factory) -> Iterator[Field]:
    settings = WebSettings(is_space=True)
    with opened(tmp_path_factory.mktemp("space"), settings=settings) as space:
        yield space
    gc.collect()  # the loops that Gradio left, while their warnings are still ignored


def look(url: str, *forwarded: str, client: httpx2.Client | None = None) -> httpx2.Response:
    headers = [("X-Forwarded-For", line) for line in forwarded]
    return (client or httpx2).post(
        f"{url}/gradio_api/run/plan",
        json={"data": [SOURCE, [4.5], 4096]},
        headers=headers,
        timeout=PATIENCE_SECS,
    )


@pytest.fixture
def few(space, monkeypatch) -> None:
    """Three looks for each visitor, six for all together, and nothing looked at yet."""
    limits = {"look at models": Limit(burst=3, secs=1e6, share=2)}
    fresh = Limits(limits, visitor=space.service._limits._visitor)
    monkeypatch.setattr(space.service._limits, "_limits", fresh._limits)
    monkeypatch.setattr(space.service._limits, "_spent_until", fresh._spent_until)


@pytest.mark.parametrize("in_own_line", [False, True])
def test_who_makes_addresses_up_uses_up_their_own_limit_and_not_everybodys(space, few, in_own_line):
    def attack(made_up: str) -> httpx2.Response:
        lines = (made_up, MINE) if in_own_line else (f"{made_up}, {MINE}",)
        return look(space.url, *lines)

    answers = [attack(f"203.0.{number}.1") for number in range(12)]
    assert [each.status_code for each in answers] == [200] * 3 + [422] * 9
    assert "You look at models more often" in answers[-1].json()["error"]
    assert look(space.url, OTHER).status_code == 200  # the others' share is left


def test_the_addresses_of_one_network_are_one_visitor(space, few):
    answers = [look(space.url, f"2001:db8:7:7::{number:x}") for number in range(1, 8)]
    assert [each.status_code for each in answers] == [200] * 3 + [422] * 4


@pytest.fixture(scope="module")
def real_space(tmp_path_factory) -> Iterator[Space]:
    with opened_space(tmp_path_factory.mktemp("real")) as space:
        yield space


def refused_after(url: str, address: str, client: httpx2.Client | None = None) -> str:
    """Look until it is refused; the sentence."""
    for _ in range(1_000):
        answer = look(url, address, client=client)
        if answer.status_code != 200:
            return str(answer.json()["error"])
    return ""


def test_who_has_signed_in_is_counted_by_account_from_wherever_they_ask(real_space):
    url = real_space.url
    assert "You look at models more often" in refused_after(url, MINE)
    with httpx2.Client(base_url=url, timeout=PATIENCE_SECS) as ann:
        signed_in(ann)
        assert look(url, MINE, client=ann).status_code == 200
        assert "You look at models more often" in refused_after(url, MINE, client=ann)
        others = (f"203.0.113.{number}" for number in itertools.count(1))
        answers = [look(url, next(others), client=ann).status_code for _ in range(30)]
        assert answers.count(422) > 15
    assert look(url, OTHER).status_code == 200
