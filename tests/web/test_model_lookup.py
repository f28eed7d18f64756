"""The preview of a model, before any download."""

from __future__ import annotations

import json
import tempfile

import pytest
from huggingface_hub import constants

from dynquant.errors import (
    ModelNotFoundError,
    QuantizedSourceError,
    UnsupportedModelError,
)
from dynquant.hub.models import HubModels, opened_briefly
from dynquant.hub.search import HubSearch
from dynquant.report.forecast import target_forecast
from dynquant.web.model_lookup import ModelLookup, model_id
from tests.hub.conftest import safetensors_bytes, tiny_files
from tests.web.scene import SAMPLE, SOURCE, make_family, publish

pytestmark = pytest.mark.hub


@pytest.fixture
def model_lookup(hub, pauses, tmp_path) -> ModelLookup:
    search = HubSearch(endpoint=hub.url, token=False, sleep=pauses.append)

    def open_hub() -> HubModels:
        return HubModels(
            endpoint=hub.url, token=False, cache_dir=tmp_path / "cache", sleep=pauses.append
        )

    return ModelLookup(search, open_hub=open_hub)


@pytest.mark.harden("web")
def test_a_look_leaves_nothing_on_the_disk(hub, tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    hub.add(SOURCE, SAMPLE)
    hub.add("team/broken", tiny_files(**{"config.json": b"{"}))
    model_lookup = ModelLookup(
        HubSearch(endpoint=hub.url, token=False),
        open_hub=lambda: opened_briefly(endpoint=hub.url, token=False),
    )
    assert model_lookup(SOURCE).model_type == "qwen3"
    with pytest.raises(UnsupportedModelError):
        model_lookup("team/broken")
    assert list(tmp_path.iterdir()) == []


def with_config(**fields) -> dict[str, bytes]:
    return tiny_files(**{"config.json": json.dumps({"model_type": "qwen3"} | fields).encode()})


@pytest.mark.parametrize(
    "text",
    [
        "Qwen/Qwen3-8B",
        "  Qwen/Qwen3-8B \n",
        "https://huggingface.co/Qwen/Qwen3-8B",
        "https://huggingface.co/Qwen/Qwen3-8B/tree/main?library=mlx#files",
        "huggingface.co/Qwen/Qwen3-8B/",
        "hf.co/Qwen/Qwen3-8B",
    ],
)
def test_names_and_pasted_addresses_are_understood(text):
    assert model_id(text) == "Qwen/Qwen3-8B"


@pytest.mark.parametrize(
    "text",
    [
        "",
        "a b/c",
        "just-a-name",
        "../x",
        "a/b/c",
        "<b>/x",
        "https://huggingface.co/",
        "a/\0",
        5,
        ["a/b"],
        "https://[x/y",
    ],
)
def test_what_is_no_name_is_refused(text):
    with pytest.raises(ModelNotFoundError, match="'Qwen/Qwen3-8B'"):
        model_id(text)


def test_headers_tell_sizes_and_memory_and_weights_are_not_read(hub, model_lookup):
    hub.add(SOURCE, SAMPLE)
    preview = model_lookup(SOURCE)
    assert preview.model_type == "qwen3"
    config = json.loads((SAMPLE / "config.json").read_text())
    heads = config["num_key_value_heads"] * config["head_dim"] * config["num_hidden_layers"]
    assert preview.cache_bytes_per_token == 2 * 2 * heads
    assert 2.2 < preview.inventory.min_bpw < 3
    weights = sum(file.stat().st_size for file in SAMPLE.glob("*.safetensors"))
    assert sum(request.num_bytes for request in hub.requests) < weights / 4
    num_requests = len(hub.requests)
    assert model_lookup(SOURCE) is preview
    assert len(hub.requests) == num_requests


def test_the_memory_and_the_size_of_a_target_follow_from_the_headers(hub, model_lookup):
    hub.add(SOURCE, SAMPLE)
    preview = model_lookup(SOURCE)
    one = target_forecast(
        preview.inventory,
        4.5,
        context_tokens=1_000,
        cache_bytes_per_token=preview.cache_bytes_per_token,
        measured=(),
    )
    weights = sum(file.stat().st_size for file in SAMPLE.glob("*.safetensors"))
    assert one.size_bytes == pytest.approx(weights * 4.5 / 16, rel=0.02)
    cache_bytes = 1_000 * (preview.cache_bytes_per_token or 0)
    assert one.memory_bytes == pytest.approx(1.05 * (one.size_bytes + cache_bytes), abs=1)


def test_quants_that_dynquant_made_before_are_named(hub, model_lookup):
    hub.add("Qwen/Qwen3-0.6B", SAMPLE)
    publish(hub, make_family()[1])
    assert [each.repo_id for each in model_lookup("Qwen/Qwen3-0.6B").quants] == [
        "quants/Qwen3-0.6B-MLX-4.5bpw"
    ]


def test_of_a_gated_model_the_parameters_are_known_and_no_more(hub, model_lookup):
    hub.add("meta/gated", SAMPLE, gated="manual")
    preview = model_lookup("meta/gated")
    assert (preview.gated, preview.is_rough, preview.model_type) == ("manual", True, "")
    assert preview.cache_bytes_per_token is None
    assert 2_000_000 < preview.inventory.num_parameters < 3_000_000


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"model_type": "no_such_family"}, "family 'no_such_family', which mlx-lm does not run"),
        ({"model_file": "run.py"}, "never runs code from a model"),
        (
            {"quantization_config": {"quant_method": "awq"}},
            r"is quantized already \(AWQ\).*the original\.$",
        ),
        ({"model_type": None}, "names no family|does not run"),
    ],
)
def test_what_the_config_shows_not_to_work_is_refused(hub, model_lookup, fields, words):
    hub.add("org/odd", with_config(**fields))
    with pytest.raises(UnsupportedModelError, match=words):
        model_lookup("org/odd")


def in_float8(card: str = "") -> dict[str, bytes]:
    weights = {
        "a.weight": ("F8_E4M3", [2, 32], bytes(64)),
        "a.weight_scale_inv": ("F32", [1, 1], bytes(4)),
    }
    files = {"model.safetensors": safetensors_bytes(weights), "README.md": card.encode()}
    return tiny_files(**files)


def test_an_original_in_low_precision_is_shown_as_it_is_dequantized(hub, model_lookup):
    hub.add("lab/original", in_float8())
    assert model_lookup("lab/original").inventory.num_parameters == 64


def test_of_a_quant_the_base_model_is_named(hub, model_lookup):
    card = "---\nbase_model: lab/original\nbase_model_relation: quantized\n---\n"
    hub.add("me/smaller", in_float8(card))
    with pytest.raises(QuantizedSourceError, match=r"of 'lab/original' \(https://") as caught:
        model_lookup("me/smaller")
    assert "--dequantize" not in str(caught.value)


def test_headers_of_strangers_are_not_believed(hub, model_lookup):
    for number, header in enumerate((b"[1]", b'{"a": {"dtype": "F16", "shape": [-1, 2]}}', b"{")):
        content = len(header).to_bytes(8, "little") + header
        hub.add(f"org/odd{number}", tiny_files(**{"model.safetensors": content}))
        with pytest.raises(UnsupportedModelError, match="header that cannot be read"):
            model_lookup(f"org/odd{number}")
