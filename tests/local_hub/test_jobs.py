"""Jobs of the local Hub, driven by huggingface_hub's own client; each really runs."""

from __future__ import annotations

from itertools import islice

import pytest
from huggingface_hub import HfApi, JobInfo
from huggingface_hub.errors import HfHubHTTPError, JobNotFoundError

from local_hub import LocalHub
from tests.local_hub.conftest import READ_TOKEN
from tests.waiting import wait_until

pytestmark = pytest.mark.hub

IMAGE = "python:3.12"


def run(api: HfApi, code: str, **options) -> JobInfo:
    options = {"flavor": "t4-small", "timeout": "10m"} | options
    return api.run_job(image=IMAGE, command=["python", "-c", code], **options)


def stage(api: HfApi, job: JobInfo) -> str:
    return str(api.inspect_job(job_id=job.id, namespace=job.owner.name).status.stage)


def over(api: HfApi, job: JobInfo) -> JobInfo:
    return api.wait_for_job(job.id, namespace=job.owner.name, poll_interval=0.02)


def logs(api: HfApi, job: JobInfo) -> list[str]:
    return list(api.fetch_job_logs(job_id=job.id, namespace=job.owner.name, follow=True))


WAITS = "import signal; print('begun', flush=True); signal.pause()"


def test_a_job_runs_its_command_and_its_logs_are_followed_to_the_end(alice: HfApi):
    job = run(alice, "print('one'); print('two')", labels={"by": "test"}, attempts=2)
    assert logs(alice, job) == ["one", "two"]
    ended = over(alice, job)
    assert (ended.status.stage, ended.docker_image, ended.flavor) == (
        "COMPLETED",
        IMAGE,
        "t4-small",
    )
    assert (ended.owner.name, ended.owner.type, ended.retry) == ("alice", "user", 1)
    assert ended.labels is not None
    assert ended.labels["by"] == "test"
    assert ended.durations is not None
    assert ended.durations.running_secs is not None


def test_a_job_has_only_its_own_environment(alice: HfApi, monkeypatch):
    monkeypatch.setenv("OF_THIS_MACHINE", "private")
    job = run(
        alice,
        "import os; print(sorted(os.environ)); print(os.environ['GIVEN'], os.environ['HF_TOKEN'])",
        env={"GIVEN": "plain"},
        secrets={"HF_TOKEN": "hf_of_the_job"},
        flavor="a10g-large",
    )
    names, values = logs(alice, job)
    assert "OF_THIS_MACHINE" not in names
    assert {"JOB_ID", "ACCELERATOR", "CPU_CORES", "MEMORY", "HOME"} <= set(eval(names))
    assert values == "plain hf_of_the_job"


def test_of_secrets_only_the_names_are_shown(alice: HfApi):
    job = run(alice, "pass", secrets={"HF_TOKEN": "hf_of_the_job"})
    assert [*(job.secrets or ())] == ["HF_TOKEN"]
    assert "hf_of_the_job" not in str([job, over(alice, job), *alice.list_jobs(namespace="alice")])


def test_a_command_that_fails_is_tried_as_often_as_was_asked_for(alice: HfApi):
    job = run(alice, "print('tried'); raise SystemExit(3)", attempts=3)
    assert logs(alice, job) == ["tried"] * 3
    status = over(alice, job).status
    assert (status.stage, status.message) == ("ERROR", "Job failed with exit code: 3")


def test_a_command_that_the_image_lacks_fails(alice: HfApi):
    job = alice.run_job(image=IMAGE, command=["no-such-program"], flavor="cpu-basic")
    assert over(alice, job).status.stage == "ERROR"


def test_a_job_is_ended_at_its_timeout(alice: HfApi):
    status = over(alice, run(alice, WAITS, timeout=1)).status
    assert (status.stage, status.message) == ("ERROR", "Job timeout")


def test_a_job_is_cancelled_while_it_waits_for_a_machine_and_while_it_runs(
    hub: LocalHub, alice: HfApi
):
    hub.machines.room.clear()
    waiting = run(alice, WAITS)
    assert stage(alice, waiting) == "SCHEDULING"
    alice.cancel_job(job_id=waiting.id)
    assert over(alice, waiting).status.stage == "CANCELED"
    hub.machines.room.set()
    running = run(alice, WAITS)
    wait_until(lambda: hub.machines.jobs[running.id].lines[1:], "its first line")
    alice.cancel_job(job_id=running.id)
    assert over(alice, running).status.stage == "CANCELED"


def test_an_evicted_job_ends_with_an_error(hub: LocalHub, alice: HfApi):
    job = run(alice, WAITS)
    wait_until(lambda: hub.machines.jobs[job.id].lines[1:], "its first line")
    hub.machines.end(hub.machines.jobs[job.id], "ERROR", "Job evicted", at_once=True)
    status = over(alice, job).status
    assert (status.stage, status.message) == ("ERROR", "Job evicted")


def test_logs_that_break_off_are_taken_up_where_they_ended(hub: LocalHub, alice: HfApi):
    """While the Job runs: of one that is over the client leaves the rest out."""
    hub.machines.breaks_logs_after = 3
    job = run(alice, f"for n in range(6): print(n)\n{WAITS}")
    lines = iter(alice.fetch_job_logs(job_id=job.id, follow=True))
    assert list(islice(lines, 6)) == [str(n) for n in range(6)]
    assert len(hub.asked(r"GET .*/logs")) == 2
    alice.cancel_job(job_id=job.id)


def test_jobs_are_listed_by_stage_and_label_the_latest_first(alice: HfApi):
    first, second = (run(alice, "pass", labels={"number": n}) for n in ("1", "2"))
    over(alice, first), over(alice, second)
    assert [each.id for each in alice.list_jobs(namespace="alice")] == [second.id, first.id]
    found = alice.list_jobs(namespace="alice", labels={"number": "1"}, status="COMPLETED")
    assert [each.id for each in found] == [first.id]
    assert list(alice.list_jobs(namespace="alice", status="RUNNING")) == []
    alice.update_job_labels(job_id=first.id, labels={"number": "3"})
    assert alice.inspect_job(job_id=first.id).labels == {"number": "3"}


def test_hardware_has_prices_per_minute(alice: HfApi):
    found = {each.name: each for each in alice.list_jobs_hardware()}
    assert found["cpu-basic"].accelerator is None
    h200 = found["h200"]
    assert h200.accelerator is not None
    assert (h200.accelerator.vram, h200.unit_label) == ("141 GB", "minute")
    assert (h200.unit_cost_micro_usd, h200.unit_cost_usd) == (83_333, 0.083333)


def test_a_job_for_an_organization_belongs_to_it(alice: HfApi):
    job = run(alice, "pass", namespace="team")
    assert (job.owner.name, job.owner.type) == ("team", "org")
    assert job.initiator is not None
    assert job.initiator.name == "alice"


def test_without_credits_or_rights_nothing_starts(hub: LocalHub, alice: HfApi, bob: HfApi):
    hub.machines.credits["alice"] = 0.0
    with pytest.raises(HfHubHTTPError, match="402"):
        run(alice, "pass")
    for api, namespace in ((alice, "club"), (bob, "alice")):
        with pytest.raises(HfHubHTTPError, match="403"):
            run(api, "pass", namespace=namespace)
    with pytest.raises(HfHubHTTPError, match="403"):
        run(HfApi(endpoint=hub.url, token=READ_TOKEN), "pass", namespace="alice")
    with pytest.raises(HfHubHTTPError, match="Invalid option: 'gone'"):
        run(bob, "pass", flavor="gone")
    assert hub.machines.jobs == {}


def test_a_fine_grained_token_needs_the_permission_for_jobs(hub: LocalHub):
    hub.add_user("carol", token="hf_c", role="fineGrained")
    carol = HfApi(endpoint=hub.url, token="hf_c")
    with pytest.raises(HfHubHTTPError, match=r"job\.write"):
        run(carol, "pass")
    hub.permissions = ("repo.write", "job.write")
    assert over(carol, run(carol, "pass")).status.stage == "COMPLETED"


def test_a_job_of_another_account_is_not_there(alice: HfApi, bob: HfApi):
    job = run(alice, "pass")
    with pytest.raises(JobNotFoundError):
        bob.inspect_job(job_id=job.id)
    with pytest.raises(HfHubHTTPError, match="403"):
        bob.inspect_job(job_id=job.id, namespace="alice")
    over(alice, job)


def test_jobs_end_with_their_hub(talk_to):
    with LocalHub() as hub:
        hub.add_user("alice", token="hf_alice")
        talk_to(hub)
        job = run(HfApi(endpoint=hub.url, token="hf_alice"), WAITS)
        started = hub.machines.jobs[job.id]
        wait_until(lambda: started.process, "its process")
    assert started.process is not None
    assert started.process.returncode is not None
    assert started.stage == "CANCELED"
