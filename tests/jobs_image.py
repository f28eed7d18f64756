"""The image of a Job on the local Hub: a `uv` that installs nothing and hands out this checkout."""

from __future__ import annotations

import io
import sys
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

__all__ = ["parquet", "programs_of_the_image"]

_LOCK = Path(__file__).parents[1] / "requirements" / "cuda.lock"
_UV = r"""#!/bin/sh
set -eu
case "$1" in
venv)
    mkdir -p "$3/bin" "$3/share/dynquant"
    cp "LOCK" "$3/share/dynquant/"
    cp "${0%/*}/dynquant" "$3/bin/"
    ;;
pip)
    for last; do :; done
    case "$last" in
    */cuda.lock) test -f "$last" ;;
    dynquant==* | "dynquant @ git+https://"*@????????????????????????????????????????) ;;
    *) echo "uv: $last is not pinned" >&2; exit 1 ;;
    esac
    echo "Installed $last"
    ;;
esac
"""
_PROGRAM = """#!/bin/sh
[ "$1" != runner ] || set -- runner --until-idle IDLE_MINS
exec "PYTHON" -m dynquant "$@"
"""


def programs_of_the_image(folder: Path, *, idle_mins: str = "3") -> Path:
    """A folder of programs for `LocalHub.machines.programs`; a runner in it ends sooner."""
    folder.mkdir(parents=True, exist_ok=True)
    program = _PROGRAM.replace("IDLE_MINS", idle_mins).replace("PYTHON", sys.executable)
    for name, text in (("uv", _UV.replace("LOCK", str(_LOCK))), ("dynquant", program)):
        (folder / name).write_text(text)
        (folder / name).chmod(0o755)
    return folder


def parquet(path: Path) -> bytes:
    """A text as the one row of a dataset."""
    sink = io.BytesIO()
    pq.write_table(pa.table({"text": [path.read_text(encoding="utf-8")]}), sink)
    return sink.getvalue()
