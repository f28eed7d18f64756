"""Same input, seed and versions: the same weights to the byte."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.command_line import (
    CALIBRATION,
    HELD_OUT,
    MODEL,
    QUICK,
    call,
    copy_model,
    ladder,
    needs_shared,
    quick_table,
    run,
    weights_sha,
)

pytestmark = needs_shared

NAMES = [f"sample-2m-MLX-{target}bpw" for target in ("3.0", "4.0", "5.0")]


def hashes(out: Path) -> dict[str, dict[str, str]]:
    return {folder.name: weights_sha(folder) for folder in sorted(out.iterdir())}


@pytest.mark.slow
def test_two_runs_in_a_row_write_the_same_weights_and_the_same_cost_table(tmp_path):
    options = [*QUICK, "--formats=3g64,5g64", "--encoder=gptq", "--effort=normal"]
    for out in (tmp_path / "first", tmp_path / "second"):
        done = run("quantize", MODEL, "--bpw=4.0", f"--out={out}", *options).check()
        assert all(bar in done.err for bar in ("Probing", "Fitting blocks"))
    assert hashes(tmp_path / "first") == hashes(tmp_path / "second")
    tables, configs = (
        [path.read_text() for path in sorted(tmp_path.rglob(name))]
        for name in ("cost_table.json", "config.json")
    )
    assert len(tables) == len(configs) == 2
    assert tables[0] == tables[1]
    assert configs[0] == configs[1]


@pytest.mark.slow
def test_a_reused_cost_table_gives_the_weights_that_measuring_gave(tmp_path, tmp_path_factory):
    first = ladder(tmp_path_factory) / "out"
    assert sorted(hashes(first)) == NAMES
    table = first / NAMES[0] / "dynquant" / "cost_table.json"
    finished = run(
        "quantize", MODEL, "--bpw=3.0,4.0,5.0", f"--out={tmp_path}", "--cost-table", table,
        f"--calibration={CALIBRATION}", f"--eval={HELD_OUT}", "--calibration-tokens=512",
        "--eval-tokens=512", "--effort=fast",
    ).check()  # fmt: skip
    assert "Measuring" not in finished.err
    assert hashes(tmp_path) == hashes(first)
    for name in NAMES:
        again = tmp_path / name / "dynquant" / "cost_table.json"
        assert again.read_text() == table.read_text()


@pytest.mark.slow
def test_a_cost_table_serves_on_another_day_although_the_chat_template_writes_the_date(tmp_path):
    """As those of Llama 3 and Granite do; between these zones there are 26 hours."""
    model, chats = copy_model(tmp_path / "model"), tmp_path / "chats.jsonl"
    (model / "chat_template.jinja").write_text(
        "Today: {{ strftime_now('%d %B %Y') }}\n"
        "{% for m in messages %}[{{ m.role }}] {{ m.content }}\n{% endfor %}"
    )
    text = CALIBRATION.read_text()[:60_000]
    rows = (
        {"messages": [{"role": "user", "content": text[i : i + 500]}]}
        for i in range(0, 60_000, 500)
    )
    chats.write_text("\n".join(map(json.dumps, rows)))
    options = ["--effort=fast", "--encoder=minmax", f"--calibration={chats}"]
    options += ["--formats=3g64,4g64,8g64", "--calibration-tokens=512"]
    table, out = tmp_path / "table.json", tmp_path / "out"
    run("measure", model, f"--out={table}", *options, env={"TZ": "Etc/GMT+12"}).check()
    options += [f"--eval={HELD_OUT}", "--eval-tokens=512", f"--cost-table={table}"]
    run("quantize", model, "--bpw=4", f"--out={out}", *options, env={"TZ": "Etc/GMT-14"}).check()
    (papers,) = out.glob("*/dynquant")
    calibration = json.loads((papers / "plan.json").read_text())["calibration"]
    assert calibration == json.loads(table.read_text())["calibration"]
    assert calibration["template_date"] == "2024-07-26"
    card = (papers.parent / "README.md").read_text()
    assert "120 of 120 chats through the model's chat template with the date 2024-07-26" in card


def test_another_seed_samples_other_labels(tmp_path, tmp_path_factory):
    options = [word for word in QUICK if not word.startswith("--eval")]
    out = tmp_path / "table.json"
    call("measure", MODEL, f"--out={out}", "--seed=1", *options).check()
    first, second = (json.loads(p.read_text()) for p in (quick_table(tmp_path_factory), out))
    assert (first["seed"], second["seed"]) == (0, 1)
    assert first["layers"] != second["layers"]
    assert [layer["path"] for layer in first["layers"]] == [
        layer["path"] for layer in second["layers"]
    ]
