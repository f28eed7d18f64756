"""The named endpoints, by the client that programs use."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from pathlib import Path

import pytest
import requests
from gradio_client import Client
from gradio_client.exceptions import AppError

from dynquant.jobs.job import JobState, Outcome
from tests.waiting import PATIENCE_SECS
from tests.web.scene import NAMESPACE, SAMPLE, SOURCE, Field, make_family, opened, publish

DOCS = Path(__file__).parents[2] / "docs" / "space.md"

pytestmark = pytest.mark.hub


def submit(client: Client, **overrides) -> dict:
    wanted = {"model": SOURCE, "bits_per_weight": [4.5], **overrides}
    return client.predict(**wanted, api_name="/submit")


@pytest.mark.harden("web")
def test_only_the_four_named_endpoints_are_public(client):
    found = client.view_api(return_format="dict", print_info=False)
    assert set(found["named_endpoints"]) == {"/plan", "/submit", "/status", "/cancel"}
    assert found["unnamed_endpoints"] == {}


def test_over_http_there_are_exactly_the_four_and_all_else_is_private(field):
    listed = requests.get(f"{field.url}/gradio_api/info", timeout=PATIENCE_SECS).json()
    assert set(listed["named_endpoints"]) == {"/plan", "/submit", "/status", "/cancel"}
    assert listed["unnamed_endpoints"] == {}
    handlers = requests.get(f"{field.url}/config", timeout=PATIENCE_SECS).json()["dependencies"]
    public = {each["api_name"] for each in handlers if each["api_visibility"] != "private"}
    assert public == {"plan", "submit", "status", "cancel"}
    assert len(handlers) > 10


def test_programs_with_mcp_have_the_same_four_as_tools(tmp_path):
    with opened(tmp_path, mcp_server=True) as field:
        wanted = {"model": SOURCE, "bits_per_weight": [4.5]}
        plan = call_mcp(field.url, "tools/call", name="plan", arguments=wanted)
        tools = call_mcp(field.url, "tools/list")["tools"]
    assert [tool["name"] for tool in tools] == ["plan", "submit", "status", "cancel"]
    arguments = {tool["name"]: set(tool["inputSchema"]["properties"]) for tool in tools}
    assert arguments["cancel"] == {"job_id"}
    assert "token" not in arguments["submit"]
    assert f"'model': '{SOURCE}'" in plan["content"][0]["text"]


def call_mcp(url: str, method: str, **params) -> dict:
    answer = requests.post(
        f"{url}/gradio_api/mcp/",
        json={"jsonrpc": "2.0", "id": 1, "method": method, "params": params},
        headers={"Accept": "application/json, text/event-stream"},
        timeout=PATIENCE_SECS,
    )
    line = next(line for line in answer.text.splitlines() if line.startswith("data: "))
    return json.loads(line.removeprefix("data: "))["result"]


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
        ({"bits_per_weight": [1.0]}, "cannot be met: this model allows about 2"),
        ({"bits_per_weight": [17.0]}, "cannot be met"),
        ({"bits_per_weight": []}, "1 to 32 numbers"),
        ({"bits_per_weight": [4.5] * 10_000}, "1 to 32 numbers"),
        ({"bits_per_weight": ["four"]}, "must be a list of numbers"),
        ({"bits_per_weight": {"a": 1}}, "must be a list of numbers"),
        ({"formats": "4g64"}, "allows about 4.51 to 4.51"),
        ({"formats": "x" * 100_000}, "list of formats is too long"),
        ({"calibration": "../secrets.txt"}, "no calibration set '../secrets.txt'"),
        ({"destination": "a" * 100_000}, "cannot be the id of a repo"),
        ({"notify_url": "https://x.org/" + "a" * 100_000}, "notify_url"),
        ({"formats": "9g64"}, "no format '9g64'"),
        ({"destination": "a/b/c"}, "cannot be the id of a repo"),
        ({"notify_url": "file:///etc/passwd"}, "has to begin with https://"),
    ],
)
def test_what_makes_no_sense_is_refused_in_a_sentence(client, field, overrides, words):
    before = len(field.board.list())
    with pytest.raises(AppError, match=re.escape(words)) as refusal:
        submit(client, **overrides)
    assert len(str(refusal.value)) < 600
    assert len(field.board.list()) == before


@pytest.mark.parametrize("path", ["run/submit", "call/submit", "queue/join"])
def test_what_is_far_too_large_is_not_read(field, path):
    content = b'{"data":["' + bytes(3_000_000) + b'"]}'
    answer = requests.post(f"{field.url}/gradio_api/{path}", data=content, timeout=PATIENCE_SECS)
    assert answer.status_code == 413
    assert answer.json()["detail"] == "A request may have at most 256 kB."


def test_a_context_that_is_none_is_refused(client):
    for context_tokens in (-1, 10**12):
        with pytest.raises(AppError, match="context_tokens must be a whole number"):
            client.predict(SOURCE, [4.5], context_tokens, api_name="/plan")


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


def test_a_quant_that_was_deleted_on_the_hub_is_made_again_for_who_asks(client, field):
    job_id = submit(client, bits_per_weight=[4.75])["id"]
    repo = publish(field.hub, make_family(SOURCE)[0])
    outcome = Outcome(state=JobState.PUBLISHED, results=(repo,))
    field.end(job_id, outcome, session=field.run(job_id))
    assert submit(client, bits_per_weight=[4.75])["state"] == "published"
    del field.hub.repos["model", repo.repo_id]
    again = submit(client, bits_per_weight=[4.75])
    assert (again["id"], again["state"], again["results"]) == (job_id, "waiting", [])
    assert field.board.get(job_id).attempt == 2
    field.board.cancel(job_id)


def test_a_job_knows_of_a_private_model_of_ones_own_machine(tmp_path, monkeypatch):
    with opened(tmp_path) as field, private_model_here(field, monkeypatch) as client:
        job_id = submit(client, model="ann/mine")["id"]
        assert field.board.get(job_id).request.source_is_private
        # On one's own machine one sees it.
        assert client.predict(job_id, api_name="/status")["model"] == "ann/mine"


@contextmanager
def private_model_here(field: Field, monkeypatch: pytest.MonkeyPatch) -> Iterator[Client]:
    """A private model on the Hub, and the token of its owner on this machine."""
    field.hub.add("ann/mine", SAMPLE, private=True)
    monkeypatch.setenv("HF_TOKEN", "hf_ann")
    options = {"timeout": PATIENCE_SECS}
    with closing(Client(field.url, verbose=False, httpx_kwargs=options)) as client:
        yield client
