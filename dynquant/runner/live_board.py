"""Posts the board to the Space: a snapshot by HTTPS every few seconds, kept in memory there.

The Space may sleep, restart or be unreachable; jobs do not depend on it.
"""

from __future__ import annotations

import json
import logging
import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict
from typing import Any

import httpx2

from dynquant.errors import DynquantError
from dynquant.jobs.job import Job
from dynquant.jobs.job_text import job_to_text
from dynquant.jobs.ports import RunnerStatus
from dynquant.model.naming import is_ours
from dynquant.watch.public import num_running, public_jobs
from dynquant.watch.status import WatchRequests, requests_from_json

__all__ = ["LiveBoard", "board_snapshot"]

_MAX_JOBS = 500
_MAX_JOBS_BYTES = 2_000_000
_MAX_TEXT = 500
_MAX_ANSWER_BYTES = 500_000
"""Of a Space's answer, which names at most a thousand repos."""

_TIMEOUT_SECS = 10.0
_LONGEST_DELAY_SECS = 60.0
"""Between two tries while the Space does not answer."""
_STOP_SECS = 1.0
"""How long a stopping runner waits for a post that is under way."""

_SILENCE_SECS = 60
"""Silence is shown in whole minutes, so that unchanged snapshots are equal."""

_logger = logging.getLogger(__name__)


def board_snapshot(jobs: Sequence[Job], runners: Iterable[RunnerStatus]) -> dict[str, Any]:
    """The board for the Space: JSON types of bounded size, without private jobs and addresses.

    Args:
        jobs: The latest first. Ended jobs come last, and are left out if not all fit. Private jobs
            are left out and not counted.
        runners: Every runner that ever registered.
    """
    shown: list[dict[str, Any]] = []
    num_bytes = 0
    public = public_jobs(jobs)
    for job in sorted(public, key=lambda job: job.is_over):
        entry = _entry(job)
        entry_bytes = len(json.dumps(entry))
        if len(shown) < _MAX_JOBS and num_bytes + entry_bytes <= _MAX_JOBS_BYTES:
            shown.append(entry)
            num_bytes += entry_bytes
    return {
        "jobs": shown,
        "num_jobs_left_out": len(public) - len(shown),
        "runners": [
            asdict(runner)
            | {
                "silent_secs": int(runner.silent_secs // _SILENCE_SECS) * _SILENCE_SECS,
                "num_running": num_running(public, runner.id),
            }
            for runner in runners
        ],
    }


class LiveBoard:
    """Posts snapshots from a thread of its own, from entering to leaving the context."""

    def __init__(
        self,
        url: str,
        secret: str,
        runner_id: str,
        snapshot: Callable[[], Mapping[str, Any]],
        *,
        on_requests: Callable[[WatchRequests], None] | None = None,
        interval_secs: float = 5.0,
        repeat_secs: float = 60.0,
    ) -> None:
        """Post the result of `snapshot` to `url`/runner/board.

        Args:
            url: Of the Space.
            secret: Authenticates the runner at the Space.
            runner_id: Name of this runner.
            snapshot: Called in the thread; JSON types.
            on_requests: Called, in the thread, with what the Space asks for in its answers.
            interval_secs: Between two snapshots.
            repeat_secs: Between two posts when nothing changes: a restarted Space knows nothing.
        """
        self._url = f"{url.rstrip('/')}/runner/board"
        self._headers = {"Content-Type": "application/json", "Authorization": f"Bearer {secret}"}
        self._runner_id = runner_id
        self._snapshot = snapshot
        self._on_requests = on_requests
        self._interval_secs = interval_secs
        self._repeat_secs = repeat_secs
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="live-board", daemon=True)
        self._shown = b""
        self._due = 0.0
        self._is_shown = False
        self._troubles: set[str] = set()

    def __enter__(self) -> LiveBoard:
        self._thread.start()
        return self

    def __exit__(self, *_exc: object) -> None:
        self._stopping.set()
        self._thread.join(_STOP_SECS)

    def _run(self) -> None:
        delay_secs = self._interval_secs
        # The secret is for this address only, so no redirect is followed.
        with httpx2.Client(
            headers=self._headers, timeout=_TIMEOUT_SECS, follow_redirects=False
        ) as client:
            while not self._stopping.is_set():
                trouble = self._show(client)
                if trouble is not None:
                    self._tell(trouble)
                    longer_secs = min(2 * delay_secs, _LONGEST_DELAY_SECS)
                    delay_secs = longer_secs if trouble else self._interval_secs
                self._stopping.wait(delay_secs)

    def _show(self, client: httpx2.Client) -> str | None:
        """Why the post failed; empty if it succeeded, None if the board has not changed."""
        try:
            body = json.dumps({"runner_id": self._runner_id, **self._snapshot()}).encode()
        except Exception as error:  # the thread must survive any error there
            _logger.debug("The board could not be read", exc_info=error)
            return f"it cannot be read ({type(error).__name__})."
        if body == self._shown and time.monotonic() < self._due:
            return None
        trouble = self._post(client, body)
        if not trouble:
            self._shown, self._due = body, time.monotonic() + self._repeat_secs
        return trouble

    def _post(self, client: httpx2.Client, body: bytes) -> str:
        """Why the post failed; empty if it succeeded."""
        try:
            with client.stream("POST", self._url, content=body) as response:
                answer = _whole(response) if response.is_success else b""
        except httpx2.HTTPError as error:
            return f"the Space does not answer ({type(error).__name__}). Check that it is running."
        status = response.status_code
        if response.is_success:
            if self._on_requests is not None and answer != b"":
                self._carry_out(self._on_requests, answer)
            return ""
        if status in {httpx2.codes.UNAUTHORIZED, httpx2.codes.FORBIDDEN}:
            return "the Space refuses it. Set DYNQUANT_SPACE_SECRET to the Space's secret."
        if status == httpx2.codes.NOT_FOUND:
            return "the Space has no page for it. Check DYNQUANT_SPACE_URL."
        return f"the Space answers with status {status}. Look at its log."

    def _carry_out(self, run: Callable[[WatchRequests], None], answer: bytes | None) -> None:
        try:
            run(requests_from_json(json.loads(answer or b"")))
        except DynquantError as error:
            _logger.warning("A request of the Space to the watcher failed: %s", error)
        except (ValueError, TypeError, KeyError, RecursionError):
            _logger.warning("The Space's requests cannot be read. Run the same version there.")

    def _tell(self, trouble: str) -> None:
        """Log once that the Space shows the board, and once each reason why it does not."""
        if trouble:
            if trouble not in self._troubles:
                _logger.warning("The board of this runner is not shown: %s", trouble)
            self._troubles.add(trouble)
            self._is_shown = False
        elif not self._is_shown:
            _logger.info("The Space shows the board of this runner.")
            self._troubles.clear()
            self._is_shown = True


def _whole(response: httpx2.Response) -> bytes | None:
    """The body of an answer; None if it is too long, which is not read to its end."""
    answer = bytearray()
    for part in response.iter_bytes(_MAX_ANSWER_BYTES):
        answer += part
        if len(answer) > _MAX_ANSWER_BYTES:
            return None
    return bytes(answer)


def _entry(job: Job) -> dict[str, Any]:
    entry: dict[str, Any] = json.loads(job_to_text(job))
    del entry["request"]["notify_url"]
    if is_ours(job.request.requester):  # they may name files and texts of this machine
        entry["request"]["options"] = {}
    entry |= {"position": job.position, "eta_secs": job.eta_secs}
    cut: dict[str, Any] = _cut(entry)
    return cut


def _cut(value: Any) -> Any:
    """`value` with long texts shortened."""
    if isinstance(value, str):
        return value if len(value) <= _MAX_TEXT else value[: _MAX_TEXT - 1] + "…"
    if isinstance(value, list):
        return [_cut(each) for each in value]
    if isinstance(value, dict):
        return {name: _cut(each) for name, each in value.items()}
    return value
