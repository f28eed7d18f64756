"""Many open pages of one job: `python -m tests.web.load URL JOB_ID NUM_PAGES SECS`.

Each looks as often as a browser does. Prints how many pages were answered, and how quickly.
"""

from __future__ import annotations

import asyncio
import json
import random
import sys
import time
from statistics import median, quantiles

import httpx

LOOK_SECS = 3.0


async def measure(url: str, job_id: str, num_pages: int, secs: float) -> dict[str, float]:
    latencies, answered = list[float](), set[int]()
    until = time.monotonic() + secs

    async def look(page: int, client: httpx.AsyncClient) -> None:
        seen = ""
        await asyncio.sleep(random.uniform(0, LOOK_SECS))
        while time.monotonic() < until:
            began = time.monotonic()
            answer = await client.get("/live/job", params={"job": job_id, "seen": seen})
            answer.raise_for_status()
            latencies.append(time.monotonic() - began)
            answered.add(page)
            seen = answer.json()["mark"] if answer.content else seen
            await asyncio.sleep(LOOK_SECS)

    limits = httpx.Limits(max_connections=None)
    async with httpx.AsyncClient(base_url=url, timeout=60, limits=limits) as client:
        await asyncio.gather(*(look(page, client) for page in range(num_pages)))
    return {
        "num_pages": len(answered),
        "looks_per_sec": len(latencies) / secs,
        "median_secs": median(latencies),
        "p95_secs": quantiles(latencies, n=20)[-1],
    }


if __name__ == "__main__":
    url, job_id, num_pages, secs = sys.argv[1:]
    found = asyncio.run(measure(url, job_id, int(num_pages), float(secs)))
    sys.stdout.write(json.dumps(found) + "\n")
