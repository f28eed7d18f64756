"""Calls of a visitor with their own token, on a Hub on this machine."""

from __future__ import annotations

import json

import pytest

from dynquant.errors import DestinationError, Reason
from dynquant.hub.visitor import HubVisitor
from local_hub.app import app
from tests.hub import duplicating
from tests.hub.conftest import tiny_files

pytestmark = pytest.mark.hub

REPO = "quants/tiny-MLX-4.5bpw"


@pytest.fixture(autouse=True)
def copying() -> None:
    """The route comes before the route that refuses unknown requests of the local Hub."""
    if duplicating.router.routes[0] not in app.router.routes:
        app.router.routes.insert(0, duplicating.router.routes[0])


@pytest.fixture
def ann(hub, pauses) -> HubVisitor:
    hub.add_user("ann", token="hf_ann", orgs={"team": "write"})
    hub.add(REPO, tiny_files())
    return HubVisitor("hf_ann", endpoint=hub.url, sleep=pauses.append)


def test_the_hub_says_whose_a_token_is(ann):
    account = ann.account()
    assert (account.name, account.namespaces) == ("ann", ("ann", "team"))


def test_a_token_that_nobody_has_is_refused(ann, hub, pauses):
    with pytest.raises(DestinationError, match="does not accept the token"):
        HubVisitor("hf_forged", endpoint=hub.url, sleep=pauses.append).account()


@pytest.mark.parametrize("private", [False, True])
def test_a_copy_is_made_by_the_hub_itself(ann, hub, private):
    assert ann.copy(REPO, namespace="ann", private=private) == "ann/tiny-MLX-4.5bpw"
    copy = hub.repos["model", "ann/tiny-MLX-4.5bpw"]
    assert copy.at("main").files == hub.repos["model", REPO].at("main").files
    assert copy.private is private
    assert not hub.asked("GET .*/resolve/")


def test_a_copy_of_a_private_repo_is_private(ann, hub):
    hub.add("team/secret", tiny_files(), private=True)
    copy = ann.copy("team/secret", namespace="ann", private=False)
    assert hub.repos["model", copy].private


def test_what_is_there_already_is_left_alone(ann, hub):
    hub.add("ann/tiny-MLX-4.5bpw", {"README.md": b"mine"})
    words = r"There is a 'ann/tiny-MLX-4\.5bpw' already"
    with pytest.raises(DestinationError, match=words) as info:
        ann.copy(REPO, namespace="ann", private=False)
    assert info.value.reason is Reason.DESTINATION_TAKEN
    with pytest.raises(DestinationError, match="nothing to copy"):
        ann.copy(REPO, namespace="quants", private=False)


def made(source: str, bpw: float) -> dict[str, bytes]:
    """The files of a repo that dynquant published."""
    plan = json.dumps({"source": source, "target_bpw": bpw}).encode()
    return tiny_files(**{"dynquant/plan.json": plan})


@pytest.fixture
def ladder(hub) -> list[str]:
    repos = [f"quants/rung-{bpw}bpw" for bpw in (3, 4, 5)]
    for bpw, repo in enumerate(repos, start=3):
        hub.add(repo, made("org/Model", bpw))
    return repos


def test_a_copy_that_fails_keeps_no_other_from_it_and_the_next_try_makes_up_for_it(
    ann, hub, ladder
):
    hub.fail("POST .*/quants/rung-4bpw/duplicate", status=403, times=1)
    with pytest.raises(DestinationError) as caught:
        ann.copy_all(ladder, namespace="ann", private=False)
    assert "may not write to 'ann/rung-4bpw'" in str(caught.value)
    assert "Copied: ann/rung-3bpw, ann/rung-5bpw. Not copied: quants/rung-4bpw." in str(
        caught.value
    )
    copies = ("ann/rung-3bpw", "ann/rung-4bpw", "ann/rung-5bpw")
    assert ann.copy_all(ladder, namespace="ann", private=False) == copies
    assert len(hub.asked("POST .*/duplicate")) == 4


def test_a_quant_of_another_model_is_no_copy(ann, hub, ladder):
    hub.add("ann/rung-3bpw", made("org/Other", 3))
    with pytest.raises(DestinationError, match="There is a 'ann/rung-3bpw' already"):
        ann.copy(ladder[0], namespace="ann", private=False)


def test_nobody_copies_into_the_account_of_another(ann):
    with pytest.raises(DestinationError, match=r"may not write to 'bob/tiny-MLX-4\.5bpw'"):
        ann.copy(REPO, namespace="bob", private=False)
