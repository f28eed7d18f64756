"""The pages of a Space that does everything itself: what is private is on none of them."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator
from contextlib import closing
from typing import Any

import pytest

from dynquant.errors import RequestError
from dynquant.jobs.board import DatabaseBoard
from dynquant.jobs.database import Database
from dynquant.jobs.job import Job, JobState, Outcome, StepProgress
from dynquant.jobs.registry import Registry
from dynquant.jobs.store import JobStore
from dynquant.web.public_view import PublicJobs, PublicWatch
from tests.web.scene import make_request
from tests.web.test_space_watch import make_status

pytestmark = pytest.mark.harden("web")


@dataclasses.dataclass
class Scene:
    """A database, its jobs, and the public view of them."""

    board: DatabaseBoard
    jobs: PublicJobs
    store: JobStore
    registry: Registry

    def ask(self, **overrides: Any) -> Job:
        request = make_request(**{"revision": "5ha"} | overrides)
        return self.jobs.submit_anew(request)

    def run(self, job: Job, runner: str = "mac") -> str:
        session = self.registry.join(runner, memory_bytes=1, num_slots=9, heartbeat_secs=0.0)
        assert self.store.take(job.id, runner=runner, session=session) is not None
        self.store.begin_step(job.id, "measure", session=session)
        self.store.report(job.id, StepProgress(step="measure", layer="canary"), session=session)
        return session


@pytest.fixture
def scene(tmp_path) -> Iterator[Scene]:
    url = f"sqlite:///{tmp_path / 'jobs.sqlite'}"
    with closing(DatabaseBoard(url)) as board, closing(Database(url)) as database:
        jobs = PublicJobs(board)
        yield Scene(board, jobs, JobStore(database), Registry(database))


@pytest.mark.parametrize("asked", [{"private": True}, {"source_is_private": True}])
def test_a_private_job_is_not_there_for_whoever_knows_its_id(scene, asked):
    job = scene.ask(model="me/Canary", **asked)
    scene.run(job)
    seen = scene.ask(model="org/Seen")
    assert [each.id for each in scene.jobs.list(limit=9)] == [seen.id]
    assert scene.jobs.get(seen.id).position == 1
    assert [runner.num_running for runner in scene.jobs.runners()] == [0]
    for look in (scene.jobs.get, scene.jobs.log, scene.jobs.cancel, scene.jobs.retry):
        sentences = []
        for job_id in (job.id, "0" * 20):
            with pytest.raises(RequestError) as refusal:
                look(job_id)
            sentences.append(str(refusal.value).replace(job_id, "ID"))
        assert sentences[0] == sentences[1]
    assert scene.board.get(job.id).state is JobState.RUNNING  # for its operator it is there


def test_a_private_model_that_was_published_for_everybody_is_shown_then(scene):
    job = scene.ask(model="me/Mine", source_is_private=True, public=True)
    session = scene.run(job)
    assert scene.jobs.list(limit=9) == ()
    scene.store.end(job.id, Outcome(state=JobState.PUBLISHED), session=session, busy_secs=1.0)
    assert [each.id for each in scene.jobs.list(limit=9)] == [job.id]
    assert scene.jobs.log(job.id)


def test_the_watcher_beside_the_pages_tells_of_public_jobs_alone(scene):
    status = make_status()
    (named,) = [known for known in status.latest if known.job_id]

    class Watch:
        status = staticmethod(lambda: status)

    hidden = PublicWatch(Watch(), scene.jobs).status()  # type: ignore[arg-type]  # no act is tried
    assert named.repo_id not in json.dumps(dataclasses.asdict(hidden), default=str)
    assert hidden.config is not None
    assert hidden.config.opt_out == ()
