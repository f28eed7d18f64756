from __future__ import annotations

import json
from collections import Counter
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import constants
from typer.testing import CliRunner

from dynquant.cli.watching import watch_app
from dynquant.errors import InvalidOptionError, ModelNotFoundError, RequestError
from dynquant.settings import Settings
from dynquant.watch.service import WatchService
from dynquant.watch.status import WatchAct, WatchRequests
from tests.waiting import wait_until
from tests.watch.scene import add_model, model_files

pytestmark = pytest.mark.hub

RULES = "rules: [{name: mine, authors: [org], bpw: [4.5], destination: you}]\n"


@pytest.fixture
def rules(tmp_path) -> Path:
    path = tmp_path / "watch.yaml"
    path.write_text(RULES)
    return path


@pytest.fixture(autouse=True)
def surroundings(scene, tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("DYNQUANT_DATABASE_URL", scene.url)
    monkeypatch.setenv("DYNQUANT_HOME", str(tmp_path))
    monkeypatch.delenv("DYNQUANT_WATCH_CONFIG", raising=False)
    now = datetime.now(UTC)
    for name in ("org/Model", "org/Model-GGUF", "else/Model"):
        add_model(scene.hub, name, now - timedelta(minutes=5))


def call(*arguments: object) -> str:
    done = CliRunner().invoke(watch_app, [str(each) for each in arguments])
    if done.exception is not None and not isinstance(done.exception, SystemExit):
        raise done.exception
    assert done.exit_code == 0, done.output
    return done.output


def call_json(*arguments: object) -> Any:
    return json.loads(call(*arguments, "--json"))


def test_a_dry_run_explains_every_model_and_queues_nothing(scene, rules):
    found = call_json("--once", "--dry-run", "--config", rules)
    skips = {each["model"]: (each["rule"], each["skip"]) for each in found["decisions"]}
    assert skips == {
        "org/Model": ("mine", None),
        "org/Model-GGUF": ("", "quant"),
        "else/Model": ("", "not_covered"),
    }
    assert all(each["sentence"].endswith(".") for each in found["decisions"])
    assert found["report"]["dry_run"]
    assert scene.board.list() == ()
    text = call("--once", "--dry-run", "--config", rules)
    assert "quant" in text
    assert "Dry run: 3 models seen" in text


def test_a_sweep_queues_and_is_among_the_last_ones(scene, rules, monkeypatch):
    monkeypatch.setenv("DYNQUANT_WATCH_CONFIG", str(rules))
    found = call_json("--once")
    assert found["report"]["queued"] == ["org/Model"]
    assert "decisions" not in found
    assert [job.request.model for job in scene.board.list()] == ["org/Model"]
    status = call_json()
    assert status == {"paused": False, "reports": [found["report"]]}
    assert "3 models seen, 1 matched, 1 queued" in call()


def test_before_the_first_sweep_the_status_says_what_to_do():
    assert "no sweep yet" in call()


def test_a_model_is_explained_with_what_the_rules_look_at(rules):
    found = call_json("explain", "org/Model", "--config", rules)
    assert (found["rule"], found["skip"], found["targets_bpw"]) == ("mine", None, [4.5])
    assert found["metadata"]["license"] == "apache-2.0"
    assert found["job_id"] == ""
    text = call("explain", "else/Model", "--config", rules)
    assert "No rule covers it." in text
    assert "parameters: 8.00 B" in text
    with pytest.raises(ModelNotFoundError, match="There is no model 'org/none' on the Hub"):
        call("explain", "org/none", "--config", rules)
    address = "https://huggingface.co/org/Model/tree/main"
    assert call_json("explain", address, "--config", rules)["model"] == "org/Model"
    call("--once", "--config", rules)
    assert "It was queued as job" in call("explain", "org/Model", "--config", rules)


def test_pausing_is_kept_and_can_be_ended(scene):
    assert "resume" in call("pause")
    assert call_json()["paused"]
    call("resume")
    assert not scene.state.is_paused


def test_what_is_missing_or_wrong_is_said_in_a_sentence(tmp_path):
    with pytest.raises(InvalidOptionError, match="Pass --config FILE"):
        call("--once")
    with pytest.raises(InvalidOptionError, match="Pass --once as well"):
        call("--dry-run")
    with pytest.raises(InvalidOptionError, match=r"'none.yaml' with the watcher's rules"):
        call("--once", "--config", tmp_path / "none.yaml")
    bad = tmp_path / "bad.yaml"
    bad.write_text("rule: []\n")
    with pytest.raises(InvalidOptionError, match=r"bad.yaml, line 1, column 1: .*'rules'"):
        call("explain", "org/Model", "--config", bad)


def test_no_sweep_begins_by_hand_while_the_watcher_is_paused_or_another_one_runs(scene, rules):
    call("pause")
    with pytest.raises(RequestError, match="is paused"):
        call("--once", "--config", rules)
    assert "1 matched" in call("--once", "--dry-run", "--config", rules)
    call("resume")
    assert scene.state.begin("another", lease_secs=60, is_due=lambda *_: True) is not None
    with pytest.raises(RequestError, match="runs already"):
        call("--once", "--config", rules)
    assert scene.board.list() == ()


def test_a_runner_sweeps_by_schedule_with_the_rules_as_they_are_then(scene, rules, tmp_path):
    environment = {"DYNQUANT_DATABASE_URL": scene.url, "DYNQUANT_HOME": str(tmp_path)}
    yearly = Settings.from_environment(environment | {"DYNQUANT_WATCH_CRON": "0 0 1 1 *"})
    with WatchService(yearly, rules) as service:
        rules.write_text(RULES.replace("org", "else"))
        report = service.do_round()
        assert report is not None
        assert report.queued == ("else/Model",)
        assert service.do_round() is None
        rules.write_text("nonsense")
        with pytest.raises(InvalidOptionError, match=r"watch.yaml, line 1"):
            service.rules()
    never = Settings.from_environment(environment | {"DYNQUANT_WATCH_CRON": "never"})
    with pytest.raises(InvalidOptionError, match="five fields of cron"):
        WatchService(never, rules)


def test_a_family_that_mlx_lm_does_not_run_is_skipped_before_it_is_queued(scene, rules):
    alien = model_files(config={"model_type": "no_such_family"})
    add_model(scene.hub, "org/Alien", datetime.now(UTC), alien)
    helper = model_files(config={"model_type": "cache"})  # a module of mlx-lm, but not a family
    add_model(scene.hub, "org/Helper", datetime.now(UTC), helper)
    found = call_json("--once", "--config", rules)["report"]
    assert found["queued"] == ["org/Model"]
    assert found["skipped"]["unsupported"] == 2
    assert call_json("explain", "org/Alien", "--config", rules)["skip"] == "unsupported"


def test_memory_sizes_are_served_by_the_shape_in_the_headers(scene, tmp_path):
    rules = tmp_path / "macs.yaml"
    rules.write_text("rules: [{name: macs, authors: [org], memory: [8GB], destination: you}]\n")
    config = {
        "num_hidden_layers": 36,
        "num_attention_heads": 32,
        "num_key_value_heads": 32,
        "hidden_size": 4096,
    }
    add_model(scene.hub, "org/Wide", datetime.now(UTC), model_files(config=config))
    add_model(scene.hub, "org/Gone", datetime.now(UTC))
    scene.hub.on_request = lambda request: (
        scene.hub.repos.pop(("model", "org/Gone"), None)
        if request.path.startswith("/org/Gone/resolve/")
        else None
    )
    scene.hub.requests.clear()
    found = call_json("--once", "--dry-run", "--config", rules)
    skips = {each["model"]: each["skip"] for each in found["decisions"]}
    targets = {each["model"]: each["targets_bpw"] for each in found["decisions"]}
    assert skips["org/Gone"] == "gone"  # between the look at it and at its headers
    # A Mac with 8 GB leaves 5.45 GB: this cache takes 2.42 of them, an unknown cache 0.5.
    assert (targets["org/Wide"], targets["org/Model"]) == ([3.0], [4.9])
    # A page of each list; for each model its metadata, its quants and its headers.
    assert found["report"]["calls"] <= 2 + 3 * 8
    requests = Counter(request.path.partition("?")[0] for request in scene.hub.requests)
    assert requests["/api/models/org/Wide"] <= 3
    assert not list(Path(constants.HF_HUB_CACHE).glob("models--*"))


def test_what_a_space_asks_for_is_done(scene, rules, tmp_path):
    environment = {"DYNQUANT_DATABASE_URL": scene.url, "DYNQUANT_HOME": str(tmp_path)}
    with WatchService(Settings.from_environment(environment), rules) as service:
        service.carry_out(WatchRequests(act=WatchAct.PAUSE))
        assert service.status().is_paused
        with pytest.raises(RequestError, match="paused"):
            service.carry_out(WatchRequests(act=WatchAct.SWEEP))
        service.carry_out(WatchRequests(act=WatchAct.RESUME))
        service.carry_out(WatchRequests(look_at=("org/Model", "else/Model", "org/Model")))
        wait_until(lambda: len(service.status().reports) >= 2)
        assert [job.request.model for job in scene.board.list()] == ["org/Model"]
        assert scene.state.seen("else/Model") is None
        service.carry_out(WatchRequests(act=WatchAct.SWEEP))
        # A model that is requested twice may be looked at twice.
        wait_until(lambda: service.status().reports[0].num_seen == 3)
        wait_until(lambda: not service.status().is_sweeping)
