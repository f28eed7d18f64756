from __future__ import annotations

from collections import Counter
from datetime import timedelta
from itertools import count
from typing import Any

import pytest

from dynquant.errors import RequestError, RetryLaterError, UnsupportedModelError
from dynquant.hub.new_models import HubNewModels
from dynquant.jobs.job import JobState
from dynquant.jobs.request import JobRequest, Priority
from dynquant.quant.recipe import RECIPE_VERSION
from dynquant.watch.skips import Skip
from dynquant.watch.targets import MemoryFootprint
from dynquant.watch.watcher import Watcher
from tests.watch.factories import NOW, make_candidate, make_config, make_rule
from tests.watch.scene import add_dynquant, add_model, edit_card, model_files, new_weights
from tests.watch.test_targets import make_footprint

pytestmark = pytest.mark.hub

DAY = 24 * 60
LISTS = "GET /api/models$"


class PickyBoard:
    """The board, but it refuses some models, or is unavailable."""

    def __init__(self, board: Any, *, refuses: str = "", is_full: bool = False) -> None:
        self._board = board
        self._refuses = refuses
        self.is_full = is_full

    def submit(self, request, **options):
        if self.is_full:
            raise RetryLaterError("The queue is full.")
        if request.model == self._refuses:
            raise RequestError("No.")
        return self._board.submit(request, **options)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._board, name)


def test_a_new_model_is_queued_once_however_often_it_is_listed(scene):
    scene.config = make_config(make_rule("big", bpw=(6.0, 3.5), private=True))
    add_model(scene.hub, "org/M", scene.at(-5))
    report = scene.sweep(0)
    assert (report.num_seen, report.num_matched, report.queued) == (1, 1, ("org/M",))
    assert scene.decisions["org/M"].rule == "big"
    for minutes in (1, 2, 90):
        assert scene.sweep(minutes).queued == ()
    (job,) = scene.board.list()
    request = job.request
    assert (request.model, request.targets_bpw) == ("org/M", (3.5, 6.0))
    assert (request.requester, request.priority) == ("the watcher", Priority.WATCHER)
    assert (request.destination, request.private) == ("you", True)
    assert request.revision == scene.hub.repos["model", "org/M"].branches["main"]


def test_the_first_sweep_goes_back_some_hours_and_never_to_the_beginning(scene):
    scene.config = make_config(look_back_hours=2)
    for hours in range(10):
        add_model(scene.hub, f"org/m{hours}", scene.at(-60 * hours))
    report = scene.sweep(0)
    assert sorted(report.queued) == ["org/m0", "org/m1", "org/m2"]
    assert report.num_seen == 3


def test_only_new_weights_make_a_model_new_again(scene):
    add_model(scene.hub, "org/M", scene.at(-5))
    scene.sweep(0)
    first = scene.jobs()["org/M"]
    edit_card(scene.hub, "org/M", scene.at(10))
    assert scene.sweep(15).queued == ()
    assert scene.skip("org/M") == Skip.SAME_WEIGHTS
    new_weights(scene.hub, "org/M", scene.at(20), seed="better")
    assert scene.sweep(25).queued == ("org/M",)
    second = scene.jobs()["org/M"]
    assert second.id != first.id
    assert second.request.destination == first.request.destination
    assert second.request.targets_bpw == first.request.targets_bpw
    assert scene.board.get(first.id).state is JobState.CANCELLED  # nobody had begun with it
    edit_card(scene.hub, "org/M", scene.at(30))
    assert scene.sweep(35).queued == ()


@pytest.mark.parametrize("person", ["ann", "watcher"])
def test_a_job_that_a_person_asked_for_is_not_withdrawn(scene, person):
    add_model(scene.hub, "org/M", scene.at(-5))
    sha = scene.hub.repos["model", "org/M"].branches["main"]
    request = JobRequest(model="org/M", targets_bpw=(4.5,), destination="you", requester=person)
    asked = scene.board.submit(
        request, revision_sha=sha, source_is_private=False, recipe_version=RECIPE_VERSION
    )
    scene.sweep(1)
    assert len(scene.board.list()) == 1
    new_weights(scene.hub, "org/M", scene.at(20), seed="better")
    scene.sweep(25)
    assert scene.board.get(asked.id).state is JobState.WAITING


def test_an_old_model_is_news_if_its_weights_are(scene):
    for name in ("org/words", "org/weights"):
        add_model(scene.hub, name, scene.at(-30 * DAY))
    edit_card(scene.hub, "org/words", scene.at(-5))
    new_weights(scene.hub, "org/weights", scene.at(-5), seed="at last")
    assert scene.sweep(0).queued == ("org/weights",)
    assert scene.skip("org/words") == Skip.OLD_WEIGHTS
    edit_card(scene.hub, "org/words", scene.at(5))
    scene.sweep(10)
    assert scene.skip("org/words") == Skip.OLD_WEIGHTS


def test_every_reason_comes_up_with_its_model(scene):
    hub = scene.hub
    rule = make_rule(
        "main",
        authors=("org", "busy", "huge"),
        licenses_refused=("mit",),
        min_parameters=10**9,
        max_parameters=10**11,
        min_age_hours=0.1,
        max_age_hours=100 * 24,
        max_per_sweep=1,
        priority=5,
    )
    likes = make_rule("likes", authors=("liked",), min_likes=9)
    day = make_rule("day", authors=("day",), gb_per_day=5)
    fit = make_rule("fit", authors=("fit",), bpw=(), memory_bytes=(8 << 30,))
    scene.config = make_config(rule, likes, day, fit, opt_out=("shy",), look_back_hours=24)
    scene.options = {"supports": lambda model_type: model_type != "alien"}
    scene.board = PickyBoard(scene.board, refuses="day/refused")
    recent = scene.at(-30)

    def add(name: str, at=recent, files=None, **more: Any) -> None:
        add_model(hub, name, at, files, **more)

    # Long published, and looked at before.
    add("org/unchanged")
    add("org/same-weights", scene.at(-40))
    scene.sweep(-20)  # queues one of them, the older
    scene.sweep(-19)
    assert set(scene.jobs()) == {"org/unchanged", "org/same-weights"}
    edit_card(hub, "org/same-weights", scene.at(-18))
    add("org/old-weights", scene.at(-3 * DAY))
    edit_card(hub, "org/old-weights", recent)
    add("org/too-old", scene.at(-200 * DAY))
    new_weights(hub, "org/too-old", recent, seed="new")

    add("org/disabled", disabled=True)
    add("shy/opted-out")
    add("you/own", files=model_files(tags=["dynquant", "mlx"]))
    add("org/quant-4bit")
    add("org/adapter", files=model_files(tags=["lora"]))
    add("org/empty", files={"README.md": b"# Soon"})
    shard = model_files()
    shard["model-00001-of-00002.safetensors"] = shard.pop("model.safetensors")
    add("org/incomplete", files=shard)
    unsized = model_files() | {"model.safetensors": b"\xff" * 8}
    add("org/unsized", files=unsized)
    add("org/toy", files=model_files(2 * 10**6))
    add("org/no-derivatives", files=model_files(license="cc-by-nd-4.0"))
    add("else/not-covered")
    add("org/gated", gated="auto")
    add("org/small", files=model_files(5 * 10**8))
    add("org/large", files=model_files(2 * 10**11))
    add("org/license-refused", files=model_files(license="mit"))
    add("org/license-unknown", files=model_files(license=None))
    add("org/young", scene.at(-1))
    add("liked/unknown")
    add("org/unsupported", files=model_files(config={"model_type": "alien"}))
    add("fit/no-room", files=model_files(70 * 10**9))
    add("org/published")
    sha = hub.repos["model", "org/published"].branches["main"]
    add_dynquant(hub, "you/published-MLX-4.5bpw", "org/published", sha=sha)
    add("org/gone")
    hub.on_request = lambda request: (
        hub.repos.pop(("model", "org/gone"), None)
        if request.path == "/api/models/org/gone"
        else None
    )
    add("day/refused")
    add("day/second")
    add("org/queued")
    add("org/third", scene.at(-29))

    report = scene.sweep(0)
    assert {name: decision.skip for name, decision in scene.decisions.items()} == {
        "org/unchanged": Skip.UNCHANGED,
        "org/same-weights": Skip.SAME_WEIGHTS,
        "org/old-weights": Skip.OLD_WEIGHTS,
        "org/too-old": Skip.TOO_OLD,
        "org/disabled": Skip.DISABLED,
        "shy/opted-out": Skip.OPTED_OUT,
        "you/own": Skip.OWN_RESULT,
        "org/quant-4bit": Skip.QUANT,
        "org/adapter": Skip.ADAPTER,
        "org/empty": Skip.NO_SAFETENSORS,
        "org/incomplete": Skip.INCOMPLETE,
        "org/unsized": Skip.UNKNOWN_SIZE,
        "org/toy": Skip.TOY,
        "org/no-derivatives": Skip.NO_DERIVATIVES,
        "else/not-covered": Skip.NOT_COVERED,
        "org/gated": Skip.GATED,
        "org/small": Skip.TOO_SMALL,
        "org/large": Skip.TOO_LARGE,
        "org/license-refused": Skip.LICENSE_REFUSED,
        "org/license-unknown": Skip.LICENSE_UNKNOWN,
        "org/young": Skip.TOO_YOUNG,
        "liked/unknown": Skip.TOO_UNKNOWN,
        "org/unsupported": Skip.UNSUPPORTED,
        "fit/no-room": Skip.DOES_NOT_FIT,
        "org/published": Skip.ALREADY_PUBLISHED,
        "org/gone": Skip.GONE,
        "day/refused": Skip.REFUSED,
        "day/second": Skip.DAY_LIMIT,
        "org/queued": None,
        "org/third": Skip.SWEEP_LIMIT,
    }
    assert report.queued == ("org/queued",)
    assert all(count == 1 for count in report.skipped.values())
    assert report.num_seen == len(scene.decisions) == sum(report.skipped.values()) + 1
    # Only readers are shown private models; the others are not about the model.
    assert set(Skip) - set(report.skipped) == {Skip.PRIVATE, Skip.CALL_LIMIT, Skip.NO_ANSWER}


def test_who_has_to_wait_in_one_sweep_is_next_and_the_lower_priority_goes_first(scene):
    scene.config = make_config(
        make_rule("later", authors=("slow",), priority=9, max_per_sweep=2),
        make_rule("first", authors=("quick",), priority=1, max_per_sweep=2),
    )
    for number in range(3):
        add_model(scene.hub, f"slow/m{number}", scene.at(-30 + number))
        add_model(scene.hub, f"quick/m{number}", scene.at(-10 + number))
    assert scene.sweep(0).queued == ("quick/m0", "quick/m1", "slow/m0", "slow/m1")
    assert scene.skip("quick/m2") == Skip.SWEEP_LIMIT
    assert scene.sweep(1).queued == ("quick/m2", "slow/m2")
    assert scene.sweep(2).queued == ()


@pytest.mark.parametrize("limit", [{"gb_per_day": 10}, {"hours_per_day": 2}])
def test_what_is_over_the_limit_of_a_day_waits_and_what_never_fits_is_refused(scene, limit):
    scene.config = make_config(make_rule(**limit), hours_per_billion=0.1)
    for number in range(3):
        add_model(scene.hub, f"org/m{number}", scene.at(-30 + number))
    add_model(scene.hub, "org/huge", scene.at(-1), model_files(30 * 10**9))
    assert scene.sweep(0).queued == ("org/m0", "org/m1")  # 4.5 GB and 0.8 h each
    assert (scene.skip("org/m2"), scene.skip("org/huge")) == (Skip.DAY_LIMIT, Skip.TOO_LARGE)
    assert scene.sweep(61).queued == ()
    assert scene.skip("org/m2") == Skip.DAY_LIMIT
    scene.config = make_config(make_rule())  # the operator has lifted the limit
    assert scene.sweep(600).queued == ("org/m2",)


def test_a_model_that_grows_popular_is_found_and_ever_less_often_looked_at(scene):
    scene.config = make_config(make_rule(min_likes=10))
    add_model(scene.hub, "org/M", scene.at(-1))
    looks = []
    for hours in range(0, 24 * 40, 6):
        add_model(scene.hub, f"you/m{hours}-GGUF", scene.at(60 * hours - 1))  # the Hub goes on
        before = len(scene.hub.asked("GET /api/models/org/M"))
        scene.sweep(60 * hours)
        if len(scene.hub.asked("GET /api/models/org/M")) > before:
            looks.append(hours)
        scene.hub.requests.clear()
    assert 6 <= len(looks) <= 20
    assert looks[-1] < 24 * 32

    add_model(scene.hub, "org/N", scene.at(60 * 24 * 60))
    scene.sweep(60 * 24 * 60 + 1)
    assert scene.skip("org/N") == Skip.TOO_UNKNOWN
    scene.hub.repos["model", "org/N"].likes = 10
    assert scene.sweep(60 * 24 * 60 + 70).queued == ("org/N",)


def test_clocks_that_disagree_lose_nothing(scene):
    # Our clock is three hours ahead, more than the first sweep goes back.
    scene.config = make_config(look_back_hours=2)
    add_model(scene.hub, "org/a", scene.at(-10))
    assert scene.sweep(180).queued == ("org/a",)
    add_model(scene.hub, "org/b", scene.at(20))
    assert scene.sweep(210).queued == ("org/b",)
    # Our clock is three hours behind.
    add_model(scene.hub, "org/c", scene.at(50))
    assert scene.sweep(50 - 180).queued == ("org/c",)
    add_model(scene.hub, "org/d", scene.at(80))
    assert scene.sweep(80 - 180).queued == ("org/d",)


def test_a_date_in_the_future_does_not_hide_what_comes_before_it(scene):
    add_model(scene.hub, "org/future", scene.at(60 * DAY))
    assert scene.sweep(0).queued == ("org/future",)
    add_model(scene.hub, "org/b", scene.at(200))
    assert scene.sweep(210).queued == ("org/b",)


def test_what_is_listed_late_is_found_within_an_hour(scene):
    add_model(scene.hub, "org/a", scene.at(0))
    scene.sweep(1)
    add_model(scene.hub, "org/late", scene.at(-55))
    assert scene.sweep(5).queued == ("org/late",)


def test_a_hub_that_fails_midway_costs_nothing_but_time(scene):
    for number in range(6):
        add_model(scene.hub, f"org/m{number}", scene.at(-30 + number))
    scene.hub.fail("GET /api/models/org/m[0-3]", status=503)
    report = scene.sweep(0)
    assert report.queued == ("org/m4", "org/m5")
    assert report.skipped == {
        Skip.NO_ANSWER: 2
    }  # after the third failure the Hub counts as unavailable
    assert "status 503" in report.sentence
    assert scene.state.cursor() is None
    (kept,) = scene.state.reports(limit=9)
    assert (kept.queued, kept.sentence) == (report.queued, report.sentence)
    scene.hub.faults.clear()
    assert scene.sweep(15).queued == ("org/m0", "org/m1", "org/m2", "org/m3")
    assert scene.state.cursor() is not None
    assert scene.state.due(scene.at(DAY), limit=9) == ()


def test_one_model_about_which_the_hub_never_answers_holds_up_no_other(scene):
    for number in range(4):
        add_model(scene.hub, f"org/m{number}", scene.at(-30 + number))
    scene.hub.fail("GET /api/models/org/m2", status=500)
    assert scene.sweep(0).queued == ("org/m0", "org/m1", "org/m3")
    assert scene.skip("org/m2") == Skip.NO_ANSWER
    assert scene.state.cursor() is not None
    scene.sweep(100)
    assert scene.skip("org/m2") == Skip.NO_ANSWER
    scene.hub.faults.clear()
    assert scene.sweep(300).queued == ("org/m2",)


def test_what_was_queued_and_is_no_longer_popular_is_left_in_peace(scene):
    scene.config = make_config(make_rule(min_likes=5))
    add_model(scene.hub, "org/M", scene.at(-5), likes=5)
    assert scene.sweep(0).queued == ("org/M",)
    scene.hub.repos["model", "org/M"].likes = 4
    scene.sweep(5)
    scene.hub.repos["model", "org/M"].likes = 5
    scene.sweep(90)
    assert scene.skip("org/M") == Skip.UNCHANGED
    assert scene.state.due(scene.at(99 * DAY), limit=9) == ()


class EndlessHub:
    """A Hub on which quants appear faster than the sweep reads."""

    num_calls = 0

    def listed(self, order):
        for number in count():
            at = NOW - timedelta(milliseconds=number)
            yield make_candidate(f"org/m{number}-GGUF", created_at=at, last_modified=at, files=None)


def test_a_sweep_has_an_end_whatever_there_is_to_read(scene):
    watcher = Watcher(EndlessHub(), scene.board, scene.state, scene.config)  # type: ignore[arg-type]
    report = watcher.sweep(NOW)
    assert report.num_seen == 50_000
    assert report.sentence.startswith("More than 50,000 models are new; those from before ")
    cursor = scene.state.cursor()
    assert cursor is not None
    assert cursor.modified == NOW


@pytest.mark.parametrize("fault", [{"status": 500}, {"action": "html"}, {"action": "reset"}])
def test_a_hub_that_is_away_is_reported_and_the_next_sweep_finds_all(scene, fault):
    add_model(scene.hub, "org/M", scene.at(-5))
    scene.hub.fail(LISTS, **fault)
    report = scene.sweep(0)
    assert (report.num_seen, report.queued) == (0, ())
    assert report.sentence.endswith(".")
    scene.hub.faults.clear()
    assert scene.sweep(15).queued == ("org/M",)


def test_a_webhook_that_comes_during_a_sweep_is_not_overtaken_by_what_the_sweep_saw(scene):
    add_model(scene.hub, "org/M", scene.at(-5))
    num_asked = 0

    def may_go_on() -> bool:
        nonlocal num_asked
        num_asked += 1
        if num_asked == 3:  # after the close look, and before anything is queued
            new_weights(scene.hub, "org/M", scene.at(-1), seed="better")
            assert scene.watcher.sweep_repo("org/M", scene.at(0)).queued == ("org/M",)
        return True

    report = scene.sweep(0, may_go_on=may_go_on)
    assert num_asked == 3
    assert (report.queued, report.skipped) == ((), {Skip.UNCHANGED: 1})
    (job,) = scene.board.list()
    assert job.request.revision == scene.hub.repos["model", "org/M"].branches["main"]
    assert scene.sweep(5).queued == ()


def test_a_token_that_has_expired_is_said_to_have_and_loses_no_model(scene):
    scene.config = make_config(make_rule(min_likes=1))
    add_model(scene.hub, "org/M", scene.at(-5))
    scene.sweep(0)
    assert scene.skip("org/M") == Skip.TOO_UNKNOWN  # it is to be looked at again
    scene.hub.repos["model", "org/M"].likes = 1
    scene.hub.fail("GET /api/models", status=401)
    report = scene.sweep(90)
    assert report.skipped == {Skip.NO_ANSWER: 1}
    assert "does not accept the token" in report.sentence
    assert "does not accept the token" in scene.state.reports(limit=1)[0].sentence
    scene.hub.faults.clear()
    assert scene.sweep(300).queued == ("org/M",)


def test_a_list_that_repeats_a_page_is_reported_and_the_next_sweep_finds_all(scene):
    class Circling(HubNewModels):
        def _page(self, url, params):
            page, _ = super()._page(url, params)
            return page, f"{scene.hub.url}/api/models?sort=createdAt&expand=sha&limit=1"

    add_model(scene.hub, "org/M", scene.at(-5))
    circling = Circling(endpoint=scene.hub.url, token=False)
    report = Watcher(circling, scene.board, scene.state, scene.config).sweep(scene.at(0))
    assert "the same page of its list again" in report.sentence
    assert scene.state.cursor() is None
    assert report.queued + scene.sweep(15).queued == ("org/M",)


def test_every_sweep_is_one_line_of_the_log(scene, caplog):
    caplog.set_level("INFO", "dynquant.watch")
    add_model(scene.hub, "org/M", scene.at(-5))
    add_model(scene.hub, "org/M-GGUF", scene.at(-5))
    scene.sweep(0)
    (line,) = [each.getMessage() for each in caplog.records if "Sweep:" in each.getMessage()]
    assert line.startswith(
        "Sweep: 2 models seen, 1 matched, 1 queued, 1 skipped (quant 1), 4 calls,"
    )


def test_a_rate_limit_ends_the_sweep_if_it_is_long(scene):
    add_model(scene.hub, "org/M", scene.at(-5))
    scene.hub.fail(LISTS, status=429, headers={"ratelimit": '"api";r=0;t=240'})
    report = scene.sweep(0)
    assert "asked too often" in report.sentence
    assert (report.num_calls, scene.pauses) == (1, [])


def test_a_queue_that_takes_nothing_gets_it_with_the_next_sweep(scene):
    for number in range(3):
        add_model(scene.hub, f"org/m{number}", scene.at(-30 + number))
    scene.board = PickyBoard(scene.board, is_full=True)
    report = scene.sweep(0)
    assert (report.queued, report.sentence) == ((), "The queue is full.")
    scene.board.is_full = False
    assert scene.sweep(5).queued == ("org/m0", "org/m1", "org/m2")
    assert len(scene.board.list()) == 3


def test_a_renamed_model_is_the_same_model(scene):
    scene.config = make_config(make_rule(min_likes=5))
    add_model(scene.hub, "org/Old", scene.at(-5))
    scene.sweep(0)
    repo = scene.hub.repos.pop(("model", "org/Old"))
    repo.id, repo.likes = "org/New", 9
    scene.hub.repos[repo.key] = repo
    scene.hub.renamed["org/Old"] = "org/New"
    assert scene.sweep(120).queued == ("org/New",)
    assert scene.state.due(scene.at(99 * DAY), limit=9) == ()


def test_what_dynquant_published_before_this_database_is_found(scene):
    hub = scene.hub
    scene.config = make_config(make_rule(bpw=(3.5, 4.5)))
    for name in ("same", "words", "weights", "bobs"):
        add_model(hub, f"org/{name}", scene.at(-50))
        sha = hub.repos["model", f"org/{name}"].branches["main"]
        owner = "bob" if name == "bobs" else "you"
        add_dynquant(hub, f"{owner}/{name}-MLX-4.5bpw", f"org/{name}", sha=sha)
        if name != "bobs":
            add_dynquant(hub, f"you/{name}-MLX-3.5bpw", f"org/{name}", sha=sha)
    edit_card(hub, "org/words", scene.at(-10))
    new_weights(hub, "org/weights", scene.at(-10), seed="other")
    scene.sweep(0)
    assert scene.skip("org/same") == scene.skip("org/words") == Skip.ALREADY_PUBLISHED
    targets = {name: job.request.targets_bpw for name, job in scene.jobs().items()}
    assert targets == {"org/weights": (3.5, 4.5), "org/bobs": (3.5,)}


def test_memory_sizes_become_the_bits_that_fit(scene):
    rule = make_rule(bpw=(), memory_bytes=(16 << 30, 32 << 30))
    scene.config = make_config(rule)
    add_model(scene.hub, "org/M", scene.at(-5), model_files(14 * 10**9))
    scene.sweep(0)
    small, large = scene.jobs()["org/M"].request.targets_bpw
    assert 4.5 < small < 6.5
    assert large == 8.0


def test_known_shapes_are_used_and_what_cannot_be_opened_is_unsupported(scene):
    def footprint_of(candidate) -> MemoryFootprint:
        if candidate.repo_id == "org/odd":
            raise UnsupportedModelError("mlx-lm has no architecture for it.")
        return make_footprint(2 * 10**6, cache_bytes=1 << 30)

    scene.config = make_config(make_rule(bpw=(), memory_bytes=(8 << 30,)))
    scene.options = {"footprint_of": footprint_of}
    add_model(scene.hub, "org/M", scene.at(-5))
    add_model(scene.hub, "org/odd", scene.at(-5))
    scene.sweep(0)
    assert scene.skip("org/odd") == Skip.UNSUPPORTED
    assert scene.jobs()["org/M"].request.targets_bpw == (4.2,)


def test_a_dry_run_explains_everything_and_changes_nothing(scene):
    add_model(scene.hub, "org/M", scene.at(-5))
    add_model(scene.hub, "org/M-GGUF", scene.at(-5))
    add_model(scene.hub, "org/young", scene.at(-5), likes=1)
    scene.config = make_config(make_rule("a", search="org/m"), make_rule("b", min_likes=2))
    for _ in range(2):
        report = scene.sweep(0, dry_run=True)
        assert (report.is_dry_run, report.queued) == (True, ("org/M",))
        assert {name: (found.rule, found.skip) for name, found in scene.decisions.items()} == {
            "org/M": ("a", None),
            "org/M-GGUF": ("", Skip.QUANT),
            "org/young": ("b", Skip.TOO_UNKNOWN),
        }
    assert scene.board.list() == ()
    assert scene.state.cursor() is None
    assert scene.state.reports(limit=9) == ()
    assert scene.state.due(scene.at(DAY), limit=9) == ()
    assert str(report).startswith("Dry run: 3 models seen, 1 matched, 1 to be queued, 2 skipped")


def test_one_model_is_looked_at_alone_without_moving_the_cursor(scene):
    add_model(scene.hub, "org/M", scene.at(-5))
    add_model(scene.hub, "org/N", scene.at(-5))
    report = scene.watcher.sweep_repo("org/M", scene.at(0))
    assert (report.num_seen, report.queued) == (1, ("org/M",))
    assert scene.state.cursor() is None
    assert scene.watcher.sweep_repo("org/M", scene.at(1)).skipped == {Skip.UNCHANGED: 1}
    assert scene.sweep(2).queued == ("org/N",)


def test_a_model_that_no_rule_speaks_of_costs_no_request(scene):
    scene.config = make_config(make_rule(authors=("org",)))
    report = scene.watcher.sweep_repo("else/M", scene.at(0))
    assert report.skipped == {Skip.NOT_COVERED: 1}
    assert (report.num_calls, scene.hub.requests) == (0, [])


def test_an_explanation_forgets_what_was_done_but_says_so(scene):
    add_model(scene.hub, "org/M", scene.at(-5))
    scene.sweep(0)
    look = scene.watcher.explain("org/M", scene.at(1))
    assert (look.decision.rule, look.decision.skip) == ("all", None)
    assert look.decision.targets_bpw == (4.5,)
    assert look.seen is not None
    assert look.seen.job_id == scene.jobs()["org/M"].id
    assert scene.watcher.explain("org/none", scene.at(1)).decision.skip is Skip.GONE


def test_a_sweep_that_may_not_go_on_ends_and_the_next_one_finds_the_rest(scene):
    for number in range(5):
        add_model(scene.hub, f"org/m{number}", scene.at(-30 + number))
    answers = iter([True] * 8 + [False] * 9)  # stops between two that are to be queued
    report = scene.sweep(0, may_go_on=lambda: next(answers))
    assert 0 < len(report.queued) < 5
    assert "paused" in report.sentence
    rest = scene.sweep(5).queued
    assert sorted(report.queued + rest) == [f"org/m{number}" for number in range(5)]
    assert len(scene.board.list()) == 5


def test_more_than_a_sweep_may_look_at_closely_waits_for_the_next(scene):
    scene.config = make_config(make_rule(max_per_sweep=500))
    for number in range(200):
        add_model(scene.hub, f"org/m{number:03}", scene.at(-60 + number / 10))
    first = scene.sweep(0)
    assert len(first.queued) == first.num_matched == 150
    assert first.skipped == {Skip.CALL_LIMIT: 50}
    second = scene.sweep(1)
    assert len(second.queued) == 50
    assert Counter(first.queued + second.queued).most_common(1)[0][1] == 1


def test_a_pause_is_kept(scene):
    scene.state.set_paused(True)
    assert scene.state.is_paused
    scene.state.set_paused(False)
    assert not scene.state.is_paused


def test_an_empty_hub_is_no_reason_to_move_on(scene):
    assert scene.sweep(0).num_seen == 0
    assert scene.state.cursor() is None
    add_model(scene.hub, "org/M", scene.at(0) - timedelta(hours=1))
    assert scene.sweep(1).queued == ("org/M",)
