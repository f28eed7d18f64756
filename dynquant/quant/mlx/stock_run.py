"""Stock mlx-lm in a process of its own: load a folder, run token windows, generate.

Run as `python -m dynquant.quant.mlx.stock_run FOLDER`, the request as JSON on standard input,
the answer in numpy's format on standard output. Nothing that this process holds in memory can help
the folder to load, no token is inherited, and the process is confined as far as the system allows.
"""

from __future__ import annotations

import errno
import json
import os
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import IO, Any

import numpy as np

from dynquant.errors import disk_errors_translated
from dynquant.sandbox import clean_environment, confined, is_confined

__all__ = ["StockFailedError", "StockRequest", "StockRun", "run_stock"]

_TIMEOUT_SECS = 3600
_MAX_ANSWER_BYTES = 4 << 30
_DISK_ERRORS = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_PROMPT = "The"
_NUM_GENERATED = 24


class StockFailedError(Exception):
    """Stock mlx-lm does not load or run the folder; the message is its last line."""


@dataclass(frozen=True, kw_only=True)
class StockRequest:
    """What to run.

    Attributes:
        windows: Token ids of each window, of any length.
        settings: What counts in place of what `config.json` says.
        generate: Whether to go on from a short prompt, with the folder's own tokenizer.
        by_blocks: Whether to hold one block at a time; for what is larger than memory.
    """

    windows: Sequence[Sequence[int]] = ()
    settings: Mapping[str, Any] = field(default_factory=dict)
    generate: bool = False
    by_blocks: bool = False


@dataclass(frozen=True, kw_only=True)
class StockRun:
    """What came of it.

    Attributes:
        stored_bpw: As `mlx_lm` counts it.
        computed: Logits of each window in float32, (seq, vocab); block by block in the dtype that
            dynquant computes in here.
        own: The same in the model's own dtype; None where this machine cannot compute in it.
        prompt: Token ids of the prompt.
        generated: Token ids that came after it.
        text: The prompt and what came after it.
    """

    stored_bpw: float
    computed: list[np.ndarray]
    own: list[np.ndarray] | None
    prompt: list[int]
    generated: list[int]
    text: str


def run_stock(folder: Path, request: StockRequest) -> StockRun:
    """Run stock mlx-lm on `folder`.

    Raises:
        StockFailedError: It does not load or run.
        StorageFullError: The folder for temporary files is full.
    """
    command = [sys.executable, "-m", "dynquant.quant.mlx.stock_run", str(folder.absolute())]
    # The answer comes through a file without a name, which nothing else can put in its place.
    with (
        disk_errors_translated(),
        tempfile.TemporaryFile() as answer,
        tempfile.TemporaryDirectory(prefix="dynquant-stock-") as home,
    ):
        # MLX loads from there what it has compiled; a process that is not confined shares it with
        # no other.
        scratch = tempfile.gettempdir() if is_confined() else home
        try:
            child = subprocess.run(
                confined(command, writable=[Path(home)], readable=_places(folder)),
                env=clean_environment(Path(home), {"HF_HUB_OFFLINE": "1", "TMPDIR": scratch}),
                cwd=home,
                input=json.dumps(asdict(request)).encode(),
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
        return _read(answer, len(request.windows))


def _places(folder: Path) -> list[Path]:
    """The folder, and where links in it lead: a snapshot in the cache of the Hub has those."""
    return [folder, *{path.resolve().parent for path in folder.iterdir() if path.is_symlink()}]


def _read(answer: IO[bytes], num_windows: int) -> StockRun:
    if os.fstat(answer.fileno()).st_size > _MAX_ANSWER_BYTES:
        raise StockFailedError("its answer is too long")
    answer.seek(0)
    try:
        with np.load(answer, allow_pickle=False) as arrays:
            facts = json.loads(bytes(arrays["facts"]))
            runs = {
                name: [arrays[f"{name}-{index}"] for index in range(num_windows)]
                for name in ("computed", "own")
                if facts[f"has_{name}"]
            }
        return StockRun(
            stored_bpw=float(facts["stored_bpw"]),
            computed=runs.get("computed", []),
            own=runs.get("own"),
            prompt=[int(token) for token in facts["prompt"]],
            generated=[int(token) for token in facts["generated"]],
            text=str(facts["text"]),
        )
    except (ValueError, KeyError, TypeError, zipfile.BadZipFile) as error:
        raise StockFailedError("its answer cannot be read") from error


def _main(folder: Path) -> None:
    output = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # what libraries print does not belong into the answer
    request = StockRequest(**json.load(sys.stdin))

    from mlx_lm.utils import compute_bits_per_weight, load_model, load_tokenizer  # noqa: PLC0415

    import dynquant.quant.mlx  # noqa: F401, PLC0415  OpenBLAS before MLX

    def load() -> Any:
        return load_model(folder, lazy=True, strict=True, model_config=dict(request.settings))

    model, config = load()
    facts: dict[str, Any] = {"stored_bpw": compute_bits_per_weight(model)}
    facts |= {"prompt": [], "generated": [], "text": ""}
    arrays: dict[str, np.ndarray] = {}
    runs_own = not request.by_blocks and _can_compute_in_own_dtype(model)
    if not runs_own and not request.by_blocks:
        _compute_wider(model)
    if request.generate:
        tokenizer = load_tokenizer(folder, eos_token_ids=config.get("eos_token_id"))
        facts |= _generated(model, tokenizer)
    if runs_own:
        arrays |= _logits("own", model, request.windows)
        _compute_wider(model)
    if request.by_blocks:
        arrays |= _logits_by_blocks("computed", lambda: load()[0], request.windows)
    else:
        arrays |= _logits("computed", model, request.windows)
    facts |= {"has_own": runs_own, "has_computed": True}
    arrays["facts"] = np.frombuffer(json.dumps(facts).encode(), dtype=np.uint8)
    np.savez(output, **arrays)  # type: ignore[arg-type]  # its stub takes `allow_pickle` for one
    output.flush()


def _can_compute_in_own_dtype(model: Any) -> bool:
    """Whether this machine can: on a CPU MLX multiplies unquantized experts in float32 only."""
    import mlx.core as mx  # noqa: PLC0415
    from mlx_lm.models.switch_layers import SwitchLinear  # noqa: PLC0415

    on_cpu = mx.default_device() == mx.Device(mx.cpu)
    return not on_cpu or not any(isinstance(m, SwitchLinear) for _, m in model.named_modules())


def _compute_wider(model: Any) -> None:
    """Have `model` compute in float32."""
    import mlx.core as mx  # noqa: PLC0415

    model.set_dtype(mx.float32)


def _generated(model: Any, tokenizer: Any) -> dict[str, Any]:
    from mlx_lm import stream_generate  # noqa: PLC0415

    prompt = list(map(int, tokenizer.encode(_PROMPT)))
    steps = list(stream_generate(model, tokenizer, prompt, max_tokens=_NUM_GENERATED))
    return {
        "prompt": prompt,
        "generated": [int(step.token) for step in steps],
        "text": _PROMPT + "".join(step.text for step in steps),
    }


def _logits(name: str, model: Any, windows: Sequence[Sequence[int]]) -> dict[str, np.ndarray]:
    import mlx.core as mx  # noqa: PLC0415

    return {
        f"{name}-{index}": np.asarray(model(mx.array([list(ids)]))[0].astype(mx.float32))
        for index, ids in enumerate(windows)
    }


def _logits_by_blocks(
    name: str, load: Callable[[], Any], windows: Sequence[Sequence[int]]
) -> dict[str, np.ndarray]:
    from mlx.utils import tree_flatten  # noqa: PLC0415

    from dynquant.quant.mlx.comparing import streamed_logits  # noqa: PLC0415
    from dynquant.quant.mlx.parameters import clear_parameters  # noqa: PLC0415
    from dynquant.quant.mlx.streaming import BlockModel  # noqa: PLC0415

    model = load()
    weights = dict(tree_flatten(model.parameters()))
    clear_parameters(model)
    blocks = BlockModel(model)
    if not blocks.survey(weights):
        blocks = blocks.treat_as_whole()
    # Loaded anew for each pass: an array that was read stays in memory.
    found = streamed_logits(blocks, lambda: dict(tree_flatten(load().parameters())), windows)
    return {f"{name}-{index}": each for index, each in enumerate(found)}


if __name__ == "__main__":
    _main(Path(sys.argv[1]))
