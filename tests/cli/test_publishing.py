"""Publishing finished folders: who may read the repos, and which card goes with them."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from dynquant.errors import HubQuotaError
from dynquant.model.access import Access
from dynquant.model.origin import Origin
from dynquant.publish import ModelPublisher, PublishedModel, publish
from dynquant.report.finished_files import CARD, file_contents
from dynquant.report.outputs import OutputFolders
from tests.fakes import FakeProgress
from tests.report.card_factories import make_facts


@dataclass
class FakePublisher:
    """Remembers, by repo, the card and who may read the repo; some have no room."""

    full: set[str] = field(default_factory=set)
    cards: dict[str, str] = field(default_factory=dict)
    access: dict[str, Access] = field(default_factory=dict)
    hub_url: str = "https://huggingface.co"

    def check(self, repo_id: str, *, origin: Origin, access: Access) -> None:
        pass

    def published(self, repo_id: str) -> tuple[PublishedModel, str] | None:
        return None

    def publish(
        self, folder: Path, repo_id: str, *, access: Access, **_others: Any
    ) -> PublishedModel:
        if repo_id in self.full:
            raise HubQuotaError("No storage is left.")
        self.cards[repo_id] = (folder / CARD).read_text(encoding="utf-8")
        self.access[repo_id] = access
        return PublishedModel(repo_id=repo_id, commit_sha="c0ffee", url="", is_new=True)


class Finished:
    """A finished model in a folder, and the Hub."""

    def __init__(self, root: Path, **facts: Any) -> None:
        self.facts = make_facts(2, **facts)
        self.folder = root / self.facts.name
        self.hub = FakePublisher()
        for name, content in file_contents(self.facts, None).items():
            path = self.folder / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(content, encoding="utf-8")

    def publish(
        self, namespace: str, *, private: bool | None = None, now: Access = Access()
    ) -> None:
        publisher: ModelPublisher = self.hub
        publish(
            {self.folder: self.facts},
            {self.facts.name: f"{namespace}/{self.facts.name}"},
            publisher,
            outputs=OutputFolders(self.folder.parent),
            private=private,
            access_now=lambda _origin: now,
            progress=FakeProgress(),
        )


@pytest.mark.harden("secrets")
@pytest.mark.parametrize(
    ("source_is_private", "asked", "is_private"),
    [
        (False, None, False),
        (False, True, True),
        (True, None, True),
        (True, True, True),
        (True, False, False),
    ],
)
def test_what_is_made_of_a_private_model_is_private_unless_somebody_says_otherwise(
    tmp_path, source_is_private, asked, is_private
):
    model = Finished(tmp_path, source_is_private=source_is_private)
    model.publish("me", private=asked)
    assert [each.is_private for each in model.hub.access.values()] == [is_private]


@pytest.mark.harden("publishing")
@pytest.mark.parametrize("now", [Access(is_private=True), Access(gated="manual")], ids=str)
def test_a_source_that_was_closed_while_it_was_quantized_has_a_closed_quant(tmp_path, now):
    model = Finished(tmp_path)
    model.publish("me", now=now)
    assert [*model.hub.access.values()] == [now]
    model.publish("me", private=False, now=now)  # explicit
    assert [*model.hub.access.values()] == [Access(gated=now.gated)]


def test_each_destination_gets_a_card_of_its_own(tmp_path):
    model = Finished(tmp_path)
    for namespace in ("alice", "team"):
        model.publish(namespace)
    cards = model.hub.cards
    for namespace, other in (("alice", "team"), ("team", "alice")):
        card = cards[f"{namespace}/{model.facts.name}"]
        assert f"{namespace}/{model.facts.name}" in card
        assert f"{other}/" not in card


def test_a_card_that_somebody_edited_stays_as_it_is_wherever_it_goes(tmp_path):
    model = Finished(tmp_path)
    model.publish("alice")
    card = model.folder / CARD
    edited = card.read_text(encoding="utf-8").replace("# ", "# My own ", 1)
    card.write_text(edited, encoding="utf-8")
    model.publish("team")
    assert model.hub.cards[f"team/{model.facts.name}"] == edited


def test_what_was_published_before_it_went_wrong_is_known(tmp_path):
    first, second = (Finished(tmp_path, name=f"Model-MLX-{bpw}bpw") for bpw in (4, 6))
    hub = FakePublisher(full={f"me/{second.facts.name}"})
    publisher: ModelPublisher = hub
    with pytest.raises(HubQuotaError) as caught:
        publish(
            {each.folder: each.facts for each in (first, second)},
            {each.facts.name: f"me/{each.facts.name}" for each in (first, second)},
            publisher,
            outputs=OutputFolders(tmp_path),
            private=None,
            access_now=lambda _origin: Access(),
            progress=FakeProgress(),
        )
    assert caught.value.published == ((f"me/{first.facts.name}", "c0ffee"),)
