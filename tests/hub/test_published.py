"""Whether published repos are still on the Hub, by the real client against the local one."""

from __future__ import annotations

import pytest

from dynquant.errors import HubUnavailableError
from dynquant.hub.published import HubRepos
from dynquant.jobs.job import PublishedRepo
from dynquant.report.finished_files import PLAN

pytestmark = pytest.mark.hub

REPO = "you/M-MLX-4.5bpw"


@pytest.fixture
def repos(hub) -> HubRepos:
    hub.add_user("you", token="hf_you")
    return HubRepos(endpoint=hub.url, token="hf_you")


def are_there(repos: HubRepos, *names: str) -> bool:
    return repos.are_there([PublishedRepo(repo_id=name, commit_sha="c0ffee") for name in names])


def test_a_repo_that_holds_a_plan_is_there_whatever_it_is_called_now(hub, repos):
    hub.add(REPO, {PLAN: b"{}"})
    assert are_there(repos, REPO)
    hub.renamed["you/old-name"] = REPO
    assert are_there(repos, "you/old-name", REPO)
    assert are_there(repos)


def test_one_that_was_deleted_or_emptied_is_not_and_one_of_many_is_enough(hub, repos):
    hub.add(REPO, {PLAN: b"{}"})
    hub.add("you/emptied", {"README.md": b"# Gone"})
    assert not are_there(repos, "you/emptied")
    assert not are_there(repos, REPO, "you/deleted")


def test_a_private_one_is_there_for_its_owner_and_a_gated_one_for_everybody(hub, repos):
    hub.add(REPO, {PLAN: b"{}"}, private=True)
    hub.add("you/gated", {PLAN: b"{}"}, gated="manual")
    stranger = HubRepos(endpoint=hub.url, token=False)
    assert are_there(repos, REPO)
    assert not are_there(stranger, REPO)
    assert are_there(stranger, "you/gated")


def test_a_hub_that_does_not_answer_is_asked_once_and_says_nothing(hub, repos):
    hub.fail("/api/models/", status=503, times=9)
    with pytest.raises(HubUnavailableError):
        are_there(repos, REPO)
    assert len(hub.asked("/api/models/")) == 1
