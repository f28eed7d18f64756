"""A file damaged in transfer or in the cache is found by its hash and downloaded again."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

from dynquant.errors import DynquantError, HubUnavailableError
from dynquant.hub import HubModels, HubPublisher
from local_hub import LocalHub
from tests.faults.proxy import FaultyProxy, Trouble, TroubleKind
from tests.hub.conftest import tiny_files

pytestmark = [pytest.mark.hub, pytest.mark.harden("faults"), pytest.mark.usefixtures("client")]

FILES = tiny_files()


@contextmanager
def models_behind(
    folder: Path, name: str, kind: TroubleKind, times: int
) -> Iterator[tuple[HubModels, FaultyProxy]]:
    """Models of a Hub that damages the first downloads of the file `name`."""

    def plan(method: str, path: str, num_before: int) -> Trouble | None:
        is_met = method == "GET" and path.endswith(name) and num_before < times
        return Trouble(kind=kind) if is_met else None

    with LocalHub() as hub, FaultyProxy(int(hub.url.rpartition(":")[2]), plan) as proxy:
        hub.url = url = f"http://127.0.0.1:{proxy.port}"
        hub.cdn_url = f"http://localhost:{proxy.port}"
        hub.add("org/m", FILES)
        with HubModels(endpoint=url, cache_dir=folder, sleep=lambda _secs: None) as models:
            yield models, proxy


@pytest.mark.parametrize("name", sorted(FILES))
def test_a_file_that_arrives_damaged_is_fetched_again(tmp_path, name):
    with models_behind(tmp_path, name, TroubleKind.ANSWER_CORRUPT, 1) as (models, proxy):
        source = models.fetch("org/m")
        assert proxy.met.total() == 1
    assert {path.name: path.read_bytes() for path in source.folder.iterdir()} == FILES


@pytest.mark.parametrize("name", ["model.safetensors", "tokenizer.json"])
def test_a_file_that_always_arrives_damaged_is_refused_with_a_sentence_and_not_kept(tmp_path, name):
    with (
        models_behind(tmp_path, name, TroubleKind.ANSWER_CORRUPT, 99) as (models, _),
        pytest.raises(HubUnavailableError, match=f"'{name}' of 'org/m' arrived damaged"),
    ):
        models.fetch("org/m")
    assert not list(tmp_path.rglob(name))
    kept = {path.read_bytes() for path in tmp_path.rglob("blobs/*")}
    assert kept <= set(FILES.values())


def test_a_file_that_came_to_harm_in_the_cache_is_fetched_again_and_others_are_not(tmp_path):
    name = "model.safetensors"
    with models_behind(tmp_path, name, TroubleKind.ANSWER_CORRUPT, 0) as (models, proxy):
        weights = models.fetch("org/m").folder / name
        weights.resolve().write_bytes(FILES[name][:-1] + b"!")
        asked: list[str] = []

        def plan(method: str, path: str, _before: int) -> None:
            asked.append(f"{method} {path.rpartition('/')[2]}")

        proxy.schedule = plan
        assert models.fetch("org/m").folder == weights.parent
        assert weights.read_bytes() == FILES[name]
    assert [each for each in asked if each.startswith("GET") and each != "GET m"] == [f"GET {name}"]


def test_two_different_answers_about_one_commit_are_not_believed(tmp_path):
    with LocalHub() as hub:
        repo = hub.add("org/m", FILES)
        with HubModels(endpoint=hub.url, cache_dir=tmp_path, sleep=lambda _secs: None) as models:
            first = models.look_up("org/m")
            assert models.look_up("org/m") == first
            repo.gated = "auto"
            with pytest.raises(HubUnavailableError, match="two different answers"):
                models.look_up("org/m")
            assert models.look_up("org/m").gated == "auto"  # changed after the download


@pytest.mark.parametrize("place", [n / 40 for n in range(40)])
def test_an_answer_of_json_with_one_bit_wrong_is_no_bug_of_ours(place):
    def plan(_method: str, _path: str, num_before: int) -> Trouble | None:
        return Trouble(kind=TroubleKind.ANSWER_CORRUPT, place=place) if num_before == 0 else None

    with LocalHub() as hub, FaultyProxy(int(hub.url.rpartition(":")[2]), plan) as proxy:
        hub.add_user("you", token="hf_you")
        hub.add("you/m", FILES)
        url = f"http://127.0.0.1:{proxy.port}"
        publisher = HubPublisher(endpoint=url, token="hf_you", sleep=lambda _secs: None)
        for ask in (publisher.account, lambda: publisher.published("you/m")):
            with suppress(DynquantError):  # else the fault had no effect
                ask()
        assert proxy.met.total() == 2
