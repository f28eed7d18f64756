"""The engine: takes jobs whose turn it is, runs them, and requeues the jobs of dead runners.

One loop alone changes in the database which runner holds which job. The threads of the steps only
do steps; they leave progress and requests in `HeldJob`, and the loop acts on them.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Mapping
from functools import partial

from dynquant.convert import STEPS
from dynquant.errors import NotEnoughMemoryError, RequestError, RetryLaterError
from dynquant.jobs import journal
from dynquant.jobs.database import Database
from dynquant.jobs.held_job import HeldJob, StoppedError
from dynquant.jobs.job import JobState, Outcome
from dynquant.jobs.job_text import outcome_to_text, results_from_text
from dynquant.jobs.ports import StepRunner
from dynquant.jobs.registry import Registry, Watch
from dynquant.jobs.steps import UNFORESEEN, StepResult, do_step
from dynquant.jobs.store import JobStore
from dynquant.jobs.timing import Timing
from dynquant.jobs.waiting_line import waiting_line
from dynquant.jobs.workflows import Workflows
from dynquant.settings import Settings

__all__ = ["JobEngine"]

_TRIM_BEATS = 1_000

_logger = logging.getLogger(__name__)


class JobEngine:
    """One runner."""

    def __init__(
        self,
        settings: Settings,
        steps: StepRunner,
        *,
        memory_bytes: int,
        chip: str = "",
        timing: Timing | None = None,
    ) -> None:
        """A runner with `memory_bytes` for jobs on a `chip`; nothing happens before `run`."""
        self._settings = settings
        self._steps = steps
        self._memory_bytes = memory_bytes
        self._chip = chip
        self._timing = timing or Timing()
        self._watch = Watch(num_looks=self._timing.num_looks)
        self._held: dict[str, HeldJob] = {}
        self._wake = threading.Event()
        self._next_beat_at = 0.0
        self._num_beats = 0

    def run(self, stopping: threading.Event) -> None:
        """Take and run jobs until `stopping` is set; then give back what runs.

        Raises:
            InvalidOptionError: A database that cannot be used, or another process is this runner.
            RetryLaterError: The database does not answer at the start.
        """
        self._database = Database(self._settings.database_url)
        try:
            self._store = JobStore(self._database)
            self._registry = Registry(self._database)
            self._session = self._join()
            self._workflows = Workflows(
                self._database.url,
                runner_id=self._settings.runner_id,
                num_slots=self._settings.concurrency,
                run=self._run_workflow,
            )
            try:
                for job_id in list(self._steps.local_jobs()):
                    self._release_if_done(job_id)
                self._loop(stopping)
            finally:
                self._leave()
                self._workflows.close()
        finally:
            self._database.close()

    # The loop.

    def _loop(self, stopping: threading.Event) -> None:
        is_away = False
        while not stopping.is_set():
            try:
                self._tick()
                is_away = False
            except RetryLaterError as error:
                if not is_away:
                    _logger.warning("%s This runner continues as soon as it answers.", error)
                is_away = True
            self._wake.wait(self._timing.tick_secs)
            self._wake.clear()

    def _tick(self) -> None:
        if time.monotonic() >= self._next_beat_at:
            self._beat()
            self._next_beat_at = time.monotonic() + self._timing.heartbeat_secs
        mine = self._store.held(self._session)
        for held in list(self._held.values()):
            is_mine = held.nonce == self._session and held.job.id in mine
            self._look_after(held, is_mine=is_mine)
        self._take_jobs()

    def _look_after(self, held: HeldJob, *, is_mine: bool) -> None:
        job = held.job
        if not is_mine:
            held.stop()
            if not held.is_active:
                if not held.has_ended and self._is_over(job.id, job.attempt):
                    self._workflows.abandon(job.id, job.attempt)
                del self._held[job.id]
            return
        progress = held.take_progress()
        if progress is not None:
            self._store.report(job.id, progress, session=held.nonce)
        if held.is_active:
            return
        if held.memory_needed is not None:
            self._give_back(held, str(held.memory_needed))
        elif (outcome := self._workflows.dispatch(held)) is not None:
            self._store.end(job.id, outcome, session=held.nonce, busy_secs=None)

    def _take_jobs(self) -> None:
        if len(self._held) >= self._settings.concurrency:
            return
        for waiting in waiting_line(self._database):
            if len(self._held) >= self._settings.concurrency:
                return
            if waiting.id in self._held:  # its thread has not stopped yet
                continue
            if (waiting.needed_memory_bytes or 0) > self._memory_bytes:
                continue
            job = self._store.take(
                waiting.id, runner=self._settings.runner_id, session=self._session
            )
            if job is not None:
                held = HeldJob(job=job, nonce=self._session)
                self._held[job.id] = held
                self._look_after(held, is_mine=True)

    # Runners.

    def _join(self) -> str:
        return self._registry.join(
            self._settings.runner_id,
            memory_bytes=self._memory_bytes,
            num_slots=self._settings.concurrency,
            heartbeat_secs=self._timing.heartbeat_secs,
            num_looks=self._timing.num_looks_to_take_over,
            chip=self._chip,
        )

    def _beat(self) -> None:
        if not self._registry.beat(self._session):
            _logger.warning("The other runners counted this one as dead; it starts a new session.")
            for held in self._held.values():
                held.stop()
            self._session = self._join()
        if self._num_beats % _TRIM_BEATS == 0:
            journal.trim(self._database)
            self._workflows.delete_old()
        self._num_beats += 1
        self._reap()

    def _reap(self) -> None:
        """Take over the jobs of dead runners, and queue them again."""
        # In this order: a session that holds a job now was registered before.
        holding = self._store.num_running()
        sessions = self._registry.sessions()
        dead = {session.nonce for session in self._watch.dead(sessions)} - {self._session}
        unknown = holding.keys() - {session.nonce for session in sessions}
        for nonce in dead | unknown:
            for job_id in self._store.held(nonce):
                self._store.reassign(job_id, session=nonce, to=self._session)
            self._registry.leave(nonce)
        # Also jobs that were reassigned or taken just before the database stopped answering.
        for job_id in self._store.held(self._session) - self._held.keys():
            self._requeue(job_id)

    def _requeue(self, job_id: str) -> None:
        try:
            job = self._store.get(job_id)
        except RequestError:
            return  # it could not be read, and was quarantined
        self._workflows.park(job_id, job.attempt)
        memory_bytes = self._registry.memory_bytes(job.runner)
        after = self._store.requeue_or_fail(
            job_id, session=self._session, memory_bytes=memory_bytes
        )
        if after is not None and after.is_over:
            self._workflows.abandon(job_id, job.attempt)

    def _leave(self) -> None:
        """Stop all jobs and queue them again, without waiting until this runner counts as dead."""
        for held in self._held.values():
            held.stop()
        patience = time.monotonic() + self._timing.stop_secs
        while time.monotonic() < patience and any(each.is_active for each in self._held.values()):
            self._wake.wait(self._timing.tick_secs)
            self._wake.clear()
        try:
            mine = self._store.held(self._session)
            for held in list(self._held.values()):
                if held.job.id in mine:
                    self._give_back(held, f"Runner {self._settings.runner_id} stopped.")
            self._registry.leave(self._session)
        except RetryLaterError as error:
            _logger.warning("%s The jobs of this runner wait until it counts as dead.", error)

    def _give_back(self, held: HeldJob, sentence: str) -> None:
        self._workflows.park(held.job.id, held.job.attempt)
        needed = held.memory_needed
        self._store.give_back(
            held.job.id,
            session=held.nonce,
            sentence=sentence,
            needed_memory_bytes=needed.needed_bytes if needed else None,
        )
        del self._held[held.job.id]

    # The threads of the steps.

    def _run_workflow(self, workflow_id: str) -> str:
        """Do a job that this runner holds; raises no `Exception`, which DBOS would keep forever."""
        job_id, _, attempt = workflow_id.rpartition("-")
        held = self._held.get(job_id)
        if held is None or held.workflow_id != workflow_id or held.is_active:
            try:
                if self._is_over(job_id, int(attempt)):
                    return ""  # the job is over, and DBOS did not know it yet
            except RetryLaterError as error:
                raise StoppedError from error
            raise StoppedError
        held.is_active = True
        try:
            outcome = self._do_steps(held)
            self._end(held, outcome)
        finally:
            self._release_if_done(job_id)
            held.is_active = False
            self._wake.set()
        return outcome_to_text(outcome)

    def _is_over(self, job_id: str, attempt: int) -> bool:
        try:
            job = self._store.get(job_id)
        except RequestError:
            return True  # it could not be read, and was quarantined
        return job.is_over or job.attempt > attempt

    def _do_steps(self, held: HeldJob) -> Outcome:
        results: dict[str, str] = {}
        try:
            for step in STEPS:
                done = self._workflows.step(step, partial(self._do_step, step, held, results))
                if done.outcome is not None:
                    return done.outcome
                results[step] = done.artefact
            return Outcome(state=JobState.PUBLISHED, results=results_from_text(results[STEPS[-1]]))
        except Exception:
            _logger.exception("The engine failed", extra={"job_id": held.job.id})
            return UNFORESEEN

    def _do_step(self, step: str, held: HeldJob, results: Mapping[str, str]) -> StepResult:
        while not self._has_begun(step, held):
            held.wait(self._timing.tick_secs)
        try:
            return do_step(self._steps, step, held, dict(results), timing=self._timing)
        except NotEnoughMemoryError as error:
            held.memory_needed = error
            raise StoppedError from error

    def _has_begun(self, step: str, held: HeldJob) -> bool:
        """Whether the step may begin; False while the database does not answer."""
        if held.is_stopping():
            raise StoppedError
        try:
            is_mine = self._store.begin_step(held.job.id, step, session=held.nonce)
        except RetryLaterError:
            return False
        if not is_mine:
            raise StoppedError
        return True

    def _end(self, held: HeldJob, outcome: Outcome) -> None:
        while not held.is_stopping():
            try:
                self._store.end(held.job.id, outcome, session=held.nonce, busy_secs=held.busy_secs)
            except RetryLaterError:
                held.wait(self._timing.tick_secs)
            else:
                held.has_ended = True
                return
        raise StoppedError

    def _release_if_done(self, job_id: str) -> None:
        """Free the disk space of a job that is over, or that another runner holds."""
        try:
            job = self._store.get(job_id)
            is_elsewhere = job.state is JobState.RUNNING and job.runner != self._settings.runner_id
            if job.is_over or is_elsewhere:
                self._steps.release(job_id)
        except RequestError:
            return  # of another database, or quarantined: another runner may still need it
        except Exception:
            _logger.exception("The job's disk space could not be freed", extra={"job_id": job_id})
