"""Workflows of DBOS: one per attempt of a job, sent to the runner that holds the job.

DBOS writes down every step that is done. It also fences: once a workflow was sent to another
runner, the earlier runner can no longer write to it. The order of jobs is kept in our own tables.
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
from dynquant.jobs.held_job import HeldJob, StoppedError, workflow_id
from dynquant.jobs.job import JobState, Outcome
from dynquant.jobs.job_text import outcome_from_text
from dynquant.jobs.steps import UNFORESEEN, StepResult

__all__ = ["Workflows"]

_APPLICATION = "dynquant"
_WORKFLOW = "quantize"
_VERSION = str(tables.VERSION)
"""Pinned, because workers take only workflows of their version: the default hashes the code."""

_PARKED = "parked"
"""A queue without listeners: a workflow that is sent there is fenced and does not run."""

_ENDED = ["SUCCESS", "ERROR", "CANCELLED"]
_KEPT_FOR = timedelta(days=30)
_MAX_DELETED = 100
"""Workflows that are deleted at once."""

_POLLING_SECS = 0.25
_POOL_SIZE = 5
_START_SECS = 5.0
"""A workflow that DBOS took from the queue begins within this time, or never."""


class Workflows:
    """The workflows of this runner. One object per process, because DBOS is global."""

    def __init__(
        self, url: sa.URL, *, runner_id: str, num_slots: int, run: Callable[[str], str]
    ) -> None:
        """Start DBOS; it calls `run` with the ids of workflows, in its threads."""
        self._queue = f"runner-{runner_id}"
        # DBOS logs to the console unless its logger has a handler.
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
                retry_connection_errors=False,  # the engine's loop retries
            )
            # Before the launch, else DBOS needs a second to find the queue.
            self._client.register_queue(
                self._queue, worker_concurrency=num_slots, polling_interval_sec=_POLLING_SECS
            )
        DBOS(config=config)

        # No limit on recoveries: `Job.deaths` counts the runners that died.
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
        """The result of `do`, or its result when this step was done before; to be called in `run`.

        Raises:
            StoppedError: The result could not be written down, as on a full disk; it is done again.
        """
        try:
            return StepResult.from_text(DBOS.run_step({"name": name}, lambda: do().to_text()))
        except sa.exc.SQLAlchemyError as error:
            raise StoppedError from error

    def dispatch(self, held: HeldJob) -> Outcome | None:
        """Start or resume a job's workflow on this runner, unless it is queued here already.

        Returns:
            The workflow's outcome, if it ended before its job was written down as over.
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
        """Fence a workflow; another runner can continue it."""
        try:
            with translated():
                self._client.resume_workflow(workflow_id(job_id, attempt), queue_name=_PARKED)
        except dbos_error.DBOSNonExistentWorkflowError:
            return  # its job was taken, and given back before the workflow was made

    def abandon(self, job_id: str, attempt: int) -> None:
        """Fence a workflow for good."""
        with translated():
            self._client.cancel_workflow(workflow_id(job_id, attempt))

    def delete_old(self) -> None:
        """Delete the steps of attempts that ended a month ago, among them whole cost tables.

        A retry of such a job starts with the first step.
        """
        before = (datetime.now(UTC) - _KEPT_FOR).isoformat()
        with translated():
            old = self._client.list_workflows(
                name=_WORKFLOW,
                status=_ENDED,
                completed_before=before,
                limit=_MAX_DELETED,
                load_input=False,
                load_output=False,
            )
            if old:
                self._client.delete_workflows([each.workflow_id for each in old])

    def _create(self, held: HeldJob) -> None:
        before = workflow_id(held.job.id, held.job.attempt - 1)
        history = held.job.history
        # A published job whose repos were deleted starts with the first step: the last step's
        # result would be the deleted repos, and the first step's may say that they exist.
        goes_on = bool(history) and history[-1].state is not JobState.PUBLISHED
        num_done = self._num_done(before) if goes_on else 0
        # Another runner may delete the old workflow meanwhile.
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
        """The number of steps of a workflow that were done, from the first on."""
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
        return UNFORESEEN  # not written by `run`, which raises no error


def _may_still_start(held: HeldJob, status: Any) -> bool:
    if status.status == "ENQUEUED":
        return True
    recently = held.dispatched_at is not None and (
        time.monotonic() - held.dispatched_at < _START_SECS
    )
    return bool(status.status == "PENDING") and recently
