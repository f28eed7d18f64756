from __future__ import annotations

import os

import pytest
from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi
from huggingface_hub.community import DiscussionComment, DiscussionCommit, DiscussionStatusChange
from huggingface_hub.errors import BadRequestError, HfHubHTTPError

from local_hub import Repo

pytestmark = pytest.mark.hub

REPO = "alice/tiny"


def add(path: str, content: bytes = b"x") -> CommitOperationAdd:
    return CommitOperationAdd(path_in_repo=path, path_or_fileobj=content)


@pytest.fixture
def repo(hub) -> Repo:
    return hub.add(REPO, {"a.txt": b"a", "b.txt": b"b"})


def test_people_talk_about_a_repo(repo, bob: HfApi, alice: HfApi):
    opened = bob.create_discussion(REPO, "  Hello ", description="Is this right?")
    assert (opened.num, opened.title, opened.author, opened.status) == (1, "Hello", "bob", "open")
    alice.comment_discussion(REPO, 1, "It is.")
    bob.rename_discussion(REPO, 1, "Hello again")
    alice.change_discussion_status(REPO, 1, "closed", comment="Done.")
    found = bob.get_discussion_details(REPO, 1)
    assert (found.title, found.status) == ("Hello again", "closed")
    said = [event.content for event in found.events if isinstance(event, DiscussionComment)]
    assert said == ["Is this right?", "It is.", "Done."]
    assert isinstance(found.events[-1], DiscussionStatusChange)


def test_discussions_are_listed_newest_first_in_pages(repo, bob: HfApi):
    for number in range(12):
        bob.create_discussion(REPO, f"Number {number}")
    bob.create_pull_request(REPO, "Proposal")
    found = list(bob.get_repo_discussions(REPO))
    assert [one.num for one in found] == list(range(13, 0, -1))
    (proposal,) = bob.get_repo_discussions(REPO, discussion_type="pull_request")
    assert (proposal.title, proposal.status) == ("Proposal", "draft")
    bob.change_discussion_status(REPO, 3, "closed")
    (closed,) = bob.get_repo_discussions(REPO, discussion_status="closed")
    assert closed.num == 3
    assert list(bob.get_repo_discussions(REPO, author="alice")) == []


def test_a_commit_can_be_a_pull_request(repo: Repo, bob: HfApi, alice: HfApi):
    weights = os.urandom(1000)
    done = bob.create_commit(
        REPO, [add("c.txt"), CommitOperationDelete("b.txt")], commit_message="Mine", create_pr=True
    )
    assert (done.pr_num, done.pr_revision) == (1, "refs/pr/1")
    bob.create_commit(
        REPO, [add("w.safetensors", weights)], commit_message="More", revision="refs/pr/1"
    )
    assert set(repo.commits[repo.branches["main"]].files) == {"a.txt", "b.txt"}
    found = alice.get_discussion_details(REPO, 1)
    assert (found.is_pull_request, found.status, found.target_branch, found.git_reference) == (
        True,
        "open",
        "refs/heads/main",
        "refs/pr/1",
    )
    events = [event for event in found.events if isinstance(event, DiscussionCommit)]
    assert [event.summary for event in events] == ["Mine", "More"]

    with pytest.raises(HfHubHTTPError, match="required permissions"):
        bob.merge_pull_request(REPO, 1)
    alice.merge_pull_request(REPO, 1, comment="Thanks")
    files = repo.commits[repo.branches["main"]].files
    assert set(files) == {"a.txt", "c.txt", "w.safetensors"}
    assert files["w.safetensors"].read() == weights
    merged = alice.get_discussion_details(REPO, 1)
    assert (merged.status, merged.merge_commit_oid) == ("merged", repo.branches["main"])
    assert alice.list_repo_commits(REPO)[0].title == "Mine (#1)"
    with pytest.raises(BadRequestError, match="merged"):
        alice.change_discussion_status(REPO, 1, "open")


def test_a_merge_keeps_what_happened_since_and_refuses_conflicts(repo: Repo, bob, alice):
    bob.create_commit(REPO, [add("a.txt", b"his")], commit_message="One", create_pr=True)
    bob.create_commit(REPO, [add("b.txt", b"his")], commit_message="Two", create_pr=True)
    alice.create_commit(REPO, [add("b.txt", b"hers")], commit_message="Since")
    alice.merge_pull_request(REPO, 1)
    files = repo.commits[repo.branches["main"]].files
    assert (files["a.txt"].read(), files["b.txt"].read()) == (b"his", b"hers")
    assert alice.get_discussion_details(REPO, 2).conflicting_files == ["b.txt"]
    with pytest.raises(HfHubHTTPError, match=r"conflicts: b\.txt"):
        alice.merge_pull_request(REPO, 2)


def test_a_draft_is_opened_before_it_is_merged(repo, alice: HfApi):
    draft = alice.create_pull_request(REPO, "Later")
    alice.create_commit(REPO, [add("c.txt")], commit_message="C", revision=draft.git_reference)
    with pytest.raises(BadRequestError, match="draft"):
        alice.merge_pull_request(REPO, draft.num)
    alice.change_discussion_status(REPO, draft.num, "open")
    alice.merge_pull_request(REPO, draft.num)
    assert alice.file_exists(REPO, "c.txt")


def test_strangers_may_not_touch_what_others_opened(repo, hub, alice: HfApi, bob: HfApi):
    alice.create_commit(REPO, [add("c.txt")], commit_message="C", create_pr=True)
    for act in (
        lambda: bob.rename_discussion(REPO, 1, "Mine now"),
        lambda: bob.change_discussion_status(REPO, 1, "closed"),
        lambda: bob.create_commit(REPO, [add("d")], commit_message="D", revision="refs/pr/1"),
    ):
        with pytest.raises(HfHubHTTPError, match="required permissions"):
            act()


def test_a_discussion_that_there_is_not(repo, alice: HfApi):
    with pytest.raises(HfHubHTTPError, match="no discussion 7"):
        alice.get_discussion_details(REPO, 7)
