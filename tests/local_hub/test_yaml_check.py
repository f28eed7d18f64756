from __future__ import annotations

from pathlib import Path

import pytest
from huggingface_hub import ModelCard

from local_hub.yaml_check import find_errors

pytestmark = pytest.mark.hub

GOLDEN = Path(__file__).parents[1] / "report" / "golden"


def errors(front_matter: str) -> list[str]:
    return list(find_errors(f"---\n{front_matter}\n---\n# Hi\n"))


@pytest.mark.parametrize("name", ["card.md", "card-local.md"])
def test_the_cards_that_dynquant_writes_pass(name):
    assert list(find_errors((GOLDEN / name).read_text())) == []


@pytest.mark.parametrize(
    ("front_matter", "words"),
    [
        ("license: [mit", "cannot be read"),
        ("- a list", "must be a mapping"),
        ("library_name: 4", '"library_name" must be a string'),
        ("tags: [mlx, 4]", '"tags" must be a string or an array of strings'),
        ("base_model: not a repo", '"base_model" with value "not a repo" is not valid'),
        ("license: apache-2.0, mit", '"license" must be one of [apache-2.0, mit, '),
        ("license: [mit, MIT]", '"license" must be one of'),
        ("base_model_relation: cousin", '"base_model_relation" must be one of'),
        ("model-index: x", '"model-index" must be an array'),
        ("model-index: [{name: x}]", '"model-index[0].results" must be an array'),
        ("model-index: [{results: []}]", '"model-index[0].name" is required'),
    ],
)
def test_yaml_that_the_hub_refuses(front_matter, words):
    assert any(words in error for error in errors(front_matter))


@pytest.mark.parametrize("value", ["mit", "[apache-2.0, mit]", "other"])
def test_a_license_is_one_of_the_list_or_several(value):
    assert errors(f"license: {value}") == []


def test_front_matter_without_an_end_is_refused():
    assert list(find_errors("---\nlicense: mit\n# Hi\n")) != []
    assert list(find_errors("# Hi\n\n---\n")) == []


def test_each_result_needs_types_and_a_value():
    index = "model-index: [{name: x, results: [{task: {}, dataset: {name: d}, metrics: [{}]}]}]"
    place = "model-index[0].results[0]"
    assert errors(index) == [
        f'"{place}.task.type" is required',
        f'"{place}.dataset.type" is required',
        f'"{place}.metrics[0].type" is required',
        f'"{place}.metrics[0].value" is required',
    ]


def test_the_client_learns_what_is_wrong(hub, alice, tmp_path):
    alice.create_repo("alice/x")
    (tmp_path / "README.md").write_text("---\nlicense: [mit\n---\n")
    with pytest.raises(ValueError, match="cannot be read"):
        alice.upload_folder(repo_id="alice/x", folder_path=tmp_path)
    assert alice.list_repo_files("alice/x") == [".gitattributes"]
    ModelCard("---\nlicense: mit\n---\n").validate(repo_type="model")


def test_a_card_without_metadata_is_warned_of(http):
    answer = http.post("/api/validate-yaml", json={"content": "# Hi", "repoType": "model"})
    assert answer.json() == {
        "errors": [],
        "warnings": [{"message": "empty or missing yaml metadata in repo card"}],
    }
