"""Lists of models, their plans and reports, with the real client on a Hub on this machine."""

from __future__ import annotations

import pytest

from dynquant.errors import HubUnavailableError, InvalidModelError, ModelNotFoundError
from dynquant.hub.search import HubSearch
from dynquant.report.finished_files import PLAN, REPORT
from tests.hub.conftest import tiny_files

pytestmark = pytest.mark.hub

QUANT = (
    "---\nlibrary_name: mlx\ntags: [mlx, dynquant]\nbase_model: alice/tiny\n"
    "base_model_relation: quantized\n---\n"
)


@pytest.fixture
def search(hub, pauses) -> HubSearch:
    return HubSearch(endpoint=hub.url, sleep=pauses.append)


def test_models_are_found_by_a_part_of_their_name_the_most_downloaded_first(search, hub):
    hub.add("alice/tiny", tiny_files(), downloads=5)
    hub.add("bob/TINY-chat", tiny_files(), downloads=50, gated="manual")
    hub.add("bob/other", tiny_files(), downloads=500)
    popular, plain = search.models("tiny", limit=5)
    assert (popular.repo_id, popular.downloads, popular.gated) == ("bob/TINY-chat", 50, "manual")
    assert (plain.repo_id, plain.gated, plain.num_parameters) == ("alice/tiny", "", 8)
    assert [each.repo_id for each in search.models("tiny", limit=1)] == ["bob/TINY-chat"]


def test_quants_of_a_model_are_those_that_dynquant_made(search, hub):
    hub.add("you/tiny-4bpw", {"README.md": QUANT.encode()})
    hub.add("eve/tiny-gguf", {"README.md": QUANT.replace("dynquant", "gguf").encode()})
    assert [each.repo_id for each in search.quants_of("alice/tiny", limit=5)] == ["you/tiny-4bpw"]
    assert [each.repo_id for each in search.finished(limit=5)] == ["you/tiny-4bpw"]
    assert search.finished(author="me", limit=5) == ()
    assert search.quants_of("alice/else", limit=5) == ()


def test_the_most_downloaded_language_models_are_those_that_the_hub_calls_so(search, hub):
    card = b"---\npipeline_tag: text-generation\n---\n"
    hub.add("alice/chat", {"README.md": card}, downloads=5)
    hub.add("bob/chat", {"README.md": card}, downloads=50)
    hub.add("bob/speech", {"README.md": card.replace(b"text", b"audio")}, downloads=500)
    sees = card.replace(b"text-generation", b"image-text-to-text")
    hub.add("eve/seeing", {"README.md": sees}, downloads=9)
    found = [each.repo_id for each in search.popular(limit=5)]
    assert found == ["bob/chat", "eve/seeing", "alice/chat"]
    assert len(search.popular(limit=2)) == 2


def test_a_list_tells_quants_from_originals(search, hub):
    hub.add("alice/tiny", tiny_files())
    hub.add("you/tiny-4bpw", {"README.md": QUANT.encode()})
    hub.add("you/tiny-GGUF", {"tiny.Q4_K_M.gguf": b"GGUF"})
    found = {each.repo_id: each.is_quant for each in search.models("tiny", limit=5)}
    assert found == {"alice/tiny": False, "you/tiny-4bpw": True, "you/tiny-GGUF": True}


def test_plan_and_report_are_read_at_the_commit_that_was_asked_for(search, hub):
    repo = hub.add("you/quant", {PLAN: b"plan one", REPORT: b"report one"})
    first = repo.branches["main"]
    repo.commit({PLAN: b"plan two"})
    assert search.plan_and_report("you/quant", first) == ("plan one", "report one")
    assert search.plan_and_report("you/quant", "main") == ("plan two", "report one")


def test_plan_and_report_that_are_missing_or_far_too_large_are_refused(search, hub):
    hub.add("you/none", {PLAN: b"{}"})
    hub.add("you/large", {PLAN: bytes(9_000_000), REPORT: b"{}"})
    with pytest.raises(ModelNotFoundError, match="is missing there"):
        search.plan_and_report("you/none", "main")
    with pytest.raises(InvalidModelError, match=r"plan\.json of 'you/large' is too large"):
        search.plan_and_report("you/large", "main")


def test_a_private_model_is_unknown_to_a_stranger(hub, pauses, monkeypatch):
    hub.add_user("alice", token="hf_alice")
    hub.add("alice/secret", tiny_files(), private=True)
    monkeypatch.setenv("HF_TOKEN", "hf_alice")
    stranger = HubSearch(endpoint=hub.url, token=False, sleep=pauses.append)
    assert stranger.models("secret", limit=5) == ()
    with pytest.raises(ModelNotFoundError, match="or it is private"):
        stranger.about("alice/secret")
    owner = HubSearch(endpoint=hub.url, token="hf_alice", sleep=pauses.append)
    assert owner.about("alice/secret").is_private


def test_a_hub_that_is_down_is_said_to_be(search, hub, pauses):
    hub.fail("GET /api/models", status=503)
    with pytest.raises(HubUnavailableError, match="status 503"):
        search.models("tiny", limit=5)
    assert pauses == [1.0, 2.0]
