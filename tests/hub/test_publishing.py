"""Publishing with the real client, over HTTP, to a Hub on this machine."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import threading
from contextlib import contextmanager
from itertools import count
from pathlib import Path
from queue import SimpleQueue
from typing import Any

import pytest
from huggingface_hub import HfApi, constants

from dynquant.errors import (
    CardError,
    DestinationError,
    DynquantError,
    HubQuotaError,
    HubUnavailableError,
    InvalidModelError,
    Reason,
    VerificationError,
)
from dynquant.hub import HubPublisher
from dynquant.model.access import Access
from dynquant.model.origin import Origin
from dynquant.publish import ModelPublisher
from tests.fakes import FakeProgress
from tests.waiting import PATIENCE_SECS

REPO = "you/Model-MLX-4.5bpw"
TOKEN = "hf_canary_token"
ORIGIN = Origin(name="org/Model")
TITLE = "Model-MLX-4.5bpw of org/Model@c0ffee"
WEIGHTS = ("model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors")

pytestmark = pytest.mark.hub


@pytest.fixture(autouse=True)
def account(hub, monkeypatch):
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
    hub.add_user("you", token=TOKEN, orgs={"team": "write", "club": "read"})
    hub.add_user("mallory", token="hf_other")


@pytest.fixture
def publisher(hub, pauses) -> HubPublisher:
    return HubPublisher(endpoint=hub.url, token=TOKEN, sleep=pauses.append)


def write_model(folder: Path, **overrides: bytes | None) -> Path:
    """A folder in the format of dynquant, with small weights."""
    files: dict[str, bytes | None] = {
        "README.md": b"---\nlicense: mit\n---\n# Model\n",
        "config.json": b'{"model_type": "qwen3"}',
        "tokenizer.json": b"{}",
        "dynquant/plan.json": json.dumps({"source": "org/Model"}).encode(),
        WEIGHTS[0]: b"first".ljust(1_500_000, b"."),
        WEIGHTS[1]: b"second".ljust(1_200_000, b"."),
    }
    for name, content in (files | overrides).items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if content is not None:
            path.write_bytes(content)
        else:
            path.unlink(missing_ok=True)
    return folder


@pytest.fixture
def folder(tmp_path) -> Path:
    return write_model(tmp_path / "Model-MLX-4.5bpw")


def publish(publisher: ModelPublisher, folder: Path, **options):
    progress = options.pop("progress", FakeProgress())
    arguments: dict[str, Any] = {"origin": ORIGIN, "title": TITLE, "access": Access()}
    return publisher.publish(
        folder, options.pop("repo", REPO), progress=progress, **arguments | options
    )


def contents(folder: Path) -> dict[str, bytes]:
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file()
    }


def at_the_hub(hub, repo: str = REPO) -> dict[str, bytes]:
    files = hub.repos["model", repo].at("main").files
    return {
        name: blob.read(0, blob.size) for name, blob in files.items() if name != ".gitattributes"
    }


def commits(hub, repo: str = REPO) -> list[str]:
    """Titles of the commits on main, the latest first, without the Hub's own commits."""
    found = hub.repos["model", repo]
    head, titles = found.branches.get("main"), []
    while head:
        titles.append(found.commits[head].title)
        head = found.commits[head].parent
    return [title for title in titles if "initial commit" not in title.lower()]


def test_a_folder_becomes_a_repo_in_one_commit_byte_for_byte(hub, publisher, folder):
    published = publish(publisher, folder)
    assert commits(hub) == [TITLE]
    assert at_the_hub(hub) == contents(folder)
    assert published.commit_sha == hub.repos["model", REPO].at("main").sha
    assert published.url == f"{hub.url}/{REPO}"
    assert published.is_new


def test_publishing_the_same_again_changes_nothing_and_sends_no_file(hub, publisher, folder):
    first = publish(publisher, folder)
    del hub.requests[:]
    again = publish(publisher, folder)
    assert (again.commit_sha, again.is_new) == (first.commit_sha, False)
    assert commits(hub) == [TITLE]
    assert hub.asked("^(POST|PUT|DELETE)") == []


def test_an_older_version_of_our_own_is_updated_and_stays_in_the_history(hub, publisher, folder):
    first = publish(publisher, folder)
    write_model(
        folder, **{WEIGHTS[1]: None, WEIGHTS[0]: b"new".ljust(1_100_000, b"."), "LICENSE": b"MIT"}
    )
    second = publish(publisher, folder, title="A better one")
    assert commits(hub) == ["A better one", TITLE]
    assert at_the_hub(hub) == contents(folder)
    old = hub.repos["model", REPO].commits[first.commit_sha].files
    assert set(WEIGHTS) <= set(old)
    assert second.is_new


@pytest.mark.parametrize(
    ("theirs", "says"),
    [
        ({"README.md": b"# Mine"}, "files that dynquant did not publish"),
        ({"dynquant/plan.json": b'{"source": "org/Other"}'}, "quant of 'org/Other'"),
        ({"dynquant/plan.json": b"[" * 100_000}, "a model that its plan does not name"),
        ({"dynquant/plan.json": b"\xff{}"}, "a model that its plan does not name"),
    ],
)
def test_a_repo_that_somebody_else_filled_is_never_overwritten(
    hub, publisher, folder, theirs, says
):
    hub.add(REPO, theirs)
    with pytest.raises(DestinationError, match=says) as caught:
        publisher.check(REPO, origin=ORIGIN, access=Access())
    assert caught.value.reason == Reason.DESTINATION_TAKEN
    with pytest.raises(DestinationError, match=says):
        publish(publisher, folder)
    assert at_the_hub(hub) == theirs


def test_an_empty_repo_is_filled(hub, publisher, folder):
    HfApi(endpoint=hub.url, token=TOKEN).create_repo(REPO, visibility="private")
    publisher.check(REPO, origin=ORIGIN, access=Access())
    publish(publisher, folder)
    assert hub.repos["model", REPO].private  # as it was made
    assert at_the_hub(hub) == contents(folder)


def test_a_reader_finds_a_whole_model_or_none_at_every_moment(hub, publisher, folder):
    seen = set()

    def look(_request) -> None:
        if (repo := hub.repos.get(("model", REPO))) is not None and (commit := repo.at("main")):
            seen.add(frozenset(set(commit.files) - {".gitattributes"}))

    hub.on_request = hub.after_request = look
    publish(publisher, folder)
    assert seen <= {frozenset(), frozenset(contents(folder))}
    assert frozenset(contents(folder)) in seen


@pytest.mark.parametrize(("private", "gated"), [(True, ""), (False, "auto"), (True, "manual")])
def test_a_new_repo_is_as_private_and_gated_as_asked(hub, publisher, folder, private, gated):
    publish(publisher, folder, access=Access(is_private=private, gated=gated))
    repo = hub.repos["model", REPO]
    assert repo.private is private
    assert (repo.gated or "") == gated


def test_a_repo_that_is_there_keeps_its_visibility(hub, publisher, folder):
    publish(publisher, folder, access=Access(is_private=True))
    (folder / "config.json").write_text("{}")
    publish(publisher, folder, access=Access())
    assert hub.repos["model", REPO].private


CLOSED = (Access(is_private=True), Access(gated="manual"), Access(gated="auto"))


def seen_while_open(hub, access: Access) -> list[str]:
    """Requests that are sent while the repo is more open than `access`."""
    seen: list[str] = []

    def look(request) -> None:
        repo = hub.repos.get(("model", REPO))
        if repo is not None:
            found = Access(is_private=repo.private, gated=repo.gated or "")
            if found.is_more_open_than(access):
                seen.append(f"{request.method} {request.path}")

    hub.on_request = look
    return seen


@pytest.mark.harden("publishing")
@pytest.mark.parametrize("access", CLOSED, ids=str)
def test_new_weights_do_not_go_into_a_repo_of_ours_that_is_still_open(
    hub, publisher, folder, access
):
    publish(publisher, folder)
    before = at_the_hub(hub)
    (folder / WEIGHTS[0]).write_bytes(b"new".ljust(1_500_000, b"."))
    hub.requests.clear()
    for attempt in (
        lambda: publisher.check(REPO, origin=ORIGIN, access=access),
        lambda: publish(publisher, folder, access=access),
    ):
        with pytest.raises(DestinationError, match=r"is public, and .* has to be") as caught:
            attempt()
        assert caught.value.reason == Reason.DESTINATION_TOO_OPEN
    assert at_the_hub(hub) == before
    assert not hub.asked("preupload|lfs|/commit/")


@pytest.mark.harden("publishing")
@pytest.mark.parametrize("access", CLOSED, ids=str)
def test_an_empty_open_repo_of_that_name_is_closed_before_anything_is_sent(
    hub, publisher, folder, access
):
    HfApi(endpoint=hub.url, token=TOKEN).create_repo(REPO, visibility="public")
    publisher.check(REPO, origin=ORIGIN, access=access)
    seen = seen_while_open(hub, access)
    publish(publisher, folder, access=access)
    assert not [each for each in seen if re.search("preupload|lfs|/commit/", each)]
    repo = hub.repos["model", REPO]
    assert not Access(is_private=repo.private, gated=repo.gated or "").is_more_open_than(access)
    assert at_the_hub(hub) == contents(folder)


@pytest.mark.harden("publishing")
def test_a_repo_that_stays_open_although_it_was_to_be_closed_gets_nothing(hub, publisher, folder):
    HfApi(endpoint=hub.url, token=TOKEN).create_repo(REPO, visibility="public")

    def reopen(request) -> None:
        if request.path.endswith("/settings"):
            hub.repos["model", REPO].private = False

    hub.after_request = reopen
    with pytest.raises(DestinationError, match="is public, and this quant has to be private"):
        publish(publisher, folder, access=Access(is_private=True))
    assert at_the_hub(hub) == {}


def test_a_repo_that_is_opened_while_weights_are_stored_gets_no_commit(hub, publisher, folder):
    publish(publisher, folder, access=Access(is_private=True))
    before = at_the_hub(hub)
    (folder / WEIGHTS[0]).write_bytes(b"new".ljust(1_500_000, b"."))

    def disturb(request) -> None:
        if "/commit/" in request.path and hub.repos["model", REPO].private:
            hub.repos["model", REPO].private = False
            hub.repos["model", REPO].commit({"note.txt": b"hello"})

    hub.on_request = disturb
    with pytest.raises(DestinationError, match="is public, and this quant has to be private"):
        publish(publisher, folder, access=Access(is_private=True))
    assert at_the_hub(hub) == before | {"note.txt": b"hello"}


@pytest.mark.harden("publishing")
def test_a_new_owner_of_a_name_inherits_no_repo_of_the_one_before(hub, publisher, folder):
    plan = {"source": "org/Model", "source_id": "65a0000000000000000000aa"}
    write_model(folder, **{"dynquant/plan.json": json.dumps(plan).encode()})
    first = Origin(name="org/Model", hub_id="65a0000000000000000000aa")
    publish(publisher, folder, origin=first)
    second = Origin(name="org/Model", hub_id="66b0000000000000000000bb")
    with pytest.raises(DestinationError, match="an earlier model that was called 'org/Model'"):
        publisher.check(REPO, origin=second, access=Access())
    with pytest.raises(DestinationError, match="an earlier model"):
        publish(publisher, folder, origin=second)


def test_a_source_that_was_renamed_goes_on_in_its_repo(publisher, folder):
    plan = {"source": "org/Model", "source_id": "65a0000000000000000000aa"}
    write_model(folder, **{"dynquant/plan.json": json.dumps(plan).encode()})
    publish(publisher, folder, origin=Origin(name="org/Model", hub_id=plan["source_id"]))
    renamed = Origin(name="org/New", hub_id=plan["source_id"])
    publisher.check(REPO, origin=renamed, access=Access())


def test_progress_counts_every_byte_once(publisher, folder):
    total = sum(map(len, contents(folder).values()))
    counted = []

    class Counting(FakeProgress):
        @contextmanager
        def track(self, steps):
            self.announced.append(dict(steps))
            yield lambda step, amount=1: counted.append(amount)

    progress = Counting()
    publish(publisher, folder, progress=progress)
    assert progress.announced == [{"publish": total}]
    assert sum(counted) == total
    counted.clear()
    publish(publisher, folder, progress=progress)
    assert sum(counted) == total


def test_an_organization_that_the_account_belongs_to_is_fine(hub, publisher, folder):
    published = publish(publisher, folder, repo="team/Model")
    assert published.repo_id == "team/Model"


def test_another_namespace_is_refused_before_any_work(hub, publisher):
    with pytest.raises(DestinationError, match=r"belongs to 'you'.*one of: you, team;"):
        publisher.check("mallory/Model", origin=ORIGIN, access=Access())


def test_a_role_that_may_only_read_an_organization_is_refused_and_leaves_nothing(
    hub, publisher, folder
):
    with pytest.raises(DestinationError, match="cannot publish as 'club'"):
        publish(publisher, folder, repo="club/Model")
    assert ("model", "club/Model") not in hub.repos


@pytest.mark.parametrize(
    ("scopes", "allowed"),
    [
        ({"you": ("repo.content.read", "repo.write")}, {"you/Model"}),
        ({"you": ("repo.content.read",), "team": ("repo.write",)}, {"team/Model"}),
        ({"you/Model": ("repo.write",), "you": ("repo.content.read",)}, {"you/Model"}),
        ({"you/Other": ("repo.write",), "team": ()}, set()),
        ({"": ("repo.write",)}, {"you/Model", "team/Model"}),
        ({"": ("discussion.write",)}, set()),
    ],
)
def test_a_fine_grained_token_publishes_where_it_may_write_and_is_refused_elsewhere_before_any_work(
    hub, scopes, allowed
):
    hub.add_user("you", token="hf_fine", role="fineGrained")
    hub.scopes["hf_fine"] = scopes
    publisher = HubPublisher(endpoint=hub.url, token="hf_fine")
    for repo in ("you/Model", "team/Model"):
        if repo in allowed:
            publisher.check(repo, origin=ORIGIN, access=Access())
        else:
            with pytest.raises(DestinationError, match="fine-grained token in use may not") as no:
                publisher.check(repo, origin=ORIGIN, access=Access())
            assert no.value.reason == Reason.NO_ACCESS


@pytest.mark.parametrize(
    ("card", "words"),
    [
        (b"---\nlicense: apache-2.0, mit\n---\n", r'"license" must be one of \[apache-2.0, mit,'),
        (b"\xff\xfe", "no text in UTF-8"),
    ],
)
def test_a_card_that_the_hub_does_not_take_is_refused_in_its_words_before_anything_is_sent(
    hub, publisher, folder, pauses, card, words
):
    write_model(folder, **{"README.md": card})
    with pytest.raises(CardError, match=words):
        publish(publisher, folder)
    assert ("model", REPO) not in hub.repos
    assert not hub.asked("PUT|POST .*(lfs|preupload|commit)")
    assert pauses == []


def test_a_token_that_may_only_read_is_refused_before_any_work(hub):
    hub.add_user("reader", token="hf_reader", role="read")
    with pytest.raises(DestinationError, match="may only read") as caught:
        HubPublisher(endpoint=hub.url, token="hf_reader").check(
            "reader/M", origin=ORIGIN, access=Access()
        )
    assert caught.value.reason == Reason.NO_ACCESS


def test_without_a_token_the_error_says_how_to_get_one(hub, tmp_path):
    with pytest.raises(DestinationError, match="HF_TOKEN") as caught:
        HubPublisher(endpoint=hub.url).check(REPO, origin=ORIGIN, access=Access())
    assert caught.value.reason == Reason.NOT_SIGNED_IN
    assert "HF_TOKEN to a token that may write there" in str(caught.value)


def test_a_token_that_expires_in_the_middle_is_named_and_a_new_one_goes_on(
    hub, publisher, folder, pauses
):
    def expire(request) -> None:
        if request.method == "PUT":
            hub.expired_tokens.add(TOKEN)

    hub.after_request = expire
    with pytest.raises(DestinationError, match="may have expired") as caught:
        publish(publisher, folder)
    assert caught.value.reason == Reason.TOKEN_REFUSED
    assert at_the_hub(hub) == {}
    hub.after_request = None
    hub.add_user("you", token="hf_fresh")
    del hub.requests[:]
    publish(HubPublisher(endpoint=hub.url, token="hf_fresh"), folder)
    assert at_the_hub(hub) == contents(folder)
    assert len(hub.asked("^PUT")) < len(WEIGHTS)  # files that were sent are not sent again


def test_a_full_account_is_named_and_nothing_is_published(hub, publisher, folder):
    hub.quota_bytes = 1_600_000
    with pytest.raises(HubQuotaError, match="no storage left"):
        publish(publisher, folder)
    assert at_the_hub(hub) == {}


def test_the_commit_whose_answer_is_lost_is_not_made_twice(hub, publisher, folder):
    hub.fail("^POST .*/commit/", action="reset", times=1, after=True)
    publish(publisher, folder)
    assert commits(hub) == [TITLE]
    assert at_the_hub(hub) == contents(folder)


def test_a_commit_of_somebody_else_in_between_is_looked_at_and_kept(hub, publisher, folder):
    publish(publisher, folder)
    (folder / "config.json").write_text('{"changed": true}')
    meddled: list[bool] = []

    def meddle(request) -> None:
        if not meddled and "/commit/" in request.path:
            meddled.append(True)
            hub.repos["model", REPO].commit({"README.md": b"# Edited"}, title="Meddled")

    hub.on_request = meddle
    publish(publisher, folder, title="Update")
    assert commits(hub) == ["Update", "Meddled", TITLE]
    assert at_the_hub(hub) == contents(folder)


def test_a_hub_that_still_shows_the_head_of_before_makes_no_second_commit(hub, publisher, folder):
    publish(publisher, folder)
    (folder / "config.json").write_text('{"changed": true}')
    branches = hub.repos["model", REPO].branches
    before = branches["main"]
    now: list[str] = []

    def lag(request) -> None:
        if request.path == f"/api/models/{REPO}" and branches["main"] != before:
            now.append(branches["main"])
            branches["main"] = before

    def catch_up(_request) -> None:
        branches["main"] = now.pop() if now else branches["main"]

    hub.on_request, hub.after_request = lag, catch_up
    published = publish(publisher, folder, title="Update")
    assert commits(hub) == ["Update", TITLE]
    assert published.commit_sha == branches["main"]
    assert len(hub.asked("POST .*/commit/")) == 2


def test_somebody_who_fills_a_new_repo_in_between_is_not_overwritten(hub, publisher, folder):
    def fill(request) -> None:
        if request.method == "PUT":
            hub.repos["model", REPO].commit({"README.md": b"# Mine"}, title="Mine")

    hub.on_request = fill
    with pytest.raises(DestinationError, match="did not publish"):
        publish(publisher, folder)
    assert at_the_hub(hub) == {"README.md": b"# Mine"}


def test_a_repo_that_never_stands_still_is_given_up_after_some_pauses(
    hub, publisher, folder, pauses
):
    publish(publisher, folder)
    (folder / "config.json").write_text('{"changed": true}')
    count = []

    def meddle(request) -> None:
        if "/commit/" in request.path:
            count.append(True)
            hub.repos["model", REPO].commit({"README.md": b"%d" % len(count)}, title="Meddled")

    hub.on_request = meddle
    with pytest.raises(VerificationError, match="Somebody else may be writing"):
        publish(publisher, folder)
    assert len(pauses) == len(count) == 5
    assert all(0 < pause < 8 for pause in pauses)


def test_two_that_publish_the_same_at_once_make_one_commit(hub, folder):
    publishers = [HubPublisher(endpoint=hub.url, token=TOKEN, sleep=lambda _: None)] * 3
    threads = [threading.Thread(target=publish, args=(each, folder)) for each in publishers]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert commits(hub) == [TITLE]
    assert at_the_hub(hub) == contents(folder)


def test_a_renamed_repo_is_updated_under_its_new_name(hub, publisher, folder):
    publish(publisher, folder)
    HfApi(endpoint=hub.url, token=TOKEN).move_repo(REPO, "you/Renamed")
    (folder / "config.json").write_text('{"changed": true}')
    published = publish(publisher, folder)
    assert published.repo_id == "you/Renamed"
    assert at_the_hub(hub, "you/Renamed") == contents(folder)


@pytest.mark.harden("publishing")
def test_a_repo_that_was_moved_to_another_account_is_written_by_nobody_who_names_its_old_place(
    hub, publisher, folder
):
    publish(publisher, folder)
    HfApi(endpoint=hub.url, token=TOKEN).move_repo(REPO, "team/Model")
    before = at_the_hub(hub, "team/Model")
    (folder / "config.json").write_text('{"changed": true}')
    with pytest.raises(DestinationError, match="was moved to 'team/Model'"):
        publisher.check(REPO, origin=ORIGIN, access=Access())
    with pytest.raises(DestinationError, match="was moved to 'team/Model'"):
        publish(publisher, folder)
    assert at_the_hub(hub, "team/Model") == before


def test_what_is_published_can_be_found_with_its_plan(hub, publisher, folder):
    assert publisher.published(REPO) is None
    first = publish(publisher, folder)
    found = publisher.published(REPO)
    assert found is not None
    model, plan = found
    assert model.commit_sha == first.commit_sha
    assert json.loads(plan) == {"source": "org/Model"}


def test_a_repo_of_others_counts_as_not_published(hub, publisher):
    hub.add(REPO, {"README.md": b"# Mine"})
    assert publisher.published(REPO) is None


def test_a_folder_that_dynquant_did_not_make_is_refused(hub, publisher, folder):
    (folder / "dynquant" / "plan.json").unlink()
    with pytest.raises(InvalidModelError, match="no folder that dynquant made"):
        publish(publisher, folder)
    assert hub.repos == {}


def test_a_link_in_the_folder_is_refused(hub, publisher, folder, tmp_path):
    (tmp_path / "secret").write_text("s3cret")
    (folder / "notes.txt").symlink_to(tmp_path / "secret")
    with pytest.raises(InvalidModelError, match=r"'notes.txt' is a link"):
        publish(publisher, folder)
    assert hub.repos == {}


@pytest.mark.harden("child and runner")
@pytest.mark.parametrize("name", ["tokenizer.json", "dynquant/plan.json", WEIGHTS[0]])
@pytest.mark.parametrize("kind", ["link", "link of that size", "pipe", "larger file"])
def test_what_is_swapped_after_it_was_looked_at_is_not_sent(
    hub, publisher, folder, tmp_path, name, kind, harden
):
    """A file that was replaced by a link published the target of the link."""
    path = folder / name
    size = path.stat().st_size if kind == "link of that size" else 30
    (tmp_path / "secret").write_bytes(b"s3cret".ljust(size, b"."))

    def swap(request) -> None:
        if request.path.startswith("/api/whoami") and not path.is_symlink():
            path.unlink()
            if kind == "pipe":
                os.mkfifo(path)
            elif kind == "larger file":
                path.write_bytes(b"s3cret" * 500_000)
            else:
                path.symlink_to(tmp_path / "secret")

    hub.on_request = swap
    with pytest.raises(InvalidModelError, match=f"'{Path(name).name}' changed while"):
        publish(publisher, folder)
    assert not any(b"s3cret" in content for content in at_the_hub(hub).values())
    assert not hub.asked("PUT")
    harden("refused")


def test_hidden_files_stay_here(hub, publisher, folder):
    (folder / ".DS_Store").write_bytes(b"x")
    (folder / ".cache").mkdir()
    (folder / ".cache" / "token").write_bytes(b"hf_x")
    publish(publisher, folder)
    assert not any(name.startswith(".") for name in at_the_hub(hub))


@pytest.mark.parametrize(
    ("status", "headers", "pause"), [(503, {}, 1.0), (429, {"Retry-After": "7"}, 7.0)]
)
def test_a_busy_hub_is_asked_again_after_the_pause_that_it_wants(
    hub, publisher, folder, pauses, status, headers, pause
):
    hub.fail("^POST /api/repos/create", status=status, headers=headers, times=1)
    publish(publisher, folder)
    assert pauses == [pause]


def test_a_hub_that_stays_away_is_an_error_that_says_try_again(hub, publisher, folder):
    publish(publisher, folder)
    (folder / "config.json").write_text('{"changed": true}')
    before = at_the_hub(hub)
    hub.fail("^POST .*/commit/", status=500)
    with pytest.raises(HubUnavailableError, match="Try again later"):
        publish(publisher, folder)
    assert at_the_hub(hub) == before


@pytest.mark.parametrize("action", ["status", "reset", "truncate"])
@pytest.mark.parametrize("after", [False, True])
def test_every_request_may_fail_once_and_one_whole_repo_comes_of_it(
    hub, publisher, folder, monkeypatch, action, after
):
    """Each request of a publish fails in turn, each time on a Hub without the repo."""
    monkeypatch.setattr("time.sleep", lambda _secs: None)  # the client's own pauses
    for number in count():
        hub.repos.clear()
        hub.requests.clear()
        hub.faults.clear()
        # New content, or the weights would be stored already.
        write_model(folder, **dict.fromkeys(WEIGHTS, b"%d" % number * 700000))

        def fail_one(_request, number=number) -> None:
            if len(hub.requests) == number + 1 and not hub.faults:
                hub.fail(".", action=action, status=502, times=1, after=after)

        hub.on_request = fail_one
        publish(publisher, folder)
        if len(hub.requests) <= number:
            break
        failed = hub.requests[number]
        assert commits(hub) == [TITLE], f"{failed.method} {failed.path}"
        assert at_the_hub(hub) == contents(folder), f"{failed.method} {failed.path}"
    assert number > 10


KILLED = """
import sys
from pathlib import Path
from dynquant.model.access import Access
from dynquant.model.origin import Origin
from dynquant.hub import HubPublisher
from tests.fakes import FakeProgress
HubPublisher().publish(
    Path(sys.argv[1]), sys.argv[2], origin=Origin(name="org/Model"), title=sys.argv[3],
    access=Access(gated="manual"), progress=FakeProgress(),
)
"""


@pytest.mark.parametrize("when", ["before", "after"])
@pytest.mark.parametrize("number", [0, 2, 5, 8, 10])
def test_a_process_killed_at_any_point_leaves_nothing_half_and_the_next_one_finishes(
    hub, folder, tmp_path, number, when
):
    environment = os.environ | {
        "HF_ENDPOINT": hub.url,
        "HF_TOKEN": TOKEN,
        "HF_HOME": str(tmp_path / "home"),
        "HF_HUB_DISABLE_XET": "1",
        "PYTHONPATH": os.pathsep.join([str(Path.cwd()), *sys.path]),
    }
    command = [sys.executable, "-c", KILLED, str(folder), REPO, TITLE]
    started: SimpleQueue[subprocess.Popen[bytes]] = SimpleQueue()

    def kill(_request) -> None:
        if len(hub.requests) == number + 1:
            child = started.get()
            child.kill()
            child.wait()

    setattr(hub, "on_request" if when == "before" else "after_request", kill)
    child = subprocess.Popen(command, env=environment)
    started.put(child)
    assert child.wait(PATIENCE_SECS) == -signal.SIGKILL
    hub.on_request = hub.after_request = None
    if ("model", REPO) in hub.repos:
        assert at_the_hub(hub) in ({}, contents(folder))
    subprocess.run(command, env=environment, check=True, timeout=PATIENCE_SECS)
    assert commits(hub) == [TITLE]
    assert at_the_hub(hub) == contents(folder)
    assert hub.repos["model", REPO].gated


def test_no_error_shows_the_token(hub, publisher, folder):
    hub.fail("^POST", status=500)
    with pytest.raises(DynquantError) as caught:
        publish(publisher, folder)
    error: BaseException | None = caught.value
    while error is not None:
        assert TOKEN not in str(error)
        error = error.__cause__
