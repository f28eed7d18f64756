"""The answers to many open pages; benchmarks/responsiveness.py measures the times."""

from __future__ import annotations

import asyncio
from concurrent.futures import ThreadPoolExecutor

import httpx
import pytest

from dynquant.jobs.job import StepProgress
from tests.waiting import PATIENCE_SECS

pytestmark = [pytest.mark.hub]

NUM_PAGES = 200


def test_two_hundred_open_pages_are_all_answered_and_told_nothing_twice(field):
    job_id = field.submit()
    field.run(job_id, StepProgress(step="measure", fraction=0.5))

    async def looks(client: httpx.AsyncClient) -> tuple[str, bytes]:
        """The first two answers to a page that was just opened."""
        first = await client.get("/live/job", params={"job": job_id})
        mark = first.raise_for_status().json()["mark"]
        again = await client.get("/live/job", params={"job": job_id, "seen": mark})
        return mark, again.raise_for_status().content

    async def all_at_once() -> list[tuple[str, bytes]]:
        # The server closes a connection that was idle for a while, just as a page may ask again.
        limits = httpx.Limits(max_connections=None, max_keepalive_connections=0)
        async with httpx.AsyncClient(
            base_url=field.url, timeout=PATIENCE_SECS, limits=limits
        ) as client:
            return await asyncio.gather(*(looks(client) for _ in range(NUM_PAGES)))

    with ThreadPoolExecutor(1) as pool:  # Playwright leaves a running loop in the tests' own thread
        found = pool.submit(asyncio.run, all_at_once()).result()
    assert len(found) == NUM_PAGES
    assert len({mark for mark, _ in found}) == 1
    assert {again for _, again in found} == {b""}
