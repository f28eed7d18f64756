"""What DBOS knows of a job: one workflow per attempt, sent to the runner that has the job.

DBOS writes down every step that is done, and fences: a workflow that was sent elsewhere can
write nothing more from where it was before. Whose turn it is stands in our own tables.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from typing import Any

import sqlalchemy as sa
from dbos import DBOS, DBOSClient, DBOSConfig, DBOSPortableJSONSerializer, SetWorkflowID
from dbos import error as dbos_error

from dynquant.jobs import tables
from dynquant.jobs.database import IDLE_TIMEOUT_SECS, translated
from dynquant.jobs.held import Held, StoppedError, workflow_id
from dynquant.jobs.job import JobState, Outcome
from dynquant.jobs.job_text import outcome_from_text
from dynquant.jobs.steps import UNFORESEEN, StepResult

__all__ = ["Workflows"]

_APPLICATION = "dynquant"
_WORKFLOW = "quantize"
_VERSION = str(tables.VERSION)
"""Pinned: DBOS's own is a hash of the code, and workers take only what has theirs."""

_PARKED = "parked"
"""A queue that nobody listens to: what is sent there is fenced and stays where it is."""

_ENDED = ["SUCCESS", "ERROR", "CANCELLED"]
_KEPT_FOR = timedelta(days=30)
_MAX_FORGOTTEN = 100
"""At once."""

_POLLING_SECS = 0.25
_POOL_SIZE = 5
_START_SECS = 5.0
"""In which a workflow that DBOS took from the queue has begun, or never will."""


class Workflows:
    """The workflows of this runner. One per process: DBOS is a global thing."""

    def __init__(
        self, url: sa.URL, *, runner_id: str, num_slots: int, run: Callable[[str], str]
    ) -> None:
        """Start DBOS; `run` is given the ids of workflows, in threads of DBOS."""
        self._queue = f"runner-{runner_id}"
        # DBOS prints to the console unless somebody else takes what it says.
        logging.getLogger("dbos").addHandler(logging.NullHandler())
        text = url.render_as_string(hide_password=False)
        serializer = DBOSPortableJSONSerializer()
        config: DBOSConfig = {
            "name": _APPLICATION,
            "system_database_url": text,
            "sys_db_pool_size": _POOL_SIZE,
            "sys_db_idle_transaction_timeout_sec": IDLE_TIMEOUT_SECS,
            "application_version": _VERSION,
            "executor_id": runner_id,
            "serializer": serializer,
            "log_level": "WARNING",
        }
        with translated():
            DBOS.migrate(text)
            self._client = DBOSClient(
                system_database_url=text,
                serializer=serializer,
                application_name=_APPLICATION,
                retry_connection_errors=False,  # the loop comes back by itself
            )
            # Before the launch, or DBOS takes a second to find it.
            self._client.register_queue(
                self._queue, worker_concurrency=num_slots, polling_interval_sec=_POLLING_SECS
            )
        DBOS(config=config)

        # No limit on recoveries: we count how many runners a job has killed ourselves.
        @DBOS.workflow(name=_WORKFLOW, max_recovery_attempts=None)
        def quantize() -> str:
            assert DBOS.workflow_id is not None
            return run(DBOS.workflow_id)

        DBOS.listen_queues([self._queue])
        with translated():
            DBOS.launch()

    def close(self) -> None:
        """Stop DBOS; workflows that still run are left as they are."""
        DBOS.destroy(workflow_completion_timeout_sec=0)
        self._client.destroy()

    @staticmethod
    def step(name: str, do: Callable[[], StepResult]) -> StepResult:
        """What `do` returns, or returned when this step was done before; within `run`.

        Raises:
            StoppedError: It could not be written down, as on a full disk, and is to be done again.
        """
        try:
            return StepResult.from_text(DBOS.run_step({"name": name}, lambda: do().to_text()))
        except sa.exc.SQLAlchemyError as error:
            raise StoppedError from error

    def dispatch(self, held: Held) -> Outcome | None:
        """See to it that a workflow runs here, if no thread works on it yet.

        Returns:
            How it ended, if it did so before its job was written down as over.
        """
        with translated():
            found = self._client.list_workflows(workflow_ids=[held.workflow_id], load_input=False)
            if not found:
                self._create(held)
            elif (status := found[0]).status in {"SUCCESS", "ERROR"}:
                return _outcome(status.output)
            elif status.queue_name == self._queue and _may_still_start(held, status):
                return None
            else:
                self._client.resume_workflow(held.workflow_id, queue_name=self._queue)
        held.dispatched_at = time.monotonic()
        return None

    def park(self, job_id: str, attempt: int) -> None:
        """Fence whoever works on a workflow; another runner can go on with it."""
        try:
            with translated():
                self._client.resume_workflow(workflow_id(job_id, attempt), queue_name=_PARKED)
        except dbos_error.DBOSNonExistentWorkflowError:
            return  # taken, and given back before it began

    def abandon(self, job_id: str, attempt: int) -> None:
        """Fence whoever works on a workflow; nobody goes on with it."""
        with translated():
            self._client.cancel_workflow(workflow_id(job_id, attempt))

    def forget_old(self) -> None:
        """Forget the steps of attempts that ended a month ago, among them whole cost tables.

        Who retries such a job does all of it again.
        """
        before = (datetime.now(UTC) - _KEPT_FOR).isoformat()
        with translated():
            old = self._client.list_workflows(
                name=_WORKFLOW,
                status=_ENDED,
                completed_before=before,
                limit=_MAX_FORGOTTEN,
                load_input=False,
                load_output=False,
            )
            if old:
                self._client.delete_workflows([each.workflow_id for each in old])

    def _create(self, held: Held) -> None:
        before = workflow_id(held.job.id, held.job.attempt - 1)
        history = held.job.history
        # What was published and is deleted is made from the first step on: the last step's answer
        # would be the deleted repos, and the first one's may be that they are there.
        goes_on = bool(history) and history[-1].state is not JobState.PUBLISHED
        num_done = self._num_done(before) if goes_on else 0
        # Another runner may forget it between the two.
        with suppress(dbos_error.DBOSNonExistentWorkflowError), SetWorkflowID(held.workflow_id):
            if num_done:
                self._client.fork_workflow(
                    before, num_done + 1, application_version=_VERSION, queue_name=self._queue
                )
                return
        self._client.enqueue(
            {
                "workflow_name": _WORKFLOW,
                "queue_name": self._queue,
                "workflow_id": held.workflow_id,
                "app_version": _VERSION,
            }
        )

    def _num_done(self, identity: str) -> int:
        """How many steps of a workflow were done, from the first on."""
        num_done = 0
        for step in self._client.list_workflow_steps(identity):
            if StepResult.from_text(str(step["output"])).outcome is not None:
                break
            num_done += 1
        return num_done


def _outcome(output: object) -> Outcome:
    try:
        return outcome_from_text(str(output))
    except ValueError:
        return UNFORESEEN  # `run` lets no error out, so somebody else wrote this


def _may_still_start(held: Held, status: Any) -> bool:
    if status.status == "ENQUEUED":
        return True
    recently = held.dispatched_at is not None and (
        time.monotonic() - held.dispatched_at < _START_SECS
    )
    return bool(status.status == "PENDING") and recently
