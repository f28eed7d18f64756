"""The repos of an order and their readers, before it is queued."""

from __future__ import annotations

from dataclasses import replace

import pytest

from dynquant.errors import RequestError
from dynquant.model.access import Access
from dynquant.report.forecast import one_layer_inventory
from dynquant.web.model_lookup import ModelPreview
from dynquant.web.orders import Order, outcome_of
from dynquant.web.pages.convert_view import outcome_view, preview_view
from dynquant.web.sign_in import Visitor

ANN = Visitor(name="ann", hub_id="1")
OPERATOR = replace(ANN, is_operator=True)
ORDER = Order(model="org/M", targets_bpw=(3.5, 4.5))
PREVIEW = ModelPreview(
    repo_id="org/M",
    hub_id="7",
    revision_sha="c0ffee",
    license="apache-2.0",
    gated="",
    is_private=False,
    downloads=1,
    model_type="qwen3",
    inventory=one_layer_inventory(10**9),
    is_rough=False,
    cache_bytes_per_token=None,
    quants=(),
)


def outcome(order=ORDER, preview=PREVIEW, *, visitor=ANN, namespace="quants", is_space=True):
    return outcome_of(order, preview, visitor=visitor, namespace=namespace, is_space=is_space)


def test_an_order_names_its_repos():
    assert outcome().repo_ids == ("quants/org__M-MLX-3.5bpw", "quants/org__M-MLX-4.5bpw")
    mine = replace(ORDER, destination="org")
    assert outcome(mine, visitor=OPERATOR).repo_ids[0] == "org/M-MLX-3.5bpw"


def test_an_unusual_order_of_a_stranger_gets_names_of_its_own():
    unusual = replace(ORDER, formats="4g64,8g64")
    assert "-custom-" in outcome(unusual).repo_ids[0]
    assert "-custom-" not in outcome(unusual, is_space=False).repo_ids[0]


@pytest.mark.parametrize(
    ("order", "visitor", "namespace", "said"),
    [
        (replace(ORDER, destination="ann"), ANN, "quants", "Models are published to 'quants'"),
        (replace(ORDER, destination="ann"), None, "quants", "Models are published to 'quants'"),
        (replace(ORDER, private=True), ANN, "quants", "private copy in your account"),
        (replace(ORDER, destination="a/b/c"), OPERATOR, "quants", "cannot be the id of a repo"),
        (ORDER, OPERATOR, None, "no default destination"),
    ],
)
def test_an_order_without_a_possible_destination_is_refused(order, visitor, namespace, said):
    with pytest.raises(RequestError, match=said):
        outcome(order, visitor=visitor, namespace=namespace)


@pytest.mark.parametrize(
    ("order", "preview", "access", "said"),
    [
        (ORDER, PREVIEW, Access(), "everyone (public)"),
        (
            replace(ORDER, private=True),
            PREVIEW,
            Access(is_private=True),
            "only quants and accounts that quants admits (private)",
        ),
        (
            ORDER,
            replace(PREVIEW, is_private=True, license=""),
            Access(is_private=True),
            "only quants and accounts that quants admits (private)",
        ),
        (
            ORDER,
            replace(PREVIEW, gated="auto"),
            Access(gated="auto"),
            "accounts that accept the terms of the original (gated)",
        ),
        (
            ORDER,
            replace(PREVIEW, gated="manual"),
            Access(gated="manual"),
            "accounts that quants admits (gated)",
        ),
    ],
)
def test_the_page_tells_the_repos_their_readers_and_the_license(order, preview, access, said):
    found = outcome(order, preview, visitor=OPERATOR, is_space=False)
    assert found.access == access
    html = outcome_view(found, preview)
    assert "<code>quants/org__M-MLX-3.5bpw</code>, <code>quants/org__M-MLX-4.5bpw</code>" in html
    assert said in html
    licensed = "apache-2.0, as the original" if preview.license else "the original names none"
    assert licensed in html


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({}, "public: everyone may read it"),
        ({"is_private": True}, "private: only accounts"),
        ({"gated": "auto"}, "gated: users must accept its terms"),
        ({"gated": "manual"}, "gated: its owner admits users"),
    ],
)
def test_access_to_the_original_is_said_in_words(changes, said):
    html = preview_view(
        replace(PREVIEW, **changes), page_url=lambda repo_id: f"https://x/{repo_id}"
    )
    assert said in html
    assert "1</dd>" in html
