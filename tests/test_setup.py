"""`make setup`: what the installer takes from pip's configuration, and how an interruption ends."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from scripts import blas_hint
from scripts.install_locked import read_settings, uv_environment

ROOT = Path(__file__).parents[1]


def test_settings_of_pip_are_read_as_pip_ranks_them():
    listed = (
        ":env:.timeout='180'\n"
        "global.extra-index-url='file:///one file:///two'\n"
        "global.index-url='https://everybody.example/simple'\n"
        "global.timeout='15'\n"
        "install.index-url='https://install.example/simple'\n"
        "download.index-url='https://download.example/simple'\n"
    )
    assert read_settings(listed) == {
        "extra-index-url": "file:///one file:///two",
        "index-url": "https://install.example/simple",
        "timeout": "180",
    }
    assert read_settings("") == {}


def test_uv_reaches_what_pip_reaches():
    settings = {
        "index-url": "https://packages.example/simple",
        "extra-index-url": "\nfile:///one\nfile:///two",
        "find-links": "/wheels /more",
        "cert": "/etc/ssl/own.pem",
        "proxy": "http://proxy.example:3128",
        "default-timeout": "180",
        "constraint": "/etc/constraints.txt",
    }
    assert uv_environment(settings, {}) == {
        "UV_INDEX_STRATEGY": "unsafe-best-match",
        "UV_DEFAULT_INDEX": "https://packages.example/simple",
        "UV_INDEX": "file:///one file:///two",
        "UV_FIND_LINKS": "/wheels,/more",
        "UV_HTTP_TIMEOUT": "180",
        "SSL_CERT_FILE": "/etc/ssl/own.pem",
        "ALL_PROXY": "http://proxy.example:3128",
    }


def test_what_is_set_for_uv_stays():
    own = {"UV_DEFAULT_INDEX": "https://own.example/simple", "SSL_CERT_FILE": "/own.pem"}
    found = uv_environment({"index-url": "https://pip.example/simple", "cert": "/pip.pem"}, own)
    assert found.keys().isdisjoint(own)


INSTALLER = """
import pathlib, sys, sysconfig
fails = pathlib.Path("fails")
when = fails.read_text() if fails.exists() else "never"
if when != "before it begins":
    pathlib.Path(sysconfig.get_path("purelib"), "package").mkdir(exist_ok=True)
sys.exit(when != "never")
"""


@pytest.fixture
def checkout(tmp_path):
    """The setup script, an installer that fails where `fails` says so, and a quick `python3`."""
    scripts = tmp_path / "scripts"
    scripts.mkdir()
    shutil.copy(ROOT / "scripts" / "setup_venv.sh", scripts)
    (scripts / "install_locked.py").write_text(INSTALLER)
    (scripts / "openblas_for_mlx.py").touch()
    programs = tmp_path / "bin"
    programs.mkdir()
    python = programs / "python3"
    python.write_text(
        f'#!/bin/sh\n[ "$2" = venv ] && set -- "$@" --without-pip\nexec {sys.executable} "$@"\n'
    )
    python.chmod(0o755)
    return tmp_path


def set_up(checkout: Path, part: str = "run") -> subprocess.CompletedProcess[str]:
    path = f"{checkout / 'bin'}{os.pathsep}{os.environ['PATH']}"
    return subprocess.run(
        ["sh", "scripts/setup_venv.sh", ".venv", part],
        cwd=checkout,
        env=os.environ | {"PATH": path},
        capture_output=True,
        text=True,
        check=False,
    )


def test_an_environment_whose_setup_did_not_end_is_made_anew(checkout):
    (checkout / "fails").write_text("halfway")
    first = set_up(checkout)
    assert first.returncode == 1
    assert "'make setup' tries again" in first.stderr
    half_installed = checkout / ".venv" / "lib" / "half of a package"
    half_installed.touch()
    (checkout / "fails").unlink()
    assert set_up(checkout).returncode == 0
    assert not half_installed.exists()
    assert (checkout / ".venv" / "bin" / "python").exists()


def test_without_a_network_the_environment_stays_as_it_was(checkout):
    assert set_up(checkout).returncode == 0
    own = checkout / ".venv" / "lib" / "something of the developer"
    own.touch()
    (checkout / "fails").write_text("before it begins")
    assert [set_up(checkout).returncode for _ in range(2)] == [1, 1]
    assert own.exists()


def test_a_finished_environment_is_kept_and_brought_up_to_date(checkout):
    assert set_up(checkout).returncode == 0
    own = checkout / ".venv" / "lib" / "something of the developer"
    own.touch()
    done = set_up(checkout)
    assert (done.returncode, own.exists()) == (0, True)
    assert "making" not in done.stdout


def test_mlx_for_a_gpu_can_be_installed_before_the_driver(monkeypatch, capsys):
    def import_mlx() -> str:
        raise ImportError("libcuda.so.1: cannot open shared object file: No such file or directory")

    monkeypatch.setattr(blas_hint, "slow_blas_sentence", import_mlx)
    blas_hint.main()
    assert "note: MLX is the build for an NVIDIA GPU" in capsys.readouterr().err


@pytest.mark.skipif(sys.platform != "linux", reason="CUDA=1 is for Linux")
def test_an_environment_is_made_anew_between_the_builds_of_mlx_and_kept_within_one(checkout):
    kept = checkout / ".venv" / "lib" / "something of the developer"

    def make(part: str, stamp: str) -> bool:
        """Set up as the Makefile does; whether the environment is still the one before."""
        done = set_up(checkout, part)
        assert done.returncode == 0, done.stderr
        was_kept = kept.exists()
        (checkout / ".venv" / stamp).touch()
        kept.touch()
        return was_kept

    cpu, cuda = ".dynquant-setup", ".dynquant-setup-cuda"
    assert not make("run", cpu)
    assert make("run", cpu)
    assert not make("cuda", cuda)
    assert make("cuda", cuda)
    assert not make("run", cpu)
