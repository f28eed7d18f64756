"""Jobs of the local Hub: each really runs, as a process with only its own environment."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
import threading
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from local_hub.hardware import hardware

SCHEDULING, RUNNING = "SCHEDULING", "RUNNING"
NOT_FOUND = 127
COMPLETED, CANCELED, ERROR = "COMPLETED", "CANCELED", "ERROR"
DEFAULT_TIMEOUT_SECS = 1800
LOOK_SECS = 0.02
GRACE_SECS = 5.0
"""Between SIGTERM and SIGKILL, as for a container."""


@dataclass
class Job:
    """One Job; `spec` is what was posted, without the values of its secrets."""

    id: str
    namespace: str
    initiator: str
    spec: dict[str, Any]
    secrets: dict[str, str] = field(repr=False)
    created_at: datetime
    started_at: datetime | None = None
    finished_at: datetime | None = None
    stage: str = SCHEDULING
    message: str | None = None
    lines: list[tuple[datetime, str]] = field(default_factory=list)
    num_attempts: int = 0
    process: subprocess.Popen[str] | None = field(default=None, repr=False)
    wanted_end: tuple[str, str | None] | None = None

    @property
    def is_over(self) -> bool:
        return self.stage not in {SCHEDULING, RUNNING}


class Machines:
    """All Jobs of a Hub, and the machines that they run on.

    Attributes:
        jobs: Id → Job, in the order in which they were started.
        hardware: The machines for rent, in the Hub's form; tests change it.
        credits: Namespace → dollars; a namespace that is not in it may spend as much as it likes.
        programs: Folders that come first in the PATH of every Job, as the programs of its image.
        room: While it is not set, Jobs wait for a machine.
        breaks_logs_after: Lines after which the next stream of logs breaks off, once.
    """

    def __init__(self) -> None:
        self.jobs: dict[str, Job] = {}
        self.hardware = hardware()
        self.credits: dict[str, float] = {}
        self.programs: list[Path] = []
        self.room = threading.Event()
        self.room.set()
        self.breaks_logs_after: int | None = None
        self._lock = threading.Lock()
        self._threads: list[threading.Thread] = []

    def start(self, spec: dict[str, Any], *, namespace: str, initiator: str, endpoint: str) -> Job:
        """Start a Job, which waits for room first.

        Args:
            spec: As the client posts it.
            namespace: The account that pays.
            initiator: The user that starts it.
            endpoint: Address of this Hub.
        """
        secrets = spec.pop("secrets", {})
        now = datetime.now(UTC)
        job = Job(
            # In the order of time, as the Hub's own.
            id=f"{int(now.timestamp()):08x}{len(self.jobs):016x}",
            namespace=namespace,
            initiator=initiator,
            spec=spec,
            secrets=secrets,
            created_at=now,
        )
        self.jobs[job.id] = job
        thread = threading.Thread(target=self._run, args=(job, endpoint), daemon=True)
        self._threads.append(thread)
        thread.start()
        return job

    def end(
        self, job: Job, stage: str, message: str | None = None, *, at_once: bool = False
    ) -> None:
        """End a Job that is not over: a cancel, the timeout, or an eviction (`at_once`)."""
        with self._lock:
            if job.is_over or job.wanted_end is not None:
                return
            job.wanted_end = (stage, message)
            process = job.process
        if process is not None:
            _kill(process, at_once=at_once)

    def stop(self) -> None:
        """End all Jobs, as this Hub ends."""
        for job in self.jobs.values():
            self.end(job, CANCELED, at_once=True)
        for thread in self._threads:
            thread.join()

    def _run(self, job: Job, endpoint: str) -> None:
        while job.wanted_end is None and not self.room.wait(LOOK_SECS):
            pass
        code = 1
        for _ in range(job.spec.get("attempts") or 1):
            if job.wanted_end is not None:
                break
            job.num_attempts += 1
            code = self._attempt(job, endpoint)
            if code == 0:
                break
        with self._lock:
            failed = (ERROR, f"Job failed with exit code: {code}")
            job.stage, job.message = job.wanted_end or ((COMPLETED, None) if code == 0 else failed)
            job.finished_at = datetime.now(UTC)

    def _attempt(self, job: Job, endpoint: str) -> int:
        """Run the command once; its exit code."""
        seconds = job.spec.get("timeoutSeconds") or DEFAULT_TIMEOUT_SECS
        timeout = threading.Timer(seconds, self.end, args=(job, ERROR, "Job timeout"))
        timeout.daemon = True
        with tempfile.TemporaryDirectory(prefix="local-hub-job-") as home:
            with self._lock:
                if job.wanted_end is not None:
                    return 1
                job.started_at = job.started_at or datetime.now(UTC)
                job.stage = RUNNING
                job.lines.append((job.started_at, f"===== Job started at {job.started_at} ====="))
                try:
                    job.process = self._started(job, home, endpoint)
                except OSError as error:
                    job.lines.append((datetime.now(UTC), f"exec: {error.strerror}"))
                    return NOT_FOUND
            timeout.start()
            with job.process as process:
                assert process.stdout is not None
                for line in process.stdout:
                    job.lines.append((datetime.now(UTC), line.rstrip("\n")))
            timeout.cancel()
            _kill(job.process, at_once=True)  # what it left running ends with its container
            return job.process.returncode

    def _started(self, job: Job, home: str, endpoint: str) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [*job.spec["command"], *job.spec.get("arguments", ())],
            env=self._environment(job, home, endpoint),
            cwd=home,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            start_new_session=True,
        )

    def _environment(self, job: Job, home: str, endpoint: str) -> dict[str, str]:
        flavor = next(each for each in self.hardware if each["name"] == job.spec["flavor"])
        places = [*map(str, self.programs), str(Path(sys.executable).parent), "/usr/bin", "/bin"]
        return {
            "PATH": os.pathsep.join(places),
            "HOME": home,
            "TMPDIR": home,
            "LANG": "C.UTF-8",
            # A container of the real Hub needs neither: it has its own network, and Xet.
            "HF_ENDPOINT": endpoint,
            "HF_HUB_DISABLE_XET": "1",
            "JOB_ID": job.id,
            "ACCELERATOR": job.spec["flavor"] if flavor["accelerator"] else "none",
            "CPU_CORES": flavor["cpu"].split()[0],
            "MEMORY": flavor["ram"].replace(" GB", "Gi"),
            **job.spec.get("environment", {}),
            **job.secrets,
        }


def _kill(process: subprocess.Popen[str], *, at_once: bool) -> None:
    """End a process and all that it started in its session."""

    def send(number: int) -> None:
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(process.pid, number)

    send(signal.SIGKILL if at_once else signal.SIGTERM)
    if not at_once:
        last = threading.Timer(GRACE_SECS, send, args=(signal.SIGKILL,))
        last.daemon = True
        last.start()
