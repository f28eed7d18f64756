"""The environment of a confined process."""

from __future__ import annotations

from dynquant.sandbox import clean_environment


def test_a_child_takes_over_the_number_of_threads_and_no_token(tmp_path, monkeypatch):
    kept = {"OPENBLAS_NUM_THREADS": "3", "OMP_NUM_THREADS": "2", "PATH": "/usr/bin"}
    for name, value in {**kept, "HF_TOKEN": "hf_canary", "HOME": "/root"}.items():
        monkeypatch.setenv(name, value)
    found = clean_environment(tmp_path, {"TMPDIR": "/elsewhere"})
    assert found.items() >= {**kept, "HOME": str(tmp_path), "TMPDIR": "/elsewhere"}.items()
    assert "HF_TOKEN" not in found
