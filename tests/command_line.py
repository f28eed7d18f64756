"""The command line as a person runs it, and the models and texts to run it on."""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import io
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.waiting import PATIENCE_SECS

__all__ = [
    "CALIBRATION",
    "HELD_OUT",
    "MODEL",
    "QUICK",
    "SHARED",
    "Finished",
    "call",
    "copy_model",
    "edit_config",
    "environment",
    "ladder",
    "needs_shared",
    "once",
    "quick_table",
    "run",
    "snapshot",
    "weights_sha",
]

SHARED = Path(__file__).parents[2] / "shared"
MODEL = SHARED / "models" / "sample-2m"
CALIBRATION = SHARED / "text" / "calibration.txt"
HELD_OUT = SHARED / "text" / "heldout.txt"

needs_shared = pytest.mark.skipif(
    not MODEL.is_dir(), reason=f"no '{SHARED.name}' folder with models and texts beside the repo"
)

QUICK = (
    "--formats=3g64,4g64,8g64",
    "--encoder=minmax",
    "--effort=fast",
    f"--calibration={CALIBRATION}",
    f"--eval={HELD_OUT}",
    "--calibration-tokens=512",
    "--eval-tokens=512",
)
"""Options of a conversion that takes seconds."""


@dataclass(frozen=True)
class Finished:
    """How a command ended."""

    code: int | str | None
    out: str
    err: str

    @property
    def json(self) -> Any:
        """The one object on stdout."""
        return json.loads(self.out)

    def check(self) -> Finished:
        """It must have worked."""
        assert self.code in {0, None}, self.err
        return self


def environment(**variables: str) -> dict[str, str]:
    """This process's environment without accounts, and with a Hub that is never there."""
    hidden = ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN", "HF_HUB_OFFLINE", "COLUMNS")
    kept = {name: value for name, value in os.environ.items() if name not in hidden}
    # One thread each: the tests themselves run side by side on few cores.
    fixed = {"HF_ENDPOINT": "http://127.0.0.1:9", "OPENBLAS_NUM_THREADS": "1"}
    return kept | fixed | variables


def run(
    *words: str | Path,
    env: Mapping[str, str] | None = None,
    preexec: Callable[[], None] | None = None,
) -> Finished:
    """`dynquant words…` in a process of its own."""
    child = subprocess.run(
        [sys.executable, "-m", "dynquant", *map(str, words)],
        env=environment(**env or {}),
        capture_output=True,
        encoding="utf-8",
        timeout=1.5 * PATIENCE_SECS,  # a whole conversion to three sizes
        preexec_fn=preexec,
        check=False,
    )
    return Finished(child.returncode, child.stdout, child.stderr)


def call(*words: str | Path) -> Finished:
    """The same entry point in this process, where MLX is imported once for many commands."""
    from dynquant.cli import main

    out, err, argv, code = io.StringIO(), io.StringIO(), sys.argv, None
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            sys.argv = ["dynquant", *map(str, words)]
            main()
        except SystemExit as ending:
            code = ending.code
        finally:
            sys.argv = argv
    return Finished(code, out.getvalue(), err.getvalue())


def copy_model(folder: Path, source: Path = MODEL) -> Path:
    """A copy of a model that may be changed."""
    folder.mkdir(parents=True)
    for file in source.iterdir():
        shutil.copyfile(file, folder / file.name)
    return folder


def edit_config(folder: Path, **changes: Any) -> Path:
    """Change keys of config.json; None removes one."""
    path = folder / "config.json"
    config = json.loads(path.read_text()) | changes
    path.write_text(json.dumps({key: value for key, value in config.items() if value is not None}))
    return folder


def snapshot(folder: Path) -> dict[str, str]:
    """Every path below `folder`, hidden ones too, with the hash of its content."""
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        if path.is_file()
        else "folder"
        for path in sorted(folder.rglob("*"))
    }


def weights_sha(folder: Path) -> dict[str, str]:
    """Name → hash of the weight files of a finished model."""
    files = sorted(folder.glob("*.safetensors"))
    assert files, f"no weights in {folder.name}"
    return {file.name: hashlib.sha256(file.read_bytes()).hexdigest() for file in files}


def once(factory: pytest.TempPathFactory, name: str, make: Callable[[Path], object]) -> Path:
    """The folder that `make` fills, made once for all workers of a test run."""
    root = factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        root = root.parent
    folder = root / name
    with (root / f"{name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not (folder / "made").exists():
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir()
            make(folder)
            (folder / "made").touch()
    return folder


def quick_table(factory: pytest.TempPathFactory) -> Path:
    """A cost table of MODEL, the formats and the text of QUICK."""
    options = [word for word in QUICK if not word.startswith("--eval")]
    folder = once(
        factory,
        "quick-table",
        lambda folder: run("measure", MODEL, f"--out={folder / 'table.json'}", *options).check(),
    )
    return folder / "table.json"


def ladder(factory: pytest.TempPathFactory) -> Path:
    """MODEL at three targets with the default menu and encoder: `out`, `stdout` and `stderr`."""

    def make(folder: Path) -> None:
        texts = (f"--calibration={CALIBRATION}", f"--eval={HELD_OUT}")
        sizes = ("--calibration-tokens", "512", "--eval-tokens", "512")
        rest = ("--effort", "fast", "--json")
        out = folder / "out"
        done = run("quantize", MODEL, "--bpw", "3.0,4.0,5.0", "--out", out, *texts, *sizes, *rest)
        (folder / "stdout").write_text(done.check().out)
        (folder / "stderr").write_text(done.err)

    return once(factory, "ladder", make)
