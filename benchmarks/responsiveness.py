"""Waiting times for the pages and for a cancel, each beside its lower bound.

- The start of the pages, beside importing Gradio alone (CPU seconds).
- A page that looks at a job while 200 others do, beside one that is alone.
- Ending a child that computes, with the process that it started, beside starting Python.

    python -m benchmarks.responsiveness
"""

from __future__ import annotations

import asyncio
import os
import random
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median, quantiles

import httpx

from dynquant.errors import DynquantError
from dynquant.jobs.job import StepProgress
from dynquant.runner.child_process import ChildCancelledError, run_child
from dynquant.sandbox import clean_environment
from tests.web.scene import opened

ROUNDS = 5
NUM_PAGES, LOOK_SECS, SECS = 200, 3.0, 12.0

GRADIO = "import gradio"
PAGES = """
import gradio, os, app
from dynquant.settings import Settings
from dynquant.web.settings import WebSettings
app.make_app(Settings.from_environment(os.environ), WebSettings.from_environment(os.environ))
"""
COMPUTING = """
import subprocess, sys, time
subprocess.Popen([sys.executable, "-c", "import time; time.sleep(3600)"])
print("computing", flush=True)
time.sleep(3600)
"""


def main() -> None:
    gradio = median(cpu_secs(GRADIO) for _ in range(ROUNDS))
    pages = median(cpu_secs(PAGES) for _ in range(ROUNDS))
    print(
        f"start: importing Gradio {gradio:.2f} s of CPU, with the pages {pages / gradio:.2f} of it"
    )
    alone, together = asyncio.run(look_at_a_job())
    print(
        f"a look at a job: {1000 * median(alone):.0f} ms alone; with {NUM_PAGES} pages "
        f"{1000 * median(together):.0f} ms, "
        f"95 % under {1000 * quantiles(together, n=20)[-1]:.0f} ms"
    )
    python = median(wall_secs(start_python) for _ in range(ROUNDS))
    cancel = median(cancel_secs() for _ in range(ROUNDS))
    print(
        f"a cancel: {cancel:.2f} s until the child is gone, {cancel / python:.1f} starts of Python"
    )


def cpu_secs(code: str) -> float:
    """CPU seconds of a process that runs `code`."""
    with tempfile.TemporaryDirectory() as home:
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        subprocess.run(
            [sys.executable, "-c", code],
            env=os.environ | {"DYNQUANT_HOME": home},
            stdout=subprocess.DEVNULL,
            check=True,
        )
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def wall_secs(work: Callable[[], object]) -> float:
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


def start_python() -> None:
    subprocess.run([sys.executable, "-c", ""], check=True)


def cancel_secs() -> float:
    """Seconds from the cancel of a child, as soon as it computes, until it is gone."""
    cancelled_at: list[float] = []
    with tempfile.TemporaryDirectory() as folder:
        home = Path(folder)
        try:
            run_child(
                [sys.executable, "-c", COMPUTING],
                environment=clean_environment(home, {}),
                folder=home,
                on_line=lambda _: cancelled_at.append(time.perf_counter()),
                is_cancelled=lambda: bool(cancelled_at),
            )
        except ChildCancelledError:
            return time.perf_counter() - cancelled_at[0]
    raise DynquantError("the child ended by itself")


async def look_at_a_job() -> tuple[list[float], list[float]]:
    """Seconds that each look took: of one page alone, and of many at once."""
    with tempfile.TemporaryDirectory() as folder, opened(Path(folder)) as field:
        job_id = field.submit()
        field.run(job_id, StepProgress(step="measure", fraction=0.5))
        limits = httpx.Limits(max_connections=None)
        async with httpx.AsyncClient(base_url=field.url, timeout=60, limits=limits) as client:

            async def page(until: float, pause_secs: float, found: list[float]) -> None:
                seen = ""
                await asyncio.sleep(random.uniform(0, pause_secs))
                while time.monotonic() < until:
                    began = time.perf_counter()
                    answer = await client.get("/live/job", params={"job": job_id, "seen": seen})
                    answer.raise_for_status()
                    found.append(time.perf_counter() - began)
                    seen = answer.json()["mark"] if answer.content else seen
                    await asyncio.sleep(pause_secs)

            alone, together = list[float](), list[float]()
            await page(time.monotonic() + SECS / 4, LOOK_SECS / 10, alone)
            until = time.monotonic() + SECS
            await asyncio.gather(*(page(until, LOOK_SECS, together) for _ in range(NUM_PAGES)))
    return alone, together


if __name__ == "__main__":
    main()
