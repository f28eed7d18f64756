"""The Macs on a profile: answers of the Hub, and malformed answers."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dynquant.errors import DestinationError, HubUnavailableError
from dynquant.hub import hardware
from dynquant.hub.hardware import Mac, macs_on
from dynquant.hub.visitor import HubVisitor
from local_hub import Answer, LocalHub
from tests.json_values import json_values
from tests.web import sign_in

WHO = "GET /(oauth|api/(whoami|users))"
M3_MAX = {"sku": ["Apple Silicon", "-", "Apple M3 Max"], "mem": 64, "num": 1}
M1 = {"sku": ["Apple Silicon", "-", "Apple M1"], "mem": 16, "num": 1}
RTX = {"sku": ["GPU", "NVIDIA", "RTX 4090"], "mem": 24, "num": 2, "isPrimary": True}

near_items = st.fixed_dictionaries(
    {},
    optional={
        "sku": json_values
        | st.tuples(
            st.sampled_from(["Apple Silicon", "GPU"]), json_values, json_values | st.text()
        ).map(list),
        "mem": json_values | st.floats() | st.integers(),
        "num": json_values,
        "isPrimary": json_values,
    },
)


def on(*items: Any) -> tuple[Mac, ...]:
    return macs_on({"hardwareItems": list(items)})


def mac(name: str, memory_gib: int) -> Mac:
    return Mac(name=name, memory_gib=memory_gib)


def test_macs_are_found_among_other_hardware():
    assert on(RTX, M3_MAX) == (mac("Apple M3 Max", 64),)
    assert on(RTX) == on() == ()


def test_the_primary_mac_comes_first_and_then_the_one_with_the_most_memory():
    studio = M1 | {"sku": ["Apple Silicon", "-", "Apple M3 Ultra"], "mem": 512}
    assert [each.memory_gib for each in on(M1, M3_MAX, studio)] == [512, 64, 16]
    primary = M1 | {"isPrimary": True}
    assert [each.memory_gib for each in on(M3_MAX, studio, primary)] == [16, 512, 64]


def test_several_of_one_kind_are_no_larger_machine():
    assert on(M1 | {"num": 8}) == on(M1, M1) == (mac("Apple M1", 16),)
    assert on(M1, M3_MAX, M1 | {"isPrimary": True})[0] == mac("Apple M1", 16)


@pytest.mark.parametrize("profile", [None, [], "x", {}, {"hardwareItems": None}, {"sku": []}])
def test_who_shows_no_hardware_has_no_mac(profile):
    assert macs_on(profile) == ()


@pytest.mark.parametrize(
    "changes",
    [
        {"sku": None},
        {"sku": "Apple Silicon"},
        {"sku": ["Apple Silicon", "-"]},
        {"sku": ["Apple Silicon", "-", "Apple M3 Max", "-"]},
        {"sku": ["Apple Silicon", "-", None]},
        {"sku": ["Apple Silicon", "-", " "]},
        {"sku": ["Apple Silicon", "-", "\u202e xaM 3M elppA"]},
        {"sku": ["Apple Silicon", "-", "M" * 41]},
        {"mem": None},
        {"mem": True},
        {"mem": "64"},
        {"mem": 0.5},
        {"mem": -64},
        {"mem": 10**400},
        {"mem": float("nan")},
        {"mem": float("inf")},
    ],
)
def test_an_item_that_makes_no_sense_is_passed_over(changes):
    assert on(M3_MAX | changes, M1) == (mac("Apple M1", 16),)


def test_no_more_are_shown_than_a_list_can_take():
    assert len(on(*({**M1, "mem": size} for size in range(8, 200)))) == 8


@pytest.mark.harden("web")
@given(json_values | st.fixed_dictionaries({"hardwareItems": st.lists(near_items, max_size=6)}))
def test_whatever_the_hub_says_there_are_sane_macs_or_none(profile):
    for each in macs_on(profile):
        assert each.name.isprintable()
        assert 0 < len(each.name) <= 40
        assert type(each.memory_gib) is int
        assert 1 <= each.memory_gib <= 4096


@pytest.fixture
def ann(hub: LocalHub, pauses: list[float]) -> HubVisitor:
    sign_in.install()
    hub.add_user("ann", token="hf_ann", hardware=[RTX, M1, M3_MAX])
    return HubVisitor("hf_ann", endpoint=hub.url, sleep=pauses.append)


@pytest.mark.hub
def test_the_hub_is_asked_once_for_the_macs_of_whoever_has_the_token(ann, hub):
    assert ann.macs() == (mac("Apple M3 Max", 64), mac("Apple M1", 16))
    assert [each.path for each in hub.asked(WHO)] == ["/oauth/userinfo"]


@pytest.mark.hub
def test_who_does_not_show_their_hardware_has_none(ann, hub):
    hub.discreet.add("ann")
    assert ann.macs() == ()


@pytest.mark.hub
@pytest.mark.parametrize(
    "fault",
    [{"status": 503}, {"status": 429, "headers": {"Retry-After": "1"}}, {"action": "reset"}]
    + [{"action": action} for action in ("truncate", "html")],
    ids=str,
)
def test_a_hub_in_trouble_is_asked_no_second_time(ann, hub, pauses, fault):
    hub.fail("GET /oauth/userinfo", **fault)
    with pytest.raises(HubUnavailableError):
        ann.macs()
    assert len(hub.asked(WHO)) == 1
    assert pauses == []


@pytest.mark.hub
def test_a_token_that_is_nobodys_is_refused(ann, hub):
    hub.expired_tokens.add("hf_ann")
    with pytest.raises(DestinationError, match="does not accept the token"):
        ann.macs()


@pytest.mark.hub
def test_a_hub_that_is_slow_is_not_waited_for(ann, hub, monkeypatch):
    monkeypatch.setattr(hardware, "_ASK_SECS", 0.3)
    hub.fail("GET /oauth/userinfo", action="slow", secs=1e6)
    with pytest.raises(HubUnavailableError, match="took too long"):
        ann.macs()


@pytest.mark.hub
@pytest.mark.parametrize(
    "content", ["x" * (2 << 20), "1" * 5_000, "[" * 100_000], ids=["long", "number", "nested"]
)
def test_an_answer_that_is_too_large_or_no_profile_is_refused(ann, hub, monkeypatch, content):
    monkeypatch.setattr(sign_in, "json_answer", lambda _: Answer(200, content))
    with pytest.raises(HubUnavailableError, match=r"too long|cannot be read"):
        ann.macs()
