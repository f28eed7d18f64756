"""The proxy itself: every kind of fault does what its name says, and schedules repeat."""

from __future__ import annotations

from collections.abc import Iterator

import httpx2
import pytest

from local_hub import LocalHub
from tests.faults.proxy import FaultyProxy, Trouble, TroubleKind, schedule
from tests.waiting import PATIENCE_SECS

pytestmark = [pytest.mark.hub, pytest.mark.harden("faults")]

BODY = b"0123456789" * 100
PATH = "/org/m/resolve/main/file.txt"


@pytest.fixture
def hub() -> Iterator[LocalHub]:
    with LocalHub() as hub:
        hub.add("org/m", {"file.txt": BODY})
        yield hub


def ask(hub: LocalHub, kind: TroubleKind | None, method: str = "GET", **options) -> httpx2.Response:
    def plan(_method: str, _path: str, num_before: int) -> Trouble | None:
        return Trouble(kind=kind, place=0.3, secs=0.2) if kind and num_before == 0 else None

    with FaultyProxy(int(hub.url.rpartition(":")[2]), plan) as proxy:
        try:
            url = f"http://127.0.0.1:{proxy.port}{PATH}"
            return httpx2.request(method, url, timeout=PATIENCE_SECS, **options)
        finally:
            proxy.settle()
            assert proxy.met.total() == (kind is not None)


def test_without_trouble_everything_passes(hub):
    answer = ask(hub, None)
    assert (answer.status_code, answer.content) == (200, BODY)


@pytest.mark.parametrize(
    ("kind", "num_asked"),
    [
        (TroubleKind.REQUEST_LOST, 0),
        (TroubleKind.REQUEST_CUT, 0),
        (TroubleKind.ANSWER_LOST, 1),
        (TroubleKind.ANSWER_CUT, 1),
    ],
)
def test_a_lost_or_cut_exchange_is_an_error_at_the_client(hub, kind, num_asked):
    with pytest.raises(httpx2.TransportError):
        ask(hub, kind)
    assert len(hub.requests) == num_asked


@pytest.mark.parametrize(
    ("kind", "num_asked"),
    [
        (TroubleKind.REQUEST_TWICE, 2),
        (TroubleKind.REQUEST_AGAIN_LATER, 2),
        (TroubleKind.ANSWER_LATE, 1),
    ],
)
def test_a_copy_or_a_delay_changes_nothing_in_the_answer(hub, kind, num_asked):
    assert ask(hub, kind).content == BODY
    assert len(hub.requests) == num_asked


def test_a_short_answer_looks_whole(hub):
    assert ask(hub, TroubleKind.ANSWER_SHORT).content == BODY[:300]


def test_a_corrupt_answer_differs_in_one_bit(hub):
    got = ask(hub, TroubleKind.ANSWER_CORRUPT).content
    different = [a ^ b for a, b in zip(got, BODY, strict=True) if a != b]
    assert [bits.bit_count() for bits in different] == [1]


def test_a_corrupt_request_arrives_with_one_bit_changed(hub):
    ask(hub, TroubleKind.REQUEST_CORRUPT, "POST", content=BODY)
    got = hub.requests[0].body
    assert sum((a ^ b).bit_count() for a, b in zip(got, BODY, strict=True)) == 1


def test_a_seed_always_gives_the_same_trouble_and_another_seed_gives_another():
    asked = [("GET", f"/{n}", again) for n in range(100) for again in range(3)]
    first, second, other = ([schedule(seed)(*each) for each in asked] for seed in (1, 1, 2))
    assert first == second
    assert first != other
    kinds = {each.kind for seed in range(20) for ask in asked if (each := schedule(seed)(*ask))}
    assert kinds == set(TroubleKind)
