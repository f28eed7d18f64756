"""Jobs by dynquant's own adapter: started once, followed, refused in sentences."""

from __future__ import annotations

import threading
from collections.abc import Mapping
from typing import Any

import pytest
from huggingface_hub import HfApi

from dynquant.errors import HubJobError, HubUnavailableError
from dynquant.hub.jobs import HubJobs
from dynquant.rented.job import RentedJob, Stage
from local_hub import LocalHub
from tests.waiting import wait_until

pytestmark = pytest.mark.hub

TOKEN = "hf_canaryCanaryCanary"
LABELS = {"dynquant-request": "c0ffee"}
WAITS = "import signal; print('begun', flush=True); signal.pause()"


@pytest.fixture
def jobs(hub: LocalHub, monkeypatch: pytest.MonkeyPatch, pauses: list[float]) -> HubJobs:
    hub.add_user("you", token=TOKEN, orgs={"team": "write", "club": "read"})
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    return HubJobs(endpoint=hub.url, sleep=pauses.append)


def start(
    jobs: HubJobs, code: str = "print('one'); print('two')", **options: Any
) -> tuple[RentedJob, bool]:
    fixed: dict[str, Any] = {"flavor": "l4x1", "timeout_secs": 600, "namespace": "you"}
    return jobs.start(["python", "-c", code], labels=LABELS, **fixed | options)


def test_a_job_is_started_followed_and_over(jobs: HubJobs):
    job, is_new = start(jobs)
    assert is_new
    assert list(jobs.lines(job)) == ["one", "two"]
    ended = jobs.over(job)
    assert (ended.stage, ended.flavor, ended.namespace) == (Stage.COMPLETED, "l4x1", "you")
    assert ended.url.endswith(f"/jobs/{ended.name}")


@pytest.mark.harden("secrets")
def test_the_token_is_the_jobs_secret_and_in_nothing_that_is_shown(hub: LocalHub, jobs: HubJobs):
    job, _ = start(jobs, "import os, sys; print(os.environ['HF_TOKEN'] == sys.argv[-1])")
    started = hub.machines.jobs[job.id]
    assert started.secrets == {"HF_TOKEN": TOKEN}
    jobs.over(job)
    shown = HfApi(endpoint=hub.url, token=TOKEN).inspect_job(job_id=job.id, namespace="you")
    assert TOKEN not in str([shown, job, started.spec, started.lines])


def test_a_job_has_one_attempt_and_its_timeout(hub: LocalHub, jobs: HubJobs):
    job, _ = start(jobs, timeout_secs=1234)
    spec = hub.machines.jobs[job.id].spec
    assert (spec["attempts"], spec["timeoutSeconds"], spec["flavor"]) == (1, 1234, "l4x1")


def test_the_same_request_is_not_started_again_while_its_job_runs(hub: LocalHub, jobs: HubJobs):
    first, _ = start(jobs, WAITS)
    second, is_new = start(jobs, WAITS)
    assert (second.id, is_new) == (first.id, False)
    jobs.cancel(first)
    assert jobs.over(first).stage is Stage.CANCELED
    third, is_new = start(jobs)
    assert is_new
    assert third.id != first.id
    assert len(hub.machines.jobs) == 2


@pytest.mark.harden("network")
@pytest.mark.parametrize("action", ["reset", "status"])
def test_a_lost_answer_starts_no_second_job(hub: LocalHub, jobs: HubJobs, action):
    hub.fail(r"^POST /api/jobs/you$", action=action, after=True, times=1)
    job, is_new = start(jobs, WAITS)
    assert is_new
    assert [*hub.machines.jobs] == [job.id]


@pytest.mark.harden("network")
def test_a_hub_that_does_not_take_the_call_is_told_and_nothing_runs(hub: LocalHub, jobs: HubJobs):
    hub.fail(r"^POST /api/jobs/you$", status=500)
    with pytest.raises(HubUnavailableError):
        start(jobs)
    assert hub.machines.jobs == {}
    assert len(hub.asked(r"^POST /api/jobs/you$")) == 1


def test_of_two_programs_that_start_at_once_one_job_stays(hub: LocalHub, jobs: HubJobs):
    """Both look before either has started."""
    looked = threading.Barrier(2)

    class Together(HubJobs):
        has_looked = False

        def _active(self, namespace: str, labels: Mapping[str, str]) -> list[RentedJob]:
            found = super()._active(namespace, labels)
            if not self.has_looked:
                self.has_looked = True
                looked.wait()
            return found

    found: list[tuple[RentedJob, bool]] = []

    def program() -> None:
        found.append(start(Together(endpoint=hub.url, sleep=lambda _: None), WAITS))

    threads = [threading.Thread(target=program) for _ in range(2)]
    for each in threads:
        each.start()
    for each in threads:
        each.join()
    assert len({job.id for job, _ in found}) == 1
    assert sorted(is_new for _, is_new in found) == [False, True]
    active = [each for each in hub.machines.jobs.values() if each.wanted_end is None]
    assert [each.id for each in active] == [found[0][0].id]


def test_logs_that_break_off_are_taken_up_where_they_ended(hub: LocalHub, jobs: HubJobs):
    hub.fail(r"GET .*/logs$", status=502, times=2)
    hub.machines.breaks_logs_after = 2
    job, _ = start(jobs, "for n in range(5): print(n)")
    assert list(jobs.lines(job)) == [str(n) for n in range(5)]


def test_without_logs_the_end_is_still_told(hub: LocalHub, jobs: HubJobs):
    hub.fail(r"GET .*/logs$", status=502)
    job, _ = start(jobs)
    assert list(jobs.lines(job)) == []
    assert jobs.over(job).stage is Stage.COMPLETED


def test_an_eviction_and_a_timeout_are_ends_with_the_hubs_words(hub: LocalHub, jobs: HubJobs):
    job, _ = start(jobs, WAITS)
    wait_until(lambda: hub.machines.jobs[job.id].lines[1:], "its first line")
    hub.machines.end(hub.machines.jobs[job.id], "ERROR", "Job evicted", at_once=True)
    ended = jobs.over(job)
    assert (ended.stage, ended.message) == (Stage.ERROR, "Job evicted")
    late, _ = start(jobs, WAITS, timeout_secs=1)
    assert jobs.over(late).message == "Job timeout"


def test_prices_and_sizes_of_machines_are_read(jobs: HubJobs):
    found = {each.name: each for each in jobs.flavors()}
    assert found["l4x1"].micro_usd_per_minute == 13_333
    assert found["a100x4"].gpu_bytes == 80 * 10**9  # of one of the four
    assert (found["cpu-xl"].gpu, found["cpu-xl"].gpu_bytes) == ("", 0)


def test_a_price_by_another_unit_is_not_taken_for_a_minutes(hub: LocalHub, jobs: HubJobs):
    hub.machines.hardware[0]["unitLabel"] = "hour"
    hub.machines.hardware[1]["unitCostMicroUSD"] = None
    names = {each["name"] for each in hub.machines.hardware[:2]}
    assert names.isdisjoint(each.name for each in jobs.flavors())


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"namespace": "broke"}, "'broke' has no credits for Jobs"),
        ({"namespace": "club"}, "may not start or see Jobs in 'club'"),
        ({"flavor": "gone"}, "does not take this Job: flavor: Invalid option: 'gone'"),
    ],
)
def test_why_nothing_was_started_is_told(hub: LocalHub, jobs: HubJobs, options, words):
    hub.orgs["you"]["broke"] = "write"
    hub.machines.credits["broke"] = 0.0
    with pytest.raises(HubJobError, match=words):
        start(jobs, **options)
    assert hub.machines.jobs == {}


def test_without_a_token_the_sentence_says_how_to_get_one(hub: LocalHub, jobs, monkeypatch):
    monkeypatch.delenv("HF_TOKEN")
    with pytest.raises(HubJobError, match="hf auth login"):
        start(jobs)


def test_a_job_that_is_not_there_is_told(jobs: HubJobs):
    with pytest.raises(HubJobError, match="There is no such Job in 'you'"):
        jobs.look("you/687fb701029421ae5549d998")
    with pytest.raises(HubJobError, match="may not start or see Jobs in 'other'"):
        jobs.look("other/687fb701029421ae5549d998")
