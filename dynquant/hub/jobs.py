"""Jobs of the Hub: machines by the minute, in the account that pays for them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import UTC, datetime
from itertools import islice
from types import MappingProxyType
from typing import TypeVar

import httpx2
from huggingface_hub import JobInfo, get_token
from huggingface_hub.errors import HfHubHTTPError, JobNotFoundError

from dynquant.errors import HubJobError, HubUnavailableError, Reason
from dynquant.hub.client import HubClient
from dynquant.rented.command import IMAGE
from dynquant.rented.hardware import Flavor, num_bytes
from dynquant.rented.job import ACTIVE, RentedJob, Stage

__all__ = ["HubJobs"]

T = TypeVar("T")

_BILLING = "https://huggingface.co/settings/billing"
_LOOK_SECS = 2.0
_NUM_LOG_TRIES = 3
_MAX_LISTED = 1_000
_BEGINNING = datetime.min.replace(tzinfo=UTC)


class HubJobs(HubClient):
    """Starts, follows and cancels Jobs."""

    _access = "write to"
    _refusal = HubJobError

    def flavors(self) -> list[Flavor]:
        """The machines with a price for each minute that are for rent now."""
        found = self._asked("the prices of machines", self._api.list_jobs_hardware)
        return [
            Flavor(
                name=each.name,
                gpu=each.accelerator.model if each.accelerator else "",
                gpu_bytes=num_bytes(each.accelerator.vram) // int(each.accelerator.quantity)
                if each.accelerator
                else 0,
                memory_bytes=num_bytes(each.ram),
                disk_bytes=num_bytes(each.ephemeral_storage),
                micro_usd_per_minute=each.unit_cost_micro_usd,
            )
            for each in found
            if each.unit_label == "minute" and each.unit_cost_micro_usd is not None
        ]

    def start(
        self,
        command: Sequence[str],
        *,
        flavor: str,
        timeout_secs: int,
        labels: Mapping[str, str],
        namespace: str,
        more_labels: Mapping[str, str] = MappingProxyType({}),
        environment: Mapping[str, str] = MappingProxyType({}),
        secrets: Mapping[str, str] = MappingProxyType({}),
        at_once: int = 1,
    ) -> tuple[RentedJob, bool]:
        """Start a Job with the token in use as its secret, unless enough of its kind are active.

        The call is not repeated. When its answer is lost, or two programs start at once, the
        labels tell which Jobs are there, and the oldest stay.

        Args:
            command: The command that it runs.
            flavor: On which machine.
            timeout_secs: After so long the Hub ends it.
            labels: The request, see `rented.command.labels_of`.
            namespace: The account that pays.
            more_labels: Labels by which other Jobs of the request may differ.
            environment: Variables of the Job, which its page shows.
            secrets: Variables that are secret, beside the token.
            at_once: Most Jobs with these labels.

        Returns:
            The Job, or the latest of those that are active, and whether this call started it.

        Raises:
            HubJobError: No token, credits, permission, or no such machine. Nothing was started.
            HubUnavailableError: The Hub does not answer, and knows no Job with these labels.
        """
        if len(there := self._active(namespace, labels)) >= at_once:
            return there[-1], False
        token = get_token() if self._api.token is None else self._api.token
        if not isinstance(token, str):
            raise HubJobError(
                "A Job of the Hub needs a token. Set HF_TOKEN, or run 'hf auth login'.",
                reason=Reason.NOT_SIGNED_IN,
            )

        def run() -> JobInfo:
            return self._api.run_job(
                image=IMAGE,
                command=list(command),
                env=dict(environment),
                secrets={**secrets, "HF_TOKEN": token},
                flavor=flavor,
                timeout=timeout_secs,
                attempts=1,  # a second one would cost as much again
                name="dynquant",
                labels={**more_labels, **labels},
                namespace=namespace,
            )

        known = {each.id for each in there}
        try:
            ours = _job(self._asked(namespace, run, num_tries=1))
        except HubUnavailableError:
            new = [each for each in self._active(namespace, labels) if each.id not in known]
            if not new:
                raise
            return new[0], True
        oldest = self._active(namespace, labels)[:at_once]
        if len(oldest) == at_once and ours.id not in {each.id for each in oldest}:
            self.cancel(ours)
            return oldest[-1], False
        return ours, True

    def look(self, name: str) -> RentedJob:
        """The Job `NAMESPACE/ID`.

        Raises:
            HubJobError: There is no such Job, or it is another account's.
        """
        namespace, _, job_id = name.rpartition("/")
        return _job(
            self._asked(
                namespace, lambda: self._api.inspect_job(job_id=job_id, namespace=namespace)
            )
        )

    def lines(self, job: RentedJob) -> Iterator[str]:
        """The lines of its log, as they come, to the end of the Job.

        A stream that breaks off is taken up where it ended. When that does not help, the lines end
        before the Job does.

        Raises:
            HubUnavailableError: The Hub does not answer any more; the Job goes on.
        """
        num_seen, num_fruitless, is_over = 0, 0, False
        while num_fruitless < _NUM_LOG_TRIES and not is_over:
            # The client ends a stream that broke off as the Job ended: the next one has the rest.
            is_over = self.look(job.name).stage.is_over
            num_fruitless += 1
            try:
                found = self._api.fetch_job_logs(
                    job_id=job.id, namespace=job.namespace, follow=True
                )
                for number, line in enumerate(found):
                    if number >= num_seen:
                        num_seen, num_fruitless = number + 1, 0
                        yield line
            except (HfHubHTTPError, httpx2.HTTPError):
                is_over = False
                self._call.sleep(_LOOK_SECS)

    def over(self, job: RentedJob) -> RentedJob:
        """The Job once it is over."""
        while not (job := self.look(job.name)).stage.is_over:
            self._call.sleep(_LOOK_SECS)
        return job

    def cancel(self, job: RentedJob) -> None:
        """End a Job; harmless if it is over."""
        self._asked(
            job.namespace,
            lambda: self._api.cancel_job(job_id=job.id, namespace=job.namespace),
        )

    def listed(
        self, namespace: str, labels: Mapping[str, str], stages: Sequence[Stage] | None = None
    ) -> list[RentedJob]:
        """The latest Jobs with these labels, of some stages or of all, the oldest first."""

        def ask() -> list[JobInfo]:
            status = None if stages is None else list(map(str, stages))
            found = self._api.list_jobs(namespace=namespace, labels=dict(labels), status=status)
            return list(islice(found, _MAX_LISTED))

        jobs = map(_job, self._asked(namespace, ask))
        return sorted(jobs, key=lambda job: (job.created_at, job.id))

    def _active(self, namespace: str, labels: Mapping[str, str]) -> list[RentedJob]:
        return self.listed(namespace, labels, ACTIVE)

    def _asked(self, namespace: str, action: Callable[[], T], *, num_tries: int = 3) -> T:
        """The answer to a call about the Jobs of an account; its refusals in our words."""

        def call() -> T:
            try:
                return action()
            except HfHubHTTPError as error:
                if (sentence := _refusal(error, namespace)) is not None:
                    raise HubJobError(sentence) from error
                raise

        return self._call(call, repo=f"the Jobs of {namespace}", num_tries=num_tries)


def _refusal(error: HfHubHTTPError, namespace: str) -> str | None:
    """Why the Hub refuses, and what to do; None where `HubCaller` knows."""
    if isinstance(error, JobNotFoundError):
        return (
            f"There is no such Job in '{namespace}'. Check the id, which is the end of its page's "
            "address, as 'ACCOUNT/ID'."
        )
    status = error.response.status_code
    if status == 402:  # noqa: PLR2004  Payment Required
        return (
            f"'{namespace}' has no credits for Jobs, so nothing was started. Add some at "
            f"{_BILLING}, or name an account that has some with --namespace."
        )
    if status == 403:  # noqa: PLR2004  Forbidden
        return (
            f"The token in use may not start or see Jobs in '{namespace}'. Give it the permission "
            "to start and manage Jobs (job.write) there, or name another account with --namespace."
        )
    if status == 404:  # noqa: PLR2004  Not Found
        return f"'{namespace}' cannot run Jobs on this Hub. Name another account with --namespace."
    if status in {400, 422}:
        return (
            f"The Hub does not take this Job: {error.server_message or 'it says no more'}. The "
            "machine may be gone: try without --flavor."
        )
    return None


def _job(info: JobInfo) -> RentedJob:
    return RentedJob(
        namespace=info.owner.name,
        id=info.id,
        url=info.url,
        stage=Stage(info.status.stage),
        message=info.status.message or "",
        flavor=str(info.flavor or ""),
        running_secs=(info.durations and info.durations.running_secs) or 0,
        created_at=info.created_at or _BEGINNING,
        labels=info.labels or {},
    )
