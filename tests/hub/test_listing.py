"""Refusals and fields of a source that follow from the metadata of a repo alone."""

from __future__ import annotations

import pytest

from dynquant.errors import QuantizedSourceError, Reason, RequestError
from tests.hub.conftest import tiny_files

pytestmark = pytest.mark.hub

REPO = "alice/tiny"
WEIGHTS = {"model.safetensors": None}


def card(text: str) -> bytes:
    return f"---\n{text}\n---\n# A model\n".encode()


@pytest.mark.parametrize(
    ("files", "reason"),
    [
        (tiny_files(**{"config.json": None}), Reason.NO_CONFIG),
        (tiny_files(**WEIGHTS), Reason.NO_WEIGHTS),
        (tiny_files(**WEIGHTS, **{"pytorch_model.bin": b"x"}), Reason.PICKLED_WEIGHTS),
        (tiny_files(**WEIGHTS, **{"a.Q4_K_M.gguf": b"x"}), Reason.GGUF),
        (tiny_files(**WEIGHTS, **{"consolidated.safetensors": b"x"}), Reason.FOREIGN_LAYOUT),
        (
            tiny_files(**WEIGHTS, **{"adapter_config.json": b"{}", "adapter.safetensors": b"x"}),
            Reason.ADAPTER,
        ),
        (
            tiny_files(
                **{"README.md": card("base_model: org/Big\nbase_model_relation: quantized")}
            ),
            Reason.ALREADY_QUANTIZED,
        ),
    ],
)
def test_every_refusal_has_a_reason_and_comes_before_any_weights(hub, models, files, reason):
    hub.add(REPO, files)
    for fetch in (models.fetch, models.fetch_headers):
        with pytest.raises(RequestError) as caught:
            fetch(REPO)
        assert caught.value.reason == reason
        assert str(caught.value).endswith(".")
    assert hub.asked(r"safetensors") == []


@pytest.mark.parametrize(
    ("attributes", "reason"),
    [
        ({"gated": True}, Reason.GATED),
        ({"private": True}, Reason.MODEL_NOT_FOUND),
        ({"disabled": True}, Reason.DISABLED),
    ],
)
def test_a_repo_that_this_person_may_not_read_says_so(hub, models, attributes, reason):
    hub.add(REPO, tiny_files(), **attributes)
    with pytest.raises(RequestError) as caught:
        models.fetch_headers(REPO)
    assert caught.value.reason == reason


def test_a_revision_that_vanished_is_named(hub, models):
    hub.add(REPO, tiny_files())
    with pytest.raises(RequestError, match="no revision 'v2'") as caught:
        models.fetch(REPO, revision="v2")
    assert caught.value.reason == Reason.REVISION_NOT_FOUND


def test_a_quant_is_taken_on_request(hub, models):
    readme = card("base_model: org/Big\nbase_model_relation: quantized")
    hub.add(REPO, tiny_files(**{"README.md": readme}))
    assert models.fetch(REPO, allow_quantized=True).name == REPO


def test_a_publisher_s_own_repo_in_low_precision_is_taken(hub, models):
    readme = card("base_model: alice/Big\nbase_model_relation: quantized")
    hub.add(REPO, tiny_files(**{"README.md": readme}))
    assert models.fetch(REPO).quantized_from == ("alice/Big",)


def test_a_local_folder_is_judged_by_its_own_card(models, tmp_path):
    for name, content in tiny_files().items():
        (tmp_path / name).write_bytes(content)
    assert models.fetch(str(tmp_path)).quantized_from == ()
    (tmp_path / "README.md").write_bytes(
        card("base_model: org/Big\nbase_model_relation: quantized")
    )
    for fetch in (models.fetch, models.fetch_headers):
        with pytest.raises(QuantizedSourceError, match=r"https://huggingface\.co/org/Big"):
            fetch(str(tmp_path))
        assert fetch(str(tmp_path), allow_quantized=True).quantized_from == ("org/Big",)


def test_a_source_carries_what_its_repo_asks_of_people(hub, models):
    readme = card(
        "license: llama3\nextra_gated_prompt: Be good.\nextra_gated_fields:\n  Name: text\n"
        "pipeline_tag: text-generation"
    )
    hub.tokens["hf_alice"] = "alice"
    hub.add(REPO, tiny_files(**{"README.md": readme}))
    source = models.fetch(REPO)
    assert source.license_fields == {"license": "llama3"}
    assert source.gated_fields == {
        "extra_gated_prompt": "Be good.",
        "extra_gated_fields": {"Name": "text"},
    }
    assert (source.gated, source.is_private) == ("", False)


def test_a_gated_source_that_is_open_to_this_person_says_how_it_is_gated(hub, tmp_path):
    from dynquant.hub import HubModels

    hub.tokens["hf_alice"] = "alice"
    hub.add(REPO, tiny_files(), gated="auto")
    with HubModels(endpoint=hub.url, cache_dir=tmp_path, token="hf_alice") as models:
        assert models.fetch(REPO).gated == "auto"


def test_a_download_tells_its_progress_in_bytes(hub, models):
    from contextlib import contextmanager

    counted: list[int] = []
    announced: list[dict[str, int]] = []

    class Bytes:
        @contextmanager
        def track(self, steps):
            announced.append(dict(steps))
            yield lambda step, amount=1: counted.append(amount)

    files = tiny_files(**{"vocab.txt": b"x" * 300_000, "original/big.safetensors": b"y" * 10**6})
    hub.add(REPO, files)
    total = sum(len(content) for name, content in files.items() if "/" not in name)
    models.fetch(REPO, progress=Bytes())
    assert announced == [{"download": total}]
    assert sum(counted) == total
    counted.clear()
    models.fetch(REPO, progress=Bytes())
    assert counted == [total]  # all are downloaded already
