from __future__ import annotations

import httpx2
import pytest
from huggingface_hub import CommitOperationAdd, HfApi
from huggingface_hub.errors import HfHubHTTPError, RepositoryNotFoundError

from local_hub import LocalHub
from tests.local_hub.conftest import READ_TOKEN, TOKEN

pytestmark = pytest.mark.hub

REPO = "bob/his"
ADDED = [CommitOperationAdd(path_in_repo="a.txt", path_or_fileobj=b"x")]


def test_the_hub_says_who_someone_is(alice: HfApi):
    told = alice.whoami()
    assert (told["type"], told["name"], told["fullname"]) == ("user", "alice", "Alice")
    assert [(org["name"], org["roleInOrg"]) for org in told["orgs"]] == [
        ("team", "write"),
        ("club", "read"),
    ]
    assert told["auth"]["accessToken"] == {"displayName": "token of alice", "role": "write"}


def test_a_fine_grained_token_says_where_it_may_write(hub: LocalHub):
    hub.add_user("carol", token="hf_c", role="fineGrained", orgs={"team": "write", "club": "read"})
    told = HfApi(endpoint=hub.url, token="hf_c").whoami()["auth"]["accessToken"]
    assert told["role"] == "fineGrained"
    scopes = told["fineGrained"]["scoped"]
    assert [scope["entity"]["name"] for scope in scopes] == ["carol", "team"]


def test_everybody_may_know_what_hardware_a_user_shows(hub: LocalHub, nobody: HfApi):
    mac = {"sku": ["Apple Silicon", "-", "Apple M3 Max"], "mem": 64, "num": 1, "isPrimary": True}
    hub.add_user("carol", token="hf_c", orgs={"team": "write"}, hardware=[mac])
    shown = nobody.get_user_overview("carol")
    assert (shown.username, [org.name for org in shown.orgs]) == ("carol", ["team"])
    assert vars(shown)["hardwareItems"] == [mac]
    hub.discreet.add("carol")
    assert "hardwareItems" not in vars(nobody.get_user_overview("carol"))
    with pytest.raises(HfHubHTTPError, match="404"):
        nobody.get_user_overview("nobody")


def test_a_token_without_a_role_may_write(hub: LocalHub):
    hub.tokens["hf_x"] = "xenia"
    HfApi(endpoint=hub.url, token="hf_x").create_repo("xenia/x")


@pytest.mark.parametrize("token", ["hf_unknown", "hf_old"])
def test_a_token_that_is_unknown_or_expired_is_refused(hub: LocalHub, token):
    hub.add_user("alice", token="hf_old")
    hub.expired_tokens.add("hf_old")
    hub.add("alice/x", {})
    api = HfApi(endpoint=hub.url, token=token)
    with pytest.raises(HfHubHTTPError, match="Invalid user token"):
        api.whoami()
    with pytest.raises(HfHubHTTPError, match="Invalid credentials in Authorization header"):
        api.model_info("alice/x")


def test_nobody_is_told_to_log_in(hub, http: httpx2.Client, nobody: HfApi):
    with pytest.raises(HfHubHTTPError, match="Invalid username or password"):
        nobody.create_repo("alice/x")
    del http.headers["authorization"]
    assert http.get("/api/whoami-v2").status_code == 401


def refused(act, *args, **kwargs) -> str:
    with pytest.raises(HfHubHTTPError) as caught:
        act(*args, **kwargs)
    assert caught.value.response.status_code == 403
    return str(caught.value)


def test_a_read_token_writes_nothing(hub: LocalHub):
    hub.add("alice/x", {"a.txt": b"a"})
    reader = HfApi(endpoint=hub.url, token=READ_TOKEN)
    words = "you must use a write token"
    assert words in refused(reader.create_repo, "alice/new")
    assert words in refused(reader.delete_repo, "alice/x")
    assert words in refused(reader.create_commit, "alice/x", ADDED, commit_message="x")
    assert words in refused(reader.update_repo_settings, "alice/x", private=True)
    assert words in refused(reader.create_discussion, "alice/x", "Hello")
    assert words in refused(reader.auth_check, "alice/x", write=True)
    reader.auth_check("alice/x")


@pytest.mark.parametrize("namespace", ["bob", "club", "strangers"])
def test_repos_are_created_where_one_may_write(hub, alice: HfApi, namespace):
    assert "don't have the rights" in refused(alice.create_repo, f"{namespace}/x")
    alice.create_repo("team/x")
    assert "don't have the rights" in refused(alice.move_repo, "team/x", f"{namespace}/x")


def test_who_may_only_read_a_repo_changes_nothing_of_it(hub: LocalHub, alice: HfApi):
    hub.add(REPO, {"a.txt": b"a"})
    words = "not the required permissions"
    for act, args in (
        (alice.delete_repo, (REPO,)),
        (alice.move_repo, (REPO, "alice/mine")),
        (alice.create_branch, (REPO,)),
        (alice.super_squash_history, (REPO,)),
    ):
        options = {"branch": "dev"} if act == alice.create_branch else {}
        assert words in refused(act, *args, **options)
    assert words in refused(alice.create_tag, REPO, tag="v1")
    assert words in refused(alice.create_commit, REPO, ADDED, commit_message="x")
    assert words in refused(alice.update_repo_settings, REPO, gated="auto")
    assert words in refused(alice.auth_check, REPO, write=True)


def test_a_private_repo_of_others_cannot_be_written_to_either(hub: LocalHub, alice: HfApi):
    hub.add(REPO, {"a.txt": b"a"}, private=True)
    with pytest.raises(RepositoryNotFoundError):
        alice.create_commit(REPO, ADDED, commit_message="x")
    with pytest.raises(RepositoryNotFoundError):
        alice.delete_repo(REPO)


def test_a_browser_that_logged_in_may_look_and_not_write(hub: LocalHub, http: httpx2.Client):
    hub.add("alice/secret", {"a.txt": b"a"}, private=True)
    del http.headers["authorization"]
    assert http.get("/alice/secret").status_code == 404
    assert http.get("/login?token=wrong").status_code == 401
    entered = http.get(f"/login?token={TOKEN}&next=/alice/secret")
    assert (entered.status_code, entered.headers["location"]) == (303, "/alice/secret")
    assert http.get("/alice/secret").status_code == 200
    assert http.get("/alice/secret/resolve/main/a.txt").content == b"a"
    assert http.post("/api/repos/create", json={"name": "x"}).status_code == 401
    elsewhere = http.get(f"/login?token={TOKEN}&next=//evil.example")
    assert elsewhere.headers["location"] == "/"
