"""`make soak`: watcher, runner and pages under load for a while; their resources have to stay flat.

Everything runs as a person starts it: `app.py` with a runner beside it, which watches a local Hub.
Tiny models appear there faster than they can be converted, each with weights of its own, since the
watcher takes the same weights once. They are queued by the watcher and by a visitor, converted by
real MLX, two at a time, and published, while visitors look at the pages. Texts take
most of the time of so small a model, so they are short; then the start of its processes does.

Printed is the slope per hour of what each process holds, by the median of the slopes between all
pairs of samples (Theil and Sen), over what is left when a warm-up is taken off, in which caches
fill. The cost of the warm-up is between the columns `start` and `begin`; `late` is the slope
of the second half of the rest, which is smaller where something only fills up.
"""

from __future__ import annotations

import argparse
import io
import itertools
import os
import random
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager, suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path

import httpx2
import numpy as np
import psutil

from dynquant.jobs.board import DatabaseBoard
from local_hub import LocalHub
from tests.waiting import PATIENCE_SECS
from tests.watch.scene import card, stamp
from tests.web.children import ROOT
from tests.web.offline import SOURCE, USER, environment, offline_hub

SAMPLE_SECS = 3.0
WARM_UP = 0.4
"""Share of the time in which caches fill and nothing is counted."""
LOOK_SECS, ASK_SECS, UPLOAD_SECS = 0.2, 4.0, 8.0
"""Pauses; without any, the pages would leave no core to the conversions."""
NUM_DOCUMENTS = 2
"""Of each text: ten windows and some more."""
MIN_PER_MINUTE = 1.0
"""Models published; with less nothing was under load."""

RULES = f"""look_back_hours: 24
min_parameters: 1K
rules:
  - name: all
    authors: [tiny]
    bpw: [4.5]
    destination: {USER}
    max_per_sweep: 8
"""


@dataclass(frozen=True)
class Bound:
    """The bound of a flat line: a slope per hour, or a growth within the noise of a short run."""

    per_hour: float
    noise: float


BOUNDS = {
    "MB": Bound(per_hour=30.0, noise=12.0),
    "files": Bound(per_hour=20.0, noise=4.0),
    "threads": Bound(per_hour=12.0, noise=4.0),
    "children": Bound(per_hour=12.0, noise=4.0),
    "disk MB": Bound(per_hour=120.0, noise=6.0),
}


@dataclass
class Watched:
    """Samples of what a process, or the disk, holds: unit → (seconds, amount)."""

    name: str
    read: Callable[[], dict[str, float]]
    samples: dict[str, list[tuple[float, float]]] = field(default_factory=dict)

    def sample(self, at_secs: float) -> None:
        with suppress(psutil.Error):
            for unit, amount in self.read().items():
                self.samples.setdefault(unit, []).append((at_secs, amount))


def slope_per_hour(samples: Sequence[tuple[float, float]]) -> float:
    """Median slope between pairs of samples; a few odd samples do not matter."""
    pairs = itertools.combinations(samples, 2)
    slopes = [(b - a) / (t - s) for (s, a), (t, b) in pairs if t > s]
    return 3600.0 * statistics.median(slopes) if slopes else 0.0


def is_flat(samples: Sequence[tuple[float, float]], bound: Bound) -> bool:
    """Whether it grows no faster than `bound` allows."""
    slope = slope_per_hour(samples)
    grown = slope * (samples[-1][0] - samples[0][0]) / 3600.0
    return slope <= bound.per_hour or grown <= bound.noise


def judged(watched: Sequence[Watched], *, secs: float) -> tuple[list[str], bool]:
    """A line for each thing that was watched, and whether all are flat."""
    titles = "".join(f"{name:>9} " for name in ("start", "begin", "end", "per hour", "late"))
    lines, good = [f"{'':10} {'unit':8} {titles} bound"], True
    for each in watched:
        for unit, samples in each.samples.items():
            late = [sample for sample in samples if sample[0] >= WARM_UP * secs]
            bound = BOUNDS[unit]
            if len(late) < 2:
                lines.append(f"{each.name:10} {unit:8} was not seen after the warm-up")
                good = False
                continue
            flat = is_flat(late, bound)
            good &= flat
            amounts = [
                *(statistics.median(x for _, x in p) for p in (samples[:9], late[:9], late[-9:])),
                *(slope_per_hour(part) for part in (late, late[len(late) // 2 :])),
            ]
            lines.append(
                f"{each.name:10} {unit:8} {''.join(f'{x:9.1f} ' for x in amounts)} "
                f"{bound.per_hour:g} per hour, or {bound.noise:g} in all"
                + ("" if flat else "  NOT FLAT")
            )
    return lines, good


def of_process(process: psutil.Process) -> dict[str, float]:
    """Memory, files and threads of a process, without its children."""
    with process.oneshot():
        return {
            "MB": process.memory_info().rss / 1e6,
            "files": process.num_fds(),
            "threads": process.num_threads(),
            "children": len(process.children()),
        }


def of_disk(folder: Path) -> dict[str, float]:
    """Sizes on disk: databases, logs, caches, temporary files, unfinished models."""
    total = 0
    for root, _, names in os.walk(folder):
        for name in names:
            with suppress(OSError):
                total += (Path(root) / name).lstat().st_size
    return {"disk MB": total / 1e6}


class Load:
    """Visitors and uploads; `counts` says what they did."""

    def __init__(self, hub: LocalHub, url: str, files: dict[str, bytes]) -> None:
        self._hub = hub
        self._url = url
        self._files = files
        self._stopping = threading.Event()
        self.counts: Counter[str] = Counter()
        self._jobs: list[str] = []

    @contextmanager
    def running(self) -> Iterator[None]:
        threads = [
            threading.Thread(target=self._repeat, args=each)
            for each in (
                (self._look, LOOK_SECS),
                (self._look, LOOK_SECS),
                (self._ask, ASK_SECS),
                (self._upload, UPLOAD_SECS),
            )
        ]
        for thread in threads:
            thread.start()
        try:
            yield
        finally:
            self._stopping.set()
            for thread in threads:
                thread.join()

    def _repeat(self, act: Callable[[httpx2.Client, random.Random], None], pause: float) -> None:
        with httpx2.Client(base_url=self._url, timeout=PATIENCE_SECS) as client:
            chance = random.Random(act.__name__)
            while not self._stopping.wait(pause):
                try:
                    act(client, chance)
                except httpx2.HTTPError as error:
                    self.counts[f"broken: {type(error).__name__}"] += 1

    def _look(self, client: httpx2.Client, chance: random.Random) -> None:
        job = chance.choice(self._jobs[-20:]) if self._jobs else ""
        path = chance.choice(
            ["/live/board", f"/live/job?job={job}", "/live/board?state=over", "/", "/board"]
        )
        self._count("looks", client.get(path))

    def _ask(self, client: httpx2.Client, chance: random.Random) -> None:
        bpw = chance.choice([3.5, 4.0, 4.5, 5.0, 6.0])
        names = [repo for kind, repo in list(self._hub.repos) if repo.startswith("tiny/")]
        model = chance.choice(names or [SOURCE])
        call = {"data": [model, [bpw], 4096]}
        self._count("plans", client.post("/gradio_api/run/plan", json=call))
        call = {"data": ["tiny/none", [bpw], 4096]}
        self._count("refusals", client.post("/gradio_api/run/plan", json=call))
        if not self._is_one_open(client):  # people go first: the watcher's jobs would never run
            call = {"data": [model, [bpw], "", "", False, ""]}
            answer = client.post("/gradio_api/run/submit", json=call)
            self._count("orders", answer)
            if answer.status_code == 200:
                self._jobs.append(answer.json()["data"][0]["id"])

    def _is_one_open(self, client: httpx2.Client) -> bool:
        call = {"data": self._jobs[-1:]}
        if not self._jobs:
            return False
        answer = client.post("/gradio_api/run/status", json=call)
        return answer.status_code == 200 and not answer.json()["data"][0]["is_over"]

    def _upload(self, _: httpx2.Client, __: random.Random) -> None:
        number = self.counts["uploads"]
        self.counts["uploads"] += 1
        now = stamp(datetime.now(UTC))
        files = self._files | {
            "model.safetensors": other_weights(self._files["model.safetensors"], number),
            "README.md": card() + f"Number {number}\n".encode(),
        }
        self._hub.add(f"tiny/model-{number}", files, created_at=now, last_modified=now)

    def _count(self, what: str, answer: httpx2.Response) -> None:
        self.counts[what if answer.status_code < 500 else f"{what} with {answer.status_code}"] += 1


def tiny_model() -> dict[str, bytes]:
    """Files of a model of one block."""
    from tests.quant.mlx.factories import save_model

    with tempfile.TemporaryDirectory() as folder:
        saved = save_model(Path(folder) / "model", num_hidden_layers=1)
        return {path.name: path.read_bytes() for path in saved.iterdir()}


def other_weights(content: bytes, number: int) -> bytes:
    """A safetensors file of 16-bit weights, with the last bit of each as `number` has it."""
    start = 8 + int.from_bytes(content[:8], "little")
    weights = np.frombuffer(content, dtype=np.uint16, offset=start)
    bits = np.random.default_rng(number).integers(0, 2, weights.size, dtype=np.uint16)
    return content[:start] + (weights & 0xFFFE | bits).tobytes()


@contextmanager
def started(hub: LocalHub, folder: Path) -> Iterator[tuple[str, psutil.Process, psutil.Process]]:
    """The pages' address, their process and that of their runner."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    (folder / "watch.yaml").write_text(RULES)
    (folder / "tmp").mkdir()
    variables = environment(
        hub,
        folder,
        GRADIO_SERVER_PORT=str(port),
        DYNQUANT_WATCH_CONFIG=str(folder / "watch.yaml"),
        DYNQUANT_WATCH_CRON="* * * * *",
        DYNQUANT_CACHE_DIR=str(folder / "cache"),
        DYNQUANT_CACHE_GB="0.003",
        DYNQUANT_CONCURRENCY="2",
        TMPDIR=str(folder / "tmp"),
        OPENBLAS_NUM_THREADS="1",
    )
    url = f"http://127.0.0.1:{port}"
    command = [sys.executable, "app.py"]
    with (
        (folder / "soak.log").open("wb") as log,
        subprocess.Popen(command, cwd=ROOT, env=variables, stdout=log, stderr=log) as pages,
    ):
        try:
            process = psutil.Process(pages.pid)
            until = time.monotonic() + PATIENCE_SECS
            while time.monotonic() < until:
                with suppress(httpx2.HTTPError, StopIteration):
                    httpx2.get(url, timeout=5)
                    runner = next(each for each in process.children() if "runner" in each.cmdline())
                    break
                time.sleep(0.2)
            else:
                raise TimeoutError((folder / "soak.log").read_text()[-3000:])
            yield url, process, runner
        finally:
            pages.terminate()
            pages.wait(PATIENCE_SECS)


def soak(minutes: float, out: io.TextIOBase) -> bool:
    """Load everything for `minutes`; whether it stayed flat."""
    with ExitStack() as exits:
        folder = Path(exits.enter_context(tempfile.TemporaryDirectory()))
        hub = exits.enter_context(offline_hub(num_documents=NUM_DOCUMENTS))
        url, pages, runner = exits.enter_context(started(hub, folder))
        watched = [
            Watched("pages", lambda: of_process(pages)),
            Watched("runner", lambda: of_process(runner)),
            Watched("disk", lambda: of_disk(folder)),
        ]
        load = Load(hub, url, tiny_model())
        started_at = time.monotonic()
        with load.running():
            while (at_secs := time.monotonic() - started_at) < 60 * minutes:
                for each in watched:
                    each.sample(at_secs)
                time.sleep(SAMPLE_SECS)
        lines, good = judged(watched, secs=60 * minutes)
        bad = [what for what in load.counts if " with " in what or "broken" in what]
        alive = pages.is_running() and runner.is_running()
        with closing(DatabaseBoard(f"sqlite:///{folder / 'home' / 'jobs.sqlite'}")) as board:
            ends = Counter(job.state.value for job in board.list(limit=10_000))
        disk = {each.name: of_disk(each)["disk MB"] for each in folder.iterdir() if each.is_dir()}
    num_repos = sum(repo.startswith(f"{USER}/") for _, repo in list(hub.repos))
    is_loaded = num_repos >= MIN_PER_MINUTE * minutes
    is_well = not bad and not ends.keys() & {"failed", "refused", "cancelled"}
    warm_up = WARM_UP * minutes
    out.write("\n".join(lines) + "\n")
    out.write(f"slopes are of minutes {warm_up:g} to {minutes:g}; what is before is the warm-up\n")
    out.write(f"{minutes:g} min: {dict(load.counts)}\njobs: {dict(ends)}; {num_repos} published\n")
    out.write("on disk, MB: " + ", ".join(f"{k} {v:.1f}" for k, v in sorted(disk.items())) + "\n")
    if not is_loaded:
        out.write(f"That was no load: {MIN_PER_MINUTE:g} model a minute has to be published.\n")
    return good and is_loaded and is_well and alive


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--minutes", type=float, default=30.0)
    sys.exit(0 if soak(parser.parse_args().minutes, sys.stdout) else 1)  # type: ignore[arg-type]
