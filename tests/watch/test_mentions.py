from __future__ import annotations

from typing import Any

import pytest

from dynquant.errors import RetryLaterError
from dynquant.hub.mentions import HubMentions
from dynquant.jobs.database import Database
from dynquant.jobs.job import JobState, Outcome, PublishedRepo
from dynquant.jobs.registry import Registry
from dynquant.jobs.store import JobStore
from dynquant.watch.mentions import MENTION_TITLE
from tests.watch.factories import make_config, make_rule
from tests.watch.scene import add_model, new_weights

pytestmark = pytest.mark.hub


@pytest.fixture
def told(scene) -> Any:
    """A scene whose only rule tells authors."""
    scene.hub.add_user("you", token="hf_you")
    scene.config = make_config(make_rule(mention=True))
    mentioner = HubMentions(endpoint=scene.hub.url, token="hf_you", sleep=scene.pauses.append)
    scene.options = {"mentioner": mentioner}
    add_model(scene.hub, "org/M", scene.at(-5))
    return scene


def end_all(scene, state: JobState = JobState.PUBLISHED) -> None:
    """Have a runner end all jobs."""
    database = Database(scene.url)
    store, registry = JobStore(database), Registry(database)
    session = registry.join("mac", memory_bytes=10**12, num_slots=9, heartbeat_secs=0.0)
    for job in scene.board.list():
        if not job.is_over:
            results = (PublishedRepo(repo_id="you/M-MLX-4.5bpw", commit_sha="c0ffee"),)
            outcome = Outcome(state=state, results=results if state is JobState.PUBLISHED else ())
            assert store.take(job.id, runner="mac", session=session) is not None
            store.end(job.id, outcome, session=session, busy_secs=1.0)
    registry.leave(session)
    database.close()


def discussions(scene, name: str = "org/M") -> list[Any]:
    return scene.hub.repos["model", name].discussions


def test_nobody_is_told_anything_unless_a_rule_says_so(told):
    told.config = make_config(make_rule())
    told.sweep(0)
    end_all(told)
    told.sweep(5)
    assert discussions(told) == []


def test_an_author_is_told_once_when_the_quants_are_there_and_never_again(told):
    told.sweep(0)
    told.sweep(5)
    assert discussions(told) == []
    end_all(told)
    told.sweep(10)
    (one,) = discussions(told)
    assert (one.title, one.author) == (MENTION_TITLE, "you")
    text = one.events[0]["data"]["latest"]["raw"]
    assert "- [you/M-MLX-4.5bpw](/you/M-MLX-4.5bpw)" in text
    assert "`dynquant: false`" in text
    new_weights(told.hub, "org/M", told.at(12), seed="better")
    assert told.sweep(15).queued == ("org/M",)
    end_all(told)
    told.sweep(20)
    assert len(discussions(told)) == 1


def test_a_sweep_that_dies_after_the_discussion_was_opened_opens_no_other(told):
    told.sweep(0)
    end_all(told)

    class Dying:
        def __getattr__(self, name: str) -> Any:
            return getattr(state, name)

        def mentioned(self, repo_id: str) -> None:
            raise RetryLaterError(f"The machine died before it wrote down '{repo_id}'.")

    state, told.state = told.state, Dying()
    with pytest.raises(RetryLaterError):
        told.sweep(5)
    told.state = state
    assert len(discussions(told)) == 1
    told.sweep(10)
    told.sweep(15)
    assert len(discussions(told)) == 1
    assert told.state.mentions(limit=9) == ()


def test_what_others_wrote_is_not_taken_for_ours(told):
    told.hub.add_user("eve", token="hf_eve")
    eve = HubMentions(endpoint=told.hub.url, token="hf_eve")
    assert eve.mention("org/M", title=MENTION_TITLE, text="Look here.")
    told.sweep(0)
    end_all(told)
    told.sweep(5)
    assert [each.author for each in discussions(told)] == ["eve", "you"]


@pytest.mark.parametrize("state", [JobState.REFUSED, JobState.FAILED])
def test_of_a_job_that_published_nothing_nobody_is_told(told, state):
    told.sweep(0)
    end_all(told, state)
    told.sweep(5)
    assert discussions(told) == []
    assert told.state.mentions(limit=9) == ()


def test_an_operator_who_has_switched_it_off_meanwhile_is_heeded(told):
    told.sweep(0)
    end_all(told)
    told.config = make_config(make_rule())
    told.sweep(5)
    assert discussions(told) == []


def test_who_has_closed_the_discussions_is_not_asked_again(told):
    told.sweep(0)
    end_all(told)
    told.hub.fail("POST /api/models/org/M/discussions", status=403)
    told.sweep(5)
    told.hub.faults.clear()
    told.sweep(10)
    assert discussions(told) == []


def test_while_the_hub_is_away_authors_wait_and_so_does_nothing_else(told):
    told.sweep(0)
    end_all(told)
    add_model(told.hub, "org/N", told.at(1))
    told.hub.fail("POST /api/models/org/M/discussions", status=503)
    assert told.sweep(5).queued == ("org/N",)
    assert discussions(told) == []
    told.hub.faults.clear()
    told.sweep(10)
    assert len(discussions(told)) == 1


def test_a_sweep_tells_few_at_once_and_none_once_it_is_paused(told):
    for number in range(7):
        add_model(told.hub, f"org/m{number}", told.at(-4))
    told.config = make_config(make_rule(mention=True, max_per_sweep=50))
    told.sweep(0)
    end_all(told)
    names = [f"org/m{number}" for number in range(7)] + ["org/M"]
    told.sweep(2, may_go_on=lambda: False)
    assert sum(len(discussions(told, name)) for name in names) == 0
    told.sweep(5)
    assert sum(len(discussions(told, name)) for name in names) == 5
    told.sweep(10)
    assert sum(len(discussions(told, name)) for name in names) == 8
