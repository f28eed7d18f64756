from __future__ import annotations

from itertools import islice

import pytest
from huggingface_hub import HfApi
from huggingface_hub.errors import HfHubHTTPError

from local_hub import LocalHub

pytestmark = pytest.mark.hub


def add_quant(hub: LocalHub, repo_id: str, **attributes) -> None:
    card = b"---\nlibrary_name: mlx\nbase_model: org/Base\nbase_model_relation: quantized\n---\n"
    hub.add(repo_id, {"README.md": card}, **attributes)


def ids(models) -> list[str]:
    return [model.id for model in models]


def test_a_list_is_filtered_by_tags_that_follow_from_the_card(hub, nobody: HfApi):
    add_quant(hub, "alice/quant")
    hub.add("org/Base", {"README.md": b"---\nlicense: mit\npipeline_tag: text-generation\n---\n"})
    assert ids(nobody.list_models(filter="base_model:quantized:org/Base")) == ["alice/quant"]
    assert ids(nobody.list_models(filter=["mlx", "base_model:org/Base"])) == ["alice/quant"]
    assert ids(nobody.list_models(filter=["mlx", "license:mit"])) == []
    assert ids(nobody.list_models(pipeline_tag="text-generation")) == ["org/Base"]
    assert ids(nobody.list_models(author="org")) == ["org/Base"]
    assert ids(nobody.list_models(search="QUANT")) == ["alice/quant"]


def test_a_list_is_ordered_the_greatest_first(hub, nobody: HfApi):
    for number, day in enumerate((2, 3, 1)):
        date = f"2026-01-0{day}T00:00:00.000Z"
        add_quant(hub, f"alice/m{day}", created_at=date, last_modified=date, downloads=number)
    assert ids(nobody.list_models(sort="created_at")) == ["alice/m3", "alice/m2", "alice/m1"]
    assert ids(nobody.list_models(sort="last_modified", limit=1)) == ["alice/m3"]
    assert ids(nobody.list_models(sort="downloads")) == ["alice/m1", "alice/m3", "alice/m2"]


def test_a_list_has_what_it_was_asked_for(hub, nobody: HfApi):
    add_quant(hub, "alice/quant", gated="auto")
    (brief,) = nobody.list_models()
    assert (brief.library_name, brief.siblings, brief.card_data) == ("mlx", None, None)
    (full,) = nobody.list_models(full=True, cardData=True, gated=True)
    assert full.siblings is not None
    assert full.card_data is not None
    assert (full.gated, full.card_data["library_name"]) == ("auto", "mlx")
    (part,) = nobody.list_models(expand=["lastModified"])
    assert (part.last_modified is not None, part.tags) == (True, None)
    assert ids(nobody.list_models(gated=False)) == []


def test_private_repos_are_listed_to_their_readers(hub, nobody: HfApi, alice: HfApi, bob: HfApi):
    for number in range(3):
        add_quant(hub, f"alice/secret-{number}", private=True, likes=9)
        add_quant(hub, f"alice/public-{number}")
    public = ["alice/public-2", "alice/public-1", "alice/public-0"]
    assert ids(nobody.list_models(sort="likes", limit=3)) == public
    assert len(ids(alice.list_models())) == 6
    hub.repos["model", "alice/secret-1"].readers.add("bob")
    assert ids(bob.list_models(sort="likes")) == ["alice/secret-1", *public]


def test_datasets_and_spaces_have_lists_of_their_own(hub, alice: HfApi):
    hub.add("alice/data", {}, kind="dataset")
    hub.add("alice/app", {}, kind="space", sdk="gradio")
    assert ids(alice.list_models()) == []
    assert ids(alice.list_datasets(author="alice")) == ["alice/data"]
    assert [(s.id, s.sdk) for s in alice.list_spaces(author="alice")] == [("alice/app", "gradio")]


def test_pages_of_a_list_stay_where_they_are_when_repos_are_added(hub, nobody: HfApi):
    for number in range(2500):
        hub.add(f"alice/m{number:04d}", {}, likes=number)
    found = iter(nobody.list_models(sort="likes"))
    first = [next(found).id for _ in range(1000)]
    hub.add("alice/new", {}, likes=10_000)
    assert first + ids(found) == [f"alice/m{number:04d}" for number in range(2499, -1, -1)]
    assert len(hub.asked("GET /api/models")) == 3


def test_a_list_notices_what_has_changed(hub, nobody: HfApi, alice: HfApi):
    add_quant(hub, "alice/a", likes=1)
    add_quant(hub, "alice/b", likes=2)
    assert ids(nobody.list_models(sort="likes")) == ["alice/b", "alice/a"]
    hub.repos["model", "alice/a"].likes = 3
    assert ids(nobody.list_models(sort="likes")) == ["alice/a", "alice/b"]
    alice.delete_repo("alice/a")
    assert ids(nobody.list_models(sort="likes")) == ["alice/b"]
    hub.repos["model", "alice/b"].commit({"README.md": b"plain"})
    assert ids(nobody.list_models(filter="mlx")) == []


def test_an_order_that_there_is_not_is_refused(hub, nobody: HfApi):
    with pytest.raises(HfHubHTTPError, match="cannot sort by 'size'"):
        list(nobody.list_models(sort="size"))  # type: ignore[arg-type]


def test_fifty_thousand_models_cost_no_more_than_what_is_asked_of_them(hub, nobody: HfApi):
    for number in range(50_000):
        hub.add(f"user{number % 500}/m{number}", {}, downloads=number, card_data={"tags": ["x"]})
    newest = nobody.list_models(sort="downloads", limit=3)
    assert ids(newest) == ["user499/m49999", "user498/m49998", "user497/m49997"]
    assert sum(1 for repo in hub.repos.values() if repo.cache) == 3  # cards that were read
    (ordered,) = hub.lists.values()
    assert len(list(islice(nobody.list_models(sort="downloads"), 2500))) == 2500
    assert nobody.model_info("user1/m1").tags == ["x", "region:us"]
    (still,) = hub.lists.values()
    assert still is ordered  # put in order once, for every page
    assert ids(nobody.list_models(filter="x", author="user7", sort="downloads", limit=1)) == [
        "user7/m49507"
    ]
