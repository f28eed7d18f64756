"""The inbox with the real client, over HTTP, on a Hub on this machine."""

from __future__ import annotations

import json
import logging
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor, wait
from dataclasses import replace
from itertools import count
from pathlib import Path
from queue import SimpleQueue

import pytest
from huggingface_hub import HfApi, constants

from dynquant.errors import (
    DestinationError,
    DynquantError,
    HubUnavailableError,
    Reason,
    RequestError,
)
from dynquant.hub.inbox import HubInbox
from dynquant.jobs.request import JobRequest, Priority
from dynquant.quant.options import RecipeOptions
from local_hub import Blob
from tests.waiting import PATIENCE_SECS

REPO = "you/inbox"
KEY = ("dataset", REPO)
TOKEN = "hf_canary_token"
NAME = "2026-07-30/101530123456-0123456789abcdef"
DONE = {"state": "published", "sentence": "", "results": [{"repo_id": "you/M-4bpw"}]}

pytestmark = pytest.mark.hub


@pytest.fixture(autouse=True)
def account(hub, monkeypatch):
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
    hub.add_user("you", token=TOKEN, orgs={"team": "write", "club": "read"})


@pytest.fixture
def inbox(hub, pauses) -> HubInbox:
    return HubInbox(REPO, endpoint=hub.url, token=TOKEN, sleep=pauses.append)


def make_request(**overrides) -> JobRequest:
    request = JobRequest(
        model="org/Model",
        targets_bpw=(3.5, 4.5),
        destination="you",
        requester="ann",
        options=RecipeOptions(seed=7, effort="max", distil=True),
        notify_url="https://example.org/done",
    )
    return replace(request, **overrides)


def name_of(number: int, *, date: str = "2026-07-30") -> str:
    return f"{date}/{number:012d}-{number:016x}"


def planted(hub, files: dict[str, bytes]) -> None:
    """A private inbox with `files` among its requests."""
    hub.add(
        REPO,
        {f"requests/{name}.json": content for name, content in files.items()},
        kind="dataset",
        private=True,
    )


def text_of(**overrides) -> bytes:
    raw = {"model": "org/Model", "targets_bpw": [4.5], "requester": "ann"}
    return json.dumps(raw | overrides).encode()


def files(hub, repo: str = REPO) -> dict[str, bytes]:
    blobs = hub.repos["dataset", repo].at("main").files
    return {name: blob.read() for name, blob in blobs.items() if name != ".gitattributes"}


def titles(hub, repo: str = REPO) -> list[str]:
    """Titles of the commits, the latest first, without the one that the Hub makes."""
    found = hub.repos["dataset", repo]
    history = [commit.title for commit in found.history(found.at("main"))]
    return [title for title in history if title != "initial commit"]


def test_a_request_is_found_and_its_result_takes_its_place(hub, inbox):
    request = make_request(revision="main", priority=Priority.WATCHER, private=True)
    name = inbox.send(request)
    runner = HubInbox(REPO, endpoint=hub.url, token=TOKEN)
    (entry,) = runner.pending()
    assert (entry.name, entry.request, entry.sentence) == (name, request, "")
    assert inbox.result(name) is None
    runner.finish(name, DONE)
    assert inbox.result(name) == DONE
    assert runner.pending() == ()
    assert list(files(hub)) == [f"results/{name}.json"]
    assert titles(hub) == [f"Result of {name}", f"Request {name}"]


def test_the_same_request_sent_twice_is_two_entries(inbox):
    names = [inbox.send(make_request()) for _ in range(2)]
    assert [entry.name for entry in inbox.pending()] == names
    assert names[0] != names[1]


def test_the_first_result_stays_and_finishing_again_commits_nothing(hub, inbox):
    name = inbox.send(make_request())
    inbox.finish(name, DONE)
    before = titles(hub)
    inbox.finish(name, DONE)
    inbox.finish(name, {"state": "failed"})
    assert inbox.result(name) == DONE
    assert titles(hub) == before


def test_a_request_that_came_back_is_taken_away_and_its_result_stays(hub, inbox):
    name = inbox.send(make_request())
    inbox.finish(name, DONE)
    hub.repos[KEY].commit({f"requests/{name}.json": b"{}"})
    inbox.finish(name, {"state": "failed"})
    assert inbox.pending() == ()
    assert inbox.result(name) == DONE


def test_a_request_that_somebody_deleted_gets_its_result_all_the_same(hub, inbox):
    name = inbox.send(make_request())
    hub.repos[KEY].commit({f"requests/{name}.json": None})
    inbox.finish(name, DONE)
    assert inbox.result(name) == DONE


def test_what_has_a_result_is_gone_when_it_is_looked_at_next(inbox):
    first, second = inbox.send(make_request()), inbox.send(make_request())
    inbox.pending()
    assert inbox.gone([first, second]) == frozenset()
    inbox.finish(first, DONE)
    inbox.pending(skip=[first, second])
    assert inbox.gone([first, second]) == {first}


def test_a_missing_dataset_is_made_private(hub, inbox):
    inbox.send(make_request())
    assert hub.repos[KEY].private


def test_a_renamed_dataset_goes_on_under_its_old_name(hub, inbox):
    first = inbox.send(make_request())
    HfApi(endpoint=hub.url, token=TOKEN).move_repo(REPO, "you/renamed", repo_type="dataset")
    for number in range(60):  # more than a page
        hub.repos["dataset", "you/renamed"].commit({f"requests/{name_of(number)}.json": text_of()})
    again = HubInbox(REPO, endpoint=hub.url, token=TOKEN)
    assert len(again.pending()) == 61
    again.finish(first, DONE)
    assert HubInbox(REPO, endpoint=hub.url, token=TOKEN).result(first) == DONE


def test_two_spaces_that_make_the_dataset_at_once_both_send(hub):
    spaces = [HubInbox(REPO, endpoint=hub.url, token=TOKEN) for _ in range(2)]
    with ThreadPoolExecutor(2) as pool:
        names = list(pool.map(lambda space: space.send(make_request()), spaces))
    assert set(files(hub)) == {f"requests/{name}.json" for name in names}


def test_reading_makes_no_dataset_and_says_that_there_is_none(hub, inbox):
    for action in (inbox.pending, lambda: inbox.finish(NAME, DONE), lambda: inbox.result(NAME)):
        with pytest.raises(DestinationError, match="no dataset 'you/inbox' on the Hub"):
            action()
    assert hub.repos == {}


def test_a_public_dataset_is_refused_since_requests_name_people(hub, inbox):
    hub.add(REPO, {"README.md": b"# Hi"}, kind="dataset")
    for action in (lambda: inbox.send(make_request()), inbox.pending):
        with pytest.raises(RequestError, match="is public, and requests name people"):
            action()
    with pytest.raises(RequestError, match="is public"):
        inbox.finish(NAME, DONE)
    assert titles(hub) == ["Upload"]


def test_a_dataset_that_turns_public_is_refused_from_then_on(hub, inbox):
    inbox.send(make_request())
    hub.repos[KEY].private = False
    with pytest.raises(DestinationError, match="is public"):
        inbox.send(make_request())
    assert len(files(hub)) == 1


def test_who_may_only_read_the_dataset_can_put_nothing_there(hub):
    hub.add("club/inbox", {"README.md": b""}, kind="dataset", private=True)
    inbox = HubInbox("club/inbox", endpoint=hub.url, token=TOKEN)
    assert inbox.pending() == ()
    with pytest.raises(DestinationError, match="may not write to 'club/inbox'") as caught:
        inbox.send(make_request())
    assert caught.value.reason == Reason.NO_ACCESS
    with pytest.raises(DestinationError, match="may not write to"):
        inbox.finish(NAME, DONE)


def test_strangers_see_nothing(hub, inbox):
    name = inbox.send(make_request())
    hub.add_user("mallory", token="hf_other")
    for token in ("hf_other", None):
        stranger = HubInbox(REPO, endpoint=hub.url, token=token)
        for action in (stranger.pending, lambda inbox=stranger: inbox.result(name)):
            with pytest.raises(DestinationError, match="or it is private"):
                action()
        with pytest.raises(DestinationError):
            stranger.send(make_request())


def test_a_token_that_expires_is_named_and_a_new_one_goes_on(hub, inbox):
    name = inbox.send(make_request())
    hub.expired_tokens.add(TOKEN)
    actions = (
        lambda: inbox.send(make_request()),
        inbox.pending,
        lambda: inbox.finish(name, DONE),
        lambda: inbox.result(name),
    )
    for action in actions:
        with pytest.raises(DestinationError, match="may have expired") as caught:
            action()
        assert caught.value.reason == Reason.TOKEN_REFUSED
    hub.add_user("you", token="hf_fresh")
    fresh = HubInbox(REPO, endpoint=hub.url, token="hf_fresh")
    assert [entry.name for entry in fresh.pending()] == [name]


@pytest.mark.parametrize(
    ("overrides", "says"),
    [
        ({"targets_bpw": ()}, "1 to 32 sizes"),
        ({"model": ""}, "'model' cannot be"),
        ({"options": {"time_budget_mins": float("nan")}}, "A time budget is a number"),
        ({"options": {"text": 1}}, "no option 'text'"),
    ],
)
def test_what_no_runner_could_read_is_not_sent(hub, inbox, overrides, says):
    with pytest.raises(RequestError, match=says):
        inbox.send(make_request(**overrides))
    assert hub.requests == []


def test_a_result_that_is_too_large_is_refused(hub, inbox):
    name = inbox.send(make_request())
    with pytest.raises(RequestError, match="result has 70"):
        inbox.finish(name, {"sentence": "x" * 70_000})
    assert list(files(hub)) == [f"requests/{name}.json"]


@pytest.mark.parametrize(
    "name", ["", "x", "../secrets", NAME + ".json", NAME + "\n", NAME.upper(), f"2026/{NAME}"]
)
def test_a_name_that_no_request_has_asks_the_hub_nothing(hub, inbox, name):
    for action in (inbox.result, lambda name: inbox.finish(name, DONE)):
        with pytest.raises(RequestError, match="No request has this name"):
            action(name)
    assert hub.requests == []


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"", "not valid JSON"),
        (b"{", "not valid JSON"),
        (b"\xff\xfe{}", "not valid JSON"),
        (text_of().decode().encode("utf-16"), "not valid JSON"),
        (b"[" * 60_000, "not valid JSON"),
        (b'{"model": ' * 6_000, "not valid JSON"),
        (b"9" * 60_000, "not valid JSON"),
        (text_of().replace(b"4.5", b"9" * 4_000), "1 to 32 sizes"),
        (b"null", "a JSON object with a model"),
        (b"[]", "a JSON object with a model"),
        (text_of(model=7), "'model' cannot be"),
        (text_of(model="a\nb"), "must be printable"),
        (text_of(targets_bpw="4.5"), "1 to 32 sizes"),
        (text_of().replace(b"4.5", b"NaN"), "1 to 32 sizes"),
        (text_of(notify_url="file:///etc/passwd"), "has to begin with https"),
        (text_of(command="rm"), "no field 'command'"),
        (text_of(**{"\ud800\x1b[2J\n": 1}), r"no field '\?\?\[2J\?'"),
        (text_of(model="x" * 64_000), "larger than 64000 bytes, so it was not read"),
        (text_of(model="x\0"), "must be printable"),
    ],
)
@pytest.mark.harden("web")
def test_a_hostile_file_is_an_entry_that_can_be_finished(hub, inbox, content, says):
    planted(hub, {NAME: content, name_of(1, date="2026-07-31"): text_of()})
    hostile, good = inbox.pending()
    assert (hostile.name, hostile.request) == (NAME, None)
    assert re.search(says, hostile.sentence)
    assert hostile.sentence.isprintable()
    assert good.request is not None
    inbox.finish(NAME, {"sentence": hostile.sentence})
    assert inbox.pending() == (good,)
    assert inbox.result(NAME) == {"sentence": hostile.sentence}


@pytest.mark.harden("inbox")
def test_a_name_that_is_no_time_is_no_request_and_holds_up_no_other(hub, inbox):
    no_times = ["0000-00-00/000000000000", "2026-02-30/101530123456", "2026-07-30/256199000000"]
    planted(hub, {f"{each}-0123456789abcdef": text_of() for each in no_times} | {NAME: text_of()})
    assert [entry.name for entry in inbox.pending()] == [NAME]


def test_a_file_that_is_too_large_is_not_downloaded(hub, inbox):
    planted(hub, {NAME: text_of(model="x" * 64_000)})
    inbox.pending()
    assert hub.asked("/resolve/") == []


def test_what_is_in_lfs_is_read_without_showing_the_token_to_the_storage(hub, inbox):
    planted(hub, {})
    blob = Blob.of(text_of(), lfs=True)
    hub.repos[KEY].commit({f"requests/{NAME}.json": blob})
    (entry,) = inbox.pending()
    assert entry.request is not None
    (download,) = hub.asked("/cdn/")
    assert download.token is None


def test_files_of_other_names_are_left_alone_and_mentioned_once(hub, inbox, caplog):
    strange = [
        f"requests/{NAME}.txt",
        f"requests/{NAME}.json/x.json",
        f"requests/{NAME.upper()}.json",
        f"requests/deeper/{name_of(2)}.json",
        f"requests/{name_of(3)}\n.json",
        "requests/2026-07-30/\u0661\u0662.json",
        "requests/2026-07-30/\x1b[2J.json",
        "requests/README.md",
        "README.md",
        f"results/{name_of(4)}.json",
    ]
    hub.add(REPO, dict.fromkeys(strange, text_of()), kind="dataset", private=True)
    name = inbox.send(make_request())
    with caplog.at_level(logging.WARNING, logger="dynquant"):
        assert [entry.name for entry in inbox.pending()] == [name]
        inbox.send(make_request())
        assert len(inbox.pending()) == 2
    (warning,) = caplog.messages
    assert warning.startswith("8 files under requests/ of 'you/inbox' do not have names")
    assert set(strange) <= set(files(hub))


@pytest.mark.parametrize(
    "content", [b"", b"[1]", b"\xff", b"[" * 60_000, b'{"a": "' + b"x" * 70_000]
)
def test_a_damaged_result_is_named(hub, inbox, content):
    hub.add(REPO, {f"results/{NAME}.json": content}, kind="dataset", private=True)
    with pytest.raises(RequestError, match=f"result of '{NAME}' in 'you/inbox' is damaged"):
        inbox.result(NAME)


def test_the_oldest_come_first(hub, inbox):
    names = [
        name_of(5, date="2025-12-31"),
        name_of(1, date="2026-01-01"),
        name_of(30, date="2026-01-01"),
        name_of(2, date="2026-01-10"),
    ]
    planted(hub, dict.fromkeys(reversed(names), text_of()))
    assert [entry.name for entry in inbox.pending()] == names


def test_a_file_that_changed_under_its_name_is_read_again(hub, inbox):
    planted(hub, {NAME: text_of()})
    inbox.pending()
    hub.repos[KEY].commit({f"requests/{NAME}.json": text_of(model="org/Other")})
    (entry,) = inbox.pending()
    assert entry.request is not None
    assert entry.request.model == "org/Other"


def test_files_are_read_as_they_were_when_they_were_listed(hub, inbox):
    planted(hub, {NAME: text_of()})

    def meddle(request) -> None:
        if "/tree/" in request.path:
            hub.repos[KEY].commit({f"requests/{NAME}.json": None}, title="Finished")

    hub.after_request = meddle
    (entry,) = inbox.pending()
    assert entry.request is not None
    hub.after_request = None
    assert inbox.pending() == ()


def test_a_thousand_entries_take_few_calls_and_few_at_a_time(hub, inbox):
    names = [name_of(number, date=f"2026-07-{number % 10 + 10}") for number in range(1000)]
    planted(hub, dict.fromkeys(names, text_of()))
    oldest = sorted(names)

    def calls(action) -> int:
        hub.requests.clear()
        action()
        return len(hub.requests)

    seen = []
    first = calls(lambda: seen.extend(inbox.pending()))
    idle = calls(inbox.pending)
    assert hub.requests[0].num_bytes < 1000
    known = {entry.name for entry in seen}
    behind = calls(lambda: seen.extend(inbox.pending(skip=known)))
    finishing = calls(lambda: inbox.finish(oldest[0], DONE))
    sending = calls(lambda: inbox.send(make_request()))
    assert [entry.name for entry in seen] == oldest[:400]
    pages = 21  # of 50 here, and of 1000 on the real Hub
    assert (first, idle, behind) == (1 + pages + 200, 1, 1 + 200)
    assert (finishing, sending) == (4, 3)
    assert len(inbox._entries) == 200


def test_two_spaces_and_two_runners_at_once_lose_nothing_and_repeat_nothing(hub):
    num_each = 10

    def connect() -> HubInbox:
        # The real pauses, shortened.
        return HubInbox(
            REPO, endpoint=hub.url, token=TOKEN, sleep=lambda secs: time.sleep(secs / 25)
        )

    sent: dict[str, JobRequest] = {}
    all_sent = threading.Event()

    def space(number: int) -> None:
        inbox = connect()
        for each in range(num_each):
            request = make_request(model=f"org/Model-{number}-{each}")
            sent[inbox.send(request)] = request

    def runner(number: int) -> dict[str, JobRequest | None]:
        inbox, taken, is_last = connect(), {}, False
        while not is_last:
            is_last = all_sent.is_set()
            for entry in inbox.pending():
                taken[entry.name] = entry.request
                inbox.finish(entry.name, {"by": number})
        return taken

    connect().send(make_request(model="org/First"))
    with ThreadPoolExecutor(4) as pool:
        spaces = [pool.submit(space, number) for number in range(2)]
        runners = [pool.submit(runner, number) for number in range(2)]
        wait(spaces)
        all_sent.set()
        for each in spaces:
            each.result()
        found = runners[0].result() | runners[1].result()
    inbox = connect()
    assert inbox.pending() == ()
    assert all(inbox.result(name) for name in found)
    assert len(found) == 2 * num_each + 1
    assert {name: found[name] for name in sent} == sent
    wanted = [f"{what} {name}" for name in found for what in ("Request", "Result of")]
    assert Counter(titles(hub)) == Counter(wanted)


@pytest.mark.parametrize("status", [409, 412])
def test_who_is_told_that_another_commit_came_in_between_tries_again(hub, inbox, pauses, status):
    hub.fail("^POST .*/commit/", status=status, times=2)
    name = inbox.send(make_request())
    hub.fail("^POST .*/commit/", status=status, times=2)
    inbox.finish(name, DONE)
    assert len(pauses) == 4
    assert inbox.result(name) == DONE
    assert titles(hub) == [f"Result of {name}", f"Request {name}"]


@pytest.mark.parametrize("is_deleted_first", [True, False])
def test_a_result_of_another_runner_in_between_stays(hub, inbox, is_deleted_first):
    name = inbox.send(make_request())
    if is_deleted_first:
        hub.repos[KEY].commit({f"requests/{name}.json": None})
    changes: dict[str, bytes | None] = {f"results/{name}.json": b'{"by": "other"}'}
    changes |= {} if is_deleted_first else {f"requests/{name}.json": None}

    def finish_meanwhile(request) -> None:
        if "/commit/" in request.path:
            hub.on_request = None
            hub.repos[KEY].commit(changes, title="Other")

    hub.on_request = finish_meanwhile
    inbox.finish(name, {"by": "us"})
    assert inbox.result(name) == {"by": "other"}
    assert titles(hub)[0] == "Other"


def test_a_dataset_that_never_stands_still_is_given_up_for_now(hub, inbox, pauses):
    name = inbox.send(make_request())
    hub.fail("^POST .*/commit/", status=412)
    for action in (lambda: inbox.send(make_request()), lambda: inbox.finish(name, DONE)):
        pauses.clear()
        with pytest.raises(HubUnavailableError, match="changes all the time"):
            action()
        assert 10 < sum(pauses) < 40
    assert list(files(hub)) == [f"requests/{name}.json"]


def test_the_hourly_limit_of_commits_is_an_error_that_says_when(hub, inbox):
    name = inbox.send(make_request())
    hub.fail("^POST .*/commit/", status=429, headers={"Retry-After": "3000"})
    with pytest.raises(HubUnavailableError, match="in 3000 seconds"):
        inbox.finish(name, DONE)


def test_a_request_whose_answer_was_lost_and_that_is_finished_already_does_not_come_back(
    hub, inbox
):
    other = HubInbox(REPO, endpoint=hub.url, token=TOKEN)

    def finish_meanwhile(_secs: float) -> None:
        (entry,) = other.pending()
        other.finish(entry.name, DONE)

    sender = HubInbox(REPO, endpoint=hub.url, token=TOKEN, sleep=finish_meanwhile)
    hub.fail("^POST .*/commit/", action="reset", times=1, after=True)
    name = sender.send(make_request())
    assert inbox.pending() == ()
    assert inbox.result(name) == DONE
    assert titles(hub) == [f"Result of {name}", f"Request {name}"]


@pytest.mark.parametrize("action", ["status", "reset", "truncate"])
@pytest.mark.parametrize("after", [False, True])
def test_every_request_may_fail_once_and_nothing_is_lost_or_made_twice(
    hub, monkeypatch, action, after
):
    """Each request of one exchange fails in turn, each time on a Hub without the dataset."""
    monkeypatch.setattr("time.sleep", lambda _secs: None)  # the client's own pauses
    for number in count():
        hub.repos.clear()
        hub.requests.clear()
        hub.faults.clear()

        def fail_one(_request, number=number) -> None:
            if len(hub.requests) == number + 1 and not hub.faults:
                hub.fail(".", action=action, status=502, times=1, after=after)

        hub.on_request = fail_one
        inbox = HubInbox(REPO, endpoint=hub.url, token=TOKEN, sleep=lambda _secs: None)
        name = inbox.send(make_request())
        assert [entry.request for entry in inbox.pending()] == [make_request()]
        inbox.finish(name, DONE)
        assert inbox.result(name) == DONE
        if len(hub.requests) <= number:
            break
        failed = hub.requests[number]
        assert titles(hub) == [f"Result of {name}", f"Request {name}"], failed.path
        assert list(files(hub)) == [f"results/{name}.json"], failed.path
        assert hub.repos[KEY].private
    assert number > 10


FINISHING = """
import sys
from dynquant.hub.inbox import HubInbox
HubInbox(sys.argv[1]).finish(sys.argv[2], {"state": "published"})
"""


@pytest.mark.parametrize("when", ["before", "after"])
@pytest.mark.parametrize("number", range(4))
def test_a_runner_killed_while_it_finishes_leaves_request_or_result_and_the_next_one_finishes(
    hub, inbox, tmp_path, number, when
):
    name = inbox.send(make_request())
    hub.requests.clear()
    environment = os.environ | {
        "HF_ENDPOINT": hub.url,
        "HF_TOKEN": TOKEN,
        "HF_HOME": str(tmp_path / "home"),
        "HF_HUB_DISABLE_XET": "1",
        "PYTHONPATH": os.pathsep.join([str(Path.cwd()), *sys.path]),
    }
    command = [sys.executable, "-c", FINISHING, REPO, name]
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
    assert len(files(hub)) == 1
    subprocess.run(command, env=environment, check=True, timeout=PATIENCE_SECS)
    assert inbox.pending() == ()
    assert inbox.result(name) == {"state": "published"}
    assert titles(hub) == [f"Result of {name}", f"Request {name}"]


def test_no_error_shows_the_token(hub, inbox):
    inbox.send(make_request())
    hub.fail(".", status=500)
    actions = (
        lambda: inbox.send(make_request()),
        inbox.pending,
        lambda: inbox.finish(NAME, DONE),
        lambda: inbox.result(NAME),
    )
    for action in actions:
        with pytest.raises(DynquantError) as caught:
            action()
        error: BaseException | None = caught.value
        while error is not None:
            assert TOKEN not in str(error)
            error = error.__cause__
