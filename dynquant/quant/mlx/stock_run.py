"""Stock mlx-lm or mlx-vlm in a process of its own: load a folder, run it, generate.

Nothing that this process holds in memory can help the folder to load. The other process
(`stock_process`) inherits no token and is confined as far as the system allows.
"""

from __future__ import annotations

import errno
import json
import os
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import IO, Any

import numpy as np

from dynquant.errors import disk_errors_translated
from dynquant.quant.cache_bits import CacheLoss, cache_losses_in
from dynquant.quant.mlx.model_inputs import ModelInputs
from dynquant.quant.speed import MeasuredSpeed
from dynquant.sandbox import clean_environment, confined, is_confined

__all__ = ["StockFailedError", "StockRequest", "StockRun", "answer_of", "run_stock"]

_TIMEOUT_SECS = 3600
_MAX_ANSWER_BYTES = 4 << 30
_IMAGE, _PREFIX = "image:", "dynquant-stock-"
_DISK_ERRORS = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


class StockFailedError(Exception):
    """The stock library does not load or run the folder; the message is its last line."""


@dataclass(frozen=True, kw_only=True)
class StockRequest:
    """A run of a stock runtime.

    Attributes:
        runtime: `mlx-lm` or `mlx-vlm`.
        windows: Token ids of each window, of any length.
        image: Whether to run a question about a generated image behind them.
        settings: Values that count in place of those in `config.json`.
        generate: Whether to go on from a short prompt, with the folder's own tokenizer.
        text: Token ids of a long text, to time the model and to try caches on; empty to do neither.
        by_blocks: Whether to hold one block at a time; for what is larger than memory.
    """

    runtime: str = "mlx-lm"
    windows: Sequence[Sequence[int]] = ()
    image: bool = False
    settings: Mapping[str, Any] = field(default_factory=dict)
    generate: bool = False
    text: Sequence[int] = ()
    by_blocks: bool = False


@dataclass(frozen=True, kw_only=True)
class StockRun:
    """The results of a run.

    Attributes:
        stored_bpw: As `mlx_lm` counts it.
        computed: Logits of each window in float32, (seq, vocab); block by block in the dtype that
            dynquant computes in here.
        own: The same in the model's own dtype; None where this machine cannot compute in it.
        prompt: Token ids of the prompt.
        generated: Token ids that came after it.
        text: The prompt and what came after it.
        image: The question about an image as the processor cut it; its logits are the last.
        speed: In the model's own dtype; None where that was not to be timed, or cannot be.
        cache_losses: Of caches of fewer bits; empty where they were not tried, or cannot be.
    """

    stored_bpw: float
    computed: list[np.ndarray]
    own: list[np.ndarray] | None
    prompt: list[int]
    generated: list[int]
    text: str
    image: ModelInputs | None = None
    speed: MeasuredSpeed | None = None
    cache_losses: tuple[CacheLoss, ...] = ()


def run_stock(folder: Path, request: StockRequest, *, home: Path | None = None) -> StockRun:
    """Run the stock library on `folder`.

    Args:
        folder: A model's folder, checked.
        request: The run.
        home: See `answer_of`.

    Raises:
        StockFailedError: It does not load or run.
        StorageFullError: The folder for temporary files is full.
    """
    with answer_of(
        "dynquant.quant.mlx.stock_process", folder, asdict(request), home=home
    ) as answer:
        return _read(answer)


@contextmanager
def answer_of(
    module: str, folder: Path, request: object, *, home: Path | None = None
) -> Iterator[IO[bytes]]:
    """The answer of `module` on `folder`, run in a process of its own; a file of numpy's.

    Args:
        module: Name of the module to run.
        folder: A model's folder, checked.
        request: JSON types.
        home: Folder where the process keeps what it compiles, for others on the same model; None
            for a new one. A GPU compiles the kernels of each format for up to a minute.

    Raises:
        StockFailedError: It fails, or its answer is too long.
        StorageFullError: The folder for temporary files is full.
    """
    command = [sys.executable, "-m", module, str(folder.absolute())]
    # The answer comes through a file without a name, which nothing else can put in its place.
    with (
        disk_errors_translated(),
        tempfile.TemporaryFile() as answer,
        nullcontext(home) if home else tempfile.TemporaryDirectory(prefix=_PREFIX) as own,
    ):
        # MLX loads from there what it has compiled; a process that is not confined shares it with
        # no other model.
        scratch = tempfile.gettempdir() if is_confined() else own
        try:
            child = subprocess.run(
                confined(command, writable=[Path(own)], readable=_places(folder)),
                env=clean_environment(Path(own), {"HF_HUB_OFFLINE": "1", "TMPDIR": str(scratch)}),
                cwd=own,
                input=json.dumps(request).encode(),
                stdout=answer,
                stderr=subprocess.PIPE,
                timeout=_TIMEOUT_SECS,
                check=False,
            )
        except subprocess.TimeoutExpired as error:
            raise StockFailedError("it took longer than an hour") from error
        if child.returncode != 0:
            said = child.stderr.decode("utf-8", errors="replace").strip().splitlines()
            reason = (said or [f"it ended with code {child.returncode}"])[-1]
            if any(os.strerror(code) in reason for code in _DISK_ERRORS):
                raise OSError(errno.ENOSPC, reason)
            raise StockFailedError(reason.replace(str(folder), "the folder")[:300])
        if os.fstat(answer.fileno()).st_size > _MAX_ANSWER_BYTES:
            raise StockFailedError("its answer is too long")
        answer.seek(0)
        yield answer


def _places(folder: Path) -> list[Path]:
    """The folder, and where links in it lead: a snapshot in the cache of the Hub has those."""
    return [folder, *{path.resolve().parent for path in folder.iterdir() if path.is_symlink()}]


def _read(answer: IO[bytes]) -> StockRun:
    try:
        with np.load(answer, allow_pickle=False) as arrays:
            facts = json.loads(bytes(arrays["facts"]))
            runs = {
                name: [arrays[f"{name}-{index}"] for index in range(int(facts["num_windows"]))]
                for name in ("computed", "own")
                if facts[f"has_{name}"]
            }
            image = {
                name.removeprefix(_IMAGE): arrays[name]
                for name in arrays.files
                if name.startswith(_IMAGE)
            }
        return StockRun(
            stored_bpw=float(facts["stored_bpw"]),
            computed=runs.get("computed", []),
            own=runs.get("own"),
            prompt=[int(token) for token in facts["prompt"]],
            generated=[int(token) for token in facts["generated"]],
            text=str(facts["text"]),
            image=ModelInputs.from_arrays(image) if image else None,
            speed=MeasuredSpeed.from_json(facts["speed"]) if facts.get("speed") else None,
            cache_losses=cache_losses_in(facts.get("cache_losses", ())),
        )
    except (ValueError, KeyError, TypeError, zipfile.BadZipFile) as error:
        raise StockFailedError("its answer cannot be read") from error
