"""Hostile cards of local folders; tests/report/test_card.py has their effect on our own card."""

from __future__ import annotations

import json
import sys

import pytest

from dynquant.hub.local import local_source
from dynquant.quant.options import RecipeOptions
from dynquant.runner.spec import JobSpec
from tests.hostile.attempt import MAX_PEAK_BYTES, apart

pytestmark = pytest.mark.harden("hostile models")


def bomb(levels: int = 30) -> str:
    """Billion laughs: every line has the line before it ten times."""
    lines = ["a0: &a0 [lol, lol]"]
    lines += [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 10)}]" for n in range(1, levels)]
    return "\n".join([*lines, f"extra_gated_fields: {{x: *a{levels - 1}}}", "license: mit"])


CARDS = {
    "a billion laughs": bomb(),
    "a text that holds itself": "extra_gated_fields: &a {x: *a}\nlicense: mit",
    "lists within lists": "license: " + "[" * 5000 + "]" * 5000,
    "an object of Python": "license: !!python/object/apply:os.system ['touch ran']",
    "a tag of nobody": "license: !evil {a: b}",
    "no YAML": "license: [",
    "a list": "- license",
    "fifty million letters": "license: " + "a" * 50_000_000,
    "a key that is a list": "? [a, b]\n: c\nlicense: mit",
    "a date for a license": "license: 2001-01-01\nextra_gated_prompt: 12:30:45",
}


def read_card(model: str) -> None:
    """The first check of a local folder by a command, in a process of its own."""
    source = local_source(model, None)
    assert source is not None
    spec = JobSpec(
        source=source,
        targets_bpw=(4.0,),
        options=RecipeOptions(),
        max_reading_cpu_secs=1,
    )
    sys.stdout.write(json.dumps({"result": len(spec.to_json())}))


@pytest.mark.parametrize("name", CARDS)
def test_a_card_that_nobody_can_read_carries_no_license_and_does_no_harm(name, tmp_path):
    model = tmp_path / "model"
    model.mkdir()
    (model / "README.md").write_text(f"---\n{CARDS[name]}\n---\n# Model\n")
    ending = apart(read_card, tmp_path, str(model))
    assert ending.reason is None, ending.errors
    assert ending.said["result"] < 10_000
    assert ending.peak_bytes < MAX_PEAK_BYTES
    assert not list(tmp_path.rglob("ran"))
