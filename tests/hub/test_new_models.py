from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from itertools import islice
from typing import Any

import pytest

from dynquant.errors import HubUnavailableError, ModelNotFoundError, Reason
from dynquant.hub.new_models import HubNewModels
from tests.watch.scene import (
    add_dynquant,
    add_model,
    edit_card,
    model_files,
    new_weights,
    stamp,
)

pytestmark = pytest.mark.hub

START = datetime(2026, 11, 23, tzinfo=UTC)
LISTS = "GET /api/models$"


@pytest.fixture
def new_models(hub, pauses) -> HubNewModels:
    return HubNewModels(endpoint=hub.url, token=False, sleep=pauses.append, page_size=10)


def at(minutes: float) -> datetime:
    return START + timedelta(minutes=minutes)


def test_models_come_the_latest_first_with_what_rules_ask_for_and_no_more(hub, new_models):
    for number in (2, 1, 3):
        add_model(hub, f"org/m{number}", at(number), likes=number)
    found = list(new_models.listed("createdAt"))
    assert [each.repo_id for each in found] == ["org/m3", "org/m2", "org/m1"]
    first = found[0]
    assert (first.created_at, first.last_modified) == (at(3), at(3))
    assert (first.author, first.likes, first.pipeline_tag) == ("org", 3, "text-generation")
    assert (first.num_parameters, first.license) == (8 * 10**9, "apache-2.0")
    assert (first.files, first.is_whole, first.fingerprint) == (None, False, "")
    (request,) = hub.asked(LISTS)
    assert set(request.query["expand"]).isdisjoint({"siblings", "cardData", "config"})
    assert new_models.num_calls == 1


def test_the_order_by_change_is_another(hub, new_models):
    add_model(hub, "org/old", at(0))
    add_model(hub, "org/new", at(1))
    edit_card(hub, "org/old", at(2))
    assert [each.repo_id for each in new_models.listed("lastModified")] == ["org/old", "org/new"]


def test_a_page_is_asked_for_when_it_is_needed_and_each_model_comes_once(hub, new_models):
    for number in range(35):
        add_model(hub, f"org/m{number:02}", at(number))
    models = new_models.listed("createdAt")
    first = [each.repo_id for each in islice(models, 10)]
    assert new_models.num_calls == 1
    add_model(hub, "org/late", at(99))
    rest = [each.repo_id for each in models]
    assert first + rest == [f"org/m{number:02}" for number in reversed(range(35))]
    assert new_models.num_calls == len(hub.asked(LISTS)) == 4


@contextmanager
def hub_of_pages(pages: list[list[str]], **more: Any) -> Iterator[str]:
    """A Hub whose list has these pages, and repeats the last page."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            number = int(self.path.rpartition("page=")[2]) if "page=" in self.path else 0
            dates = {"createdAt": stamp(at(0)), "lastModified": stamp(at(0)), "sha": "a" * 40}
            names = pages[min(number, len(pages) - 1)]
            body = json.dumps([{"id": name, **dates, **more} for name in names]).encode()
            self.send_response(200)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(body)))
            here = f"http://{self.headers['Host']}/api/models"
            self.send_header("Link", f'<{here}?page={number + 1}>; rel="next"')
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_args: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_address[1]}"
        finally:
            server.shutdown()
            thread.join()


def test_a_model_that_moved_to_the_next_page_comes_once(hub):
    with hub_of_pages([["a/1", "a/2"], ["a/2", "a/3"], ["a/4"]]) as url:
        models = HubNewModels(endpoint=url, token=False).listed("createdAt")
        assert [each.repo_id for each in islice(models, 4)] == ["a/1", "a/2", "a/3", "a/4"]


def test_an_entry_that_is_no_model_is_passed_over(hub):
    with hub_of_pages([["a/1"], ["a/2"], []], safetensors=5) as url:
        new_models = HubNewModels(endpoint=url, token=False)
        assert list(new_models.listed("createdAt")) == []
        assert new_models.num_calls == 3  # an empty page is the end, even if it names a next page


def test_a_page_that_repeats_ends_the_list_with_an_error(hub):
    with hub_of_pages([["a/1", "a/2"]]) as url:
        new_models = HubNewModels(endpoint=url, token=False)
        models = new_models.listed("createdAt")
        assert [each.repo_id for each in islice(models, 2)] == ["a/1", "a/2"]
        with pytest.raises(HubUnavailableError, match="same page of its list again"):
            next(models)
        assert new_models.num_calls == 2


def test_a_rate_limit_is_waited_for_and_every_try_is_counted(hub, new_models, pauses):
    add_model(hub, "org/m", at(0))
    hub.fail(LISTS, status=429, headers={"Retry-After": "7"}, times=1)
    hub.fail(LISTS, action="reset", times=1)
    assert [each.repo_id for each in new_models.listed("createdAt")] == ["org/m"]
    assert pauses == [7.0, 2.0]
    assert new_models.num_calls == 3


@pytest.mark.parametrize(
    "fault",
    [
        {"status": 503},
        {"status": 429, "headers": {"Retry-After": "3000"}},
        {"action": "html"},
        {"action": "truncate"},
    ],
)
def test_a_hub_that_is_away_is_a_reason_to_try_later(hub, new_models, fault):
    add_model(hub, "org/m", at(0))
    hub.fail(LISTS, **fault)
    with pytest.raises(HubUnavailableError):
        list(new_models.listed("createdAt"))
    assert new_models.num_calls <= 3


def test_repos_without_a_commit_are_passed_over(hub, new_models):
    add_model(hub, "org/m", at(0))
    hub.repos["model", "org/m"].branches.clear()
    assert list(new_models.listed("createdAt")) == []
    with pytest.raises(ModelNotFoundError):
        new_models.look_up("org/m")


def test_a_close_look_tells_everything_in_one_request(hub, new_models):
    files = model_files(
        config={"quantization_config": {"bits": 4, "group_size": 64}}, dynquant=False
    )
    add_model(hub, "org/m", at(0), files, gated="auto")
    found = new_models.look_up("org/m")
    assert found.is_whole
    assert (found.opted_out, found.form, found.gated) == (True, "MLX", "auto")
    assert (found.model_type, found.architectures) == ("qwen3", ("Qwen3ForCausalLM",))
    assert found.weights == ("model.safetensors",)
    assert new_models.num_calls == len(hub.requests) == 1


@pytest.mark.parametrize("key", ["no-quantize", "no_quantize", "no-quantization"])
def test_a_card_can_forbid_it_in_other_words(hub, new_models, key):
    fields: dict[str, Any] = {key: True}
    add_model(hub, "org/m", at(0), model_files(**fields))
    assert new_models.look_up("org/m").opted_out


def test_the_fingerprint_changes_with_the_weights_and_with_nothing_else(hub, new_models):
    add_model(hub, "org/m", at(0))
    first = new_models.look_up("org/m")
    edit_card(hub, "org/m", at(1))
    second = new_models.look_up("org/m")
    new_weights(hub, "org/m", at(2), seed="other")
    third = new_models.look_up("org/m")
    assert first.sha != second.sha
    assert first.fingerprint == second.fingerprint != third.fingerprint
    assert new_models.fingerprint("org/m", first.sha) == first.fingerprint
    assert new_models.fingerprint("org/m", "0" * 40) == ""


def test_the_time_of_the_weights_is_not_that_of_the_card(hub, new_models):
    add_model(hub, "org/m", at(0))
    edit_card(hub, "org/m", at(5))
    assert new_models.weights_uploaded_at(new_models.look_up("org/m")) == at(0)
    new_weights(hub, "org/m", at(9), seed="other")
    edit_card(hub, "org/m", at(10))
    assert new_models.weights_uploaded_at(new_models.look_up("org/m")) == at(9)


def test_what_dynquant_made_of_a_model_is_found_whoever_published_it(hub, new_models):
    add_model(hub, "org/m", at(0))
    add_dynquant(hub, "you/m-MLX-4.5bpw", "org/m", sha="c" * 40)
    add_dynquant(hub, "bob/m-MLX-6.0bpw", "org/m", sha="d" * 40)
    add_dynquant(hub, "bob/x-MLX-6.0bpw", "org/x", sha="d" * 40)
    assert sorted(new_models.dynquants_of("org/m")) == ["bob/m-MLX-6.0bpw", "you/m-MLX-4.5bpw"]
    assert new_models.source_sha("you/m-MLX-4.5bpw") == "c" * 40
    assert new_models.num_calls == 2


def test_a_plan_that_is_missing_or_damaged_names_no_commit(hub, new_models):
    add_model(hub, "org/m", at(0))
    hub.add("you/a", {"dynquant/plan.json": b"{"})
    hub.add("you/b", {"dynquant/plan.json": b'["revision_sha"]'})
    found = [new_models.source_sha(each) for each in ("org/m", "you/a", "you/b", "you/none")]
    assert found == ["", "", "", ""]


def test_a_model_that_is_gone_or_closed_is_not_found(hub, new_models):
    add_model(hub, "org/secret", at(0), private=True)
    add_model(hub, "org/off", at(0), disabled=True)
    for name in ("org/none", "org/secret", "org/off"):
        with pytest.raises(ModelNotFoundError) as caught:
            new_models.look_up(name)
        assert caught.value.reason in {Reason.MODEL_NOT_FOUND, Reason.DISABLED}
