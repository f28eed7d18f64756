"""The named endpoints, by the client that programs use."""

from __future__ import annotations

import re
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from gradio_client import Client
from gradio_client.exceptions import AppError

from dynquant.core.job import JobState
from tests.web.scene import NAMESPACE, SOURCE

DOCS = Path(__file__).parents[2] / "docs" / "space.md"

pytestmark = pytest.mark.hub


def submit(client: Client, **overrides) -> dict:
    wanted = {"model": SOURCE, "bits_per_weight": [4.5], **overrides}
    return client.predict(**wanted, api_name="/submit")


def test_only_the_four_named_endpoints_are_public(client):
    found = client.view_api(return_format="dict", print_info=False)
    assert set(found["named_endpoints"]) == {"/plan", "/submit", "/status", "/cancel"}
    assert found["unnamed_endpoints"] == {}


def test_a_plan_says_what_a_target_gives_and_queues_nothing(client, field):
    plan = client.predict(SOURCE, [4.5, 6.0], api_name="/plan")
    assert plan["model"] == SOURCE
    assert 2_000_000 < plan["num_parameters"] < 3_000_000
    assert 2.2 < plan["min_bits_per_weight"] < 3
    assert plan["max_bits_per_weight"] > 15
    four, six = plan["targets"]
    assert four["size_bytes"] == round(4.5 * plan["num_parameters"] / 8) < six["size_bytes"]
    assert four["memory_bytes"] > four["size_bytes"]
    assert not four["is_measured"]
    assert all(job.request.targets_bpw != (4.5, 6.0) for job in field.board.list())


def test_a_job_is_submitted_looked_at_and_cancelled(client, field):
    job = submit(client, model=f"https://huggingface.co/{SOURCE}/tree/main")
    assert (job["state"], job["model"], job["position"]) == ("waiting", SOURCE, 1)
    assert client.predict(job["id"], api_name="/status")["id"] == job["id"]
    stored = field.board.get(job["id"])
    assert stored.request.destination == NAMESPACE
    assert stored.request.requester == "ann"
    assert client.predict(job["id"], api_name="/cancel")["state"] == "cancelled"
    assert field.board.get(job["id"]).state is JobState.CANCELLED


def test_what_is_asked_for_twice_is_one_job(client, field):
    with ThreadPoolExecutor(4) as pool:
        jobs = list(pool.map(lambda _: submit(client, bits_per_weight=[5.1]), range(4)))
    assert len({job["id"] for job in jobs}) == 1
    assert sum(job.request.targets_bpw == (5.1,) for job in field.board.list()) == 1


def test_what_was_cancelled_and_is_asked_for_again_gets_a_new_attempt(client, field):
    job = submit(client, bits_per_weight=[5.2])
    client.predict(job["id"], api_name="/cancel")
    again = submit(client, bits_per_weight=[5.2])
    assert (again["id"], again["state"]) == (job["id"], "waiting")
    assert field.board.get(job["id"]).attempt == 2


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        ({"model": "no model at all"}, "Type one such as 'Qwen/Qwen3-8B'"),
        ({"model": "../../etc/passwd"}, "Type one such as"),
        ({"model": "x" * 100_000}, "Type one such as"),
        ({"model": "team/missing"}, "no model 'team/missing' on the Hub"),
        ({"bits_per_weight": [1.0]}, "cannot be met: with this model anything from about 2"),
        ({"bits_per_weight": [17.0]}, "cannot be met"),
        ({"bits_per_weight": []}, "1 to 32 numbers"),
        ({"bits_per_weight": [4.5] * 40}, "1 to 32 numbers"),
        ({"formats": "9g64"}, "no format '9g64'"),
        ({"destination": "a/b/c"}, "cannot be the id of a repo"),
        ({"notify_url": "file:///etc/passwd"}, "notify_url begins with https://"),
    ],
)
def test_what_makes_no_sense_is_refused_in_a_sentence(client, field, overrides, words):
    before = len(field.board.list())
    with pytest.raises(AppError, match=re.escape(words)):
        submit(client, **overrides)
    assert len(field.board.list()) == before


def test_a_job_that_there_is_not(client):
    with pytest.raises(AppError, match="There is no job 'nonsense'"):
        client.predict("nonsense", api_name="/status")


def test_the_address_to_notify_is_shown_to_nobody(client):
    job = submit(client, bits_per_weight=[5.3], notify_url="https://hooks.example.org/canary")
    assert "canary" not in str(client.predict(job["id"], api_name="/status"))


def test_the_snippet_of_the_documentation_runs(field, capsys):
    blocks = re.findall(r"```python\n(.*?)```", DOCS.read_text(), re.DOTALL)
    code = blocks[0].replace("https://you-dynquant.hf.space", field.url)
    code = code.replace("Qwen/Qwen3-8B", SOURCE).replace(', oauth_token="hf_…"', "")
    exec(compile(code, "docs/space.md", "exec"), {})
    shown = capsys.readouterr().out.split()
    assert shown[-2:] == ["waiting", "cancelled"]
    assert field.board.list()[0].state is JobState.CANCELLED
