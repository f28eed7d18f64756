from __future__ import annotations

import json
from dataclasses import replace
from importlib.metadata import version

import pytest

from dynquant.cli.kernels import kernel_times_here
from dynquant.quant.formats import QuantFormat
from dynquant.quant.kernel_times import KernelTime, KernelTimes
from tests.command_line import MODEL, call, needs_shared

FOUR = QuantFormat.from_name("4g64")
TIMES = KernelTimes(
    machine="A chip, CPU",
    mlx_version=version("mlx"),
    times=tuple(
        KernelTime(fmt=FOUR, num_weights=size, batch=1, by_experts=False, secs=size * 1e-8)
        for size in (10**3, 10**6)
    ),
    secs_per_block=0.0,
    secs_per_token=0.0,
)


def keep(home, times: KernelTimes) -> None:
    (home / "kernel_times.json").write_text(json.dumps(times.to_json()))


def test_kept_times_count_for_the_same_machine_and_version_of_mlx(tmp_path):
    assert kernel_times_here(tmp_path, TIMES.machine) is None
    keep(tmp_path, TIMES)
    assert kernel_times_here(tmp_path, TIMES.machine) == TIMES
    assert kernel_times_here(tmp_path, "Another chip, GPU") is None
    keep(tmp_path, replace(TIMES, mlx_version="0.1"))
    assert kernel_times_here(tmp_path, TIMES.machine) is None


@pytest.mark.parametrize("content", ["", "{", "[]", '{"machine": 1}'])
def test_a_file_that_cannot_be_read_counts_as_none(tmp_path, content):
    (tmp_path / "kernel_times.json").write_text(content)
    assert kernel_times_here(tmp_path, TIMES.machine) is None


@needs_shared
def test_planning_predicts_speed_from_the_times_of_this_machine(tmp_path, monkeypatch):
    from dynquant.quant.mlx.generation_speed import machine_name

    monkeypatch.setenv("DYNQUANT_HOME", str(tmp_path))
    keep(tmp_path, replace(TIMES, machine=machine_name()))
    found = call("plan", MODEL, "--bpw=4.5", "--json").check().json
    assert found["chip"] == machine_name()
    # 2.5 M weights at 10 ms a million, all read for each token.
    assert found["plans"][0]["tokens_per_sec"] == pytest.approx(39.3, rel=0.01)
    assert "products timed on this machine" in call("plan", MODEL, "--bpw=4.5").check().out
    assert "memory bandwidth" in call("plan", MODEL, "--bpw=4.5", "--on=M4").check().out
