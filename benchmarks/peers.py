"""The quantizers in the table: installation, settings for a size, and command of each."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import product
from pathlib import Path

import mlx.core as mx
import psutil

from benchmarks.stored_bits import num_weights
from dynquant.quant.mlx import FAST_BLAS

__all__ = ["REQUIREMENTS", "Attempt", "Outcome", "attempts", "ours", "run"]

HERE = Path(__file__).parent
MLX = ("mlx[cpu]==0.32.4" if sys.platform == "linux" else "mlx==0.32.4",)
TORCH = "torch==2.13.0"
REQUIREMENTS = {
    "mlx-lm": (*MLX, "mlx-lm==0.32.2"),
    "auto-round": (TORCH, "auto-round==0.16.1"),
    "gguf": (
        *MLX,
        "mlx-lm==0.32.2",
        "gguf==0.19.0",
        "libggml-python==0.20.2.post1",
        "cyllama==0.2.18",
    ),
    "mlx-optiq": (TORCH, *MLX, "mlx-optiq==0.7.7"),
}
BITS, GROUP_SIZES = (2, 3, 4, 5, 6, 8), (32, 64, 128)
GPTQ_BITS = (2, 4, 8)  # mlx_lm.gptq packs no others
EQUAL_BPW = 0.02
DWQ_FORMATS, DWQ_RATES = ((3, 64), (4, 64)), (1e-6, 1e-5, 3e-5)
GGUF_PRESETS = (
    *("Q2_K", "Q3_K_S", "Q3_K_M", "Q3_K_L", "IQ3_S", "Q4_0"),
    *("IQ4_XS", "Q4_K_S", "Q4_K_M", "Q5_K_S", "Q5_K_M", "Q6_K"),
)
# Settings of mlx_lm.dynamic_quant: two widths to choose from, and a size. Where one layer has a
# quarter of the weights it can miss the size by far, so it gets more attempts around 3.0.
DYNAMIC = {
    3.0: ((2, 4, 3.0), (2, 4, 3.2), (2, 3, 3.0), (2, 5, 3.0)),
    3.5: ((2, 4, 3.5),),
    4.0: ((3, 4, 4.0),),
    4.5: ((3, 5, 4.5),),
    5.0: ((4, 5, 5.0),),
    6.0: ((5, 6, 6.0),),
}


_VENVS = threading.Lock()


@dataclass(frozen=True, kw_only=True)
class Attempt:
    """One run of one quantizer.

    Attributes:
        method: Its row's name.
        setting: Its options, in its own terms.
        target_bpw: The size nearest to the setting's; None for a size of its own.
        venv: A key of `REQUIREMENTS`; empty for the environment of dynquant.
        command: Program in the environment's `bin` and arguments; `{out}` is the new folder.
        sizes: Stored bits per weight of its results, where one run makes several.
        goes_on: Whether it starts from another run's result.
        why_not: The reason if it cannot be run.
    """

    method: str
    setting: str
    target_bpw: float | None
    venv: str = "mlx-lm"
    command: tuple[str, ...] = ()
    sizes: tuple[float, ...] = ()
    goes_on: bool = False
    why_not: str = ""

    @property
    def name(self) -> str:
        """Of its run."""
        sizes = "".join(f" {size:g}" for size in self.sizes)
        return f"{self.method} {self.setting}{sizes}".replace("/", "-")

    @property
    def slug(self) -> str:
        """Of its folder."""
        return re.sub(r"[^\w.]+", "-", self.name)


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """Time and memory of a run; `why_not` is the reason if there is no result."""

    wall_secs: float = 0.0
    cpu_secs: float = 0.0
    peak_bytes: int = 0
    why_not: str = ""


@dataclass(frozen=True)
class _Inputs:
    """Inputs of all attempts on one model."""

    model: Path
    tokens: Path
    documents: Path
    fitting: Path
    embedded: float = field(init=False)

    def __post_init__(self) -> None:
        share = num_weights(self.model, containing="embed") / num_weights(self.model)
        object.__setattr__(self, "embedded", share)


def attempts(
    model: Path,
    *,
    tokens: Path,
    documents: Path,
    fitting: Path,
    targets: Sequence[float],
    full: bool,
) -> list[Attempt]:
    """Every peer at every size near which it can store.

    Args:
        model: The original.
        tokens: Calibration windows (windows, seq), as .npy.
        documents: The same windows as text, one JSON object a line.
        fitting: These windows and those behind them that dynquant's effort `max` fits weights on.
        targets: Stored bits per weight.
        full: With the slow peers, and those that require PyTorch.
    """
    inputs = _Inputs(model, tokens, documents, fitting)
    found = [*_uniform(inputs, targets), *_mixed(inputs), *_dynamic(inputs, targets, full=full)]
    found += _with_embedding(inputs, "gptq", targets, GPTQ_BITS)
    if full:
        found += _with_embedding(inputs, "awq", targets[::2], BITS)
        found += [*_dwq(inputs, targets), *_gguf(inputs, targets)]
        found += [*_auto_round(inputs), _optiq(inputs)]
    return found


def ours(
    model: Path, *, calibration: str, evaluation: str, targets: Sequence[float], effort: str
) -> Attempt:
    """All sizes of dynquant in one run, by its usual command."""
    program = (sys.executable, "-m", "dynquant", "quantize")
    options: tuple[str, ...] = ("--effort", effort)
    offered = subprocess.run([*program, "--help"], capture_output=True, text=True, check=True)
    why_not = ""
    if "--effort" not in offered.stdout:
        options, why_not = (), "" if effort == "normal" else "this version knows no --effort"
    sizes = ",".join(f"{target:g}" for target in targets)
    texts = ("--calibration", calibration, "--eval", evaluation, "--eval-tokens", "512")
    return Attempt(
        method="dynquant",
        setting=effort,
        target_bpw=None,
        venv="",
        sizes=tuple(targets),
        command=(
            *program,
            str(model),
            "--bpw",
            sizes,
            "--out",
            "{out}",
            *texts,
            *options,
        ),
        why_not=why_not,
    )


def run(attempt: Attempt, out: Path, *, venvs: Path, limit_secs: float) -> Outcome:
    """Make `out`; time and memory, or the reason of a failure."""
    if attempt.why_not:
        return Outcome(why_not=attempt.why_not)
    try:
        with _VENVS:  # of several runs at once the first makes it
            bin_folder = _venv(attempt.venv, venvs) if attempt.venv else Path()
    except subprocess.CalledProcessError as error:
        return Outcome(why_not=f"it could not be installed: {_last_line(error.stderr)}")
    command = [part.replace("{out}", str(out)) for part in attempt.command]
    command[0] = str(bin_folder / command[0])
    environment = dict(os.environ) | {"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
    environment.pop("MLX_ENABLE_TF32", None)  # peers run with their own defaults
    if FAST_BLAS is not None:  # the wheel of MLX brings the reference BLAS, see dynquant
        environment["LD_PRELOAD"] = FAST_BLAS
    log = out.with_name(f"{out.name}.log")
    started = time.perf_counter()
    with log.open("w") as output:
        child = subprocess.Popen(
            command, stdout=output, stderr=subprocess.STDOUT, env=environment, cwd=out.parent
        )
        peak_bytes, cpu_secs, late = _watch(child, limit_secs)
    wall_secs = time.perf_counter() - started
    why_not = ""
    if late:
        why_not = f"stopped after {limit_secs:.0f} s: {_last_line(log.read_text())}"
    elif child.returncode or not any(out.rglob("*.safetensors")):
        why_not = _last_line(log.read_text()) or f"exit code {child.returncode}"
    return Outcome(wall_secs=wall_secs, cpu_secs=cpu_secs, peak_bytes=peak_bytes, why_not=why_not)


def _watch(child: subprocess.Popen[bytes], limit_secs: float) -> tuple[int, float, bool]:
    """Peak resident bytes and CPU seconds of `child` and its children; whether it was stopped."""
    process, peak, late = psutil.Process(child.pid), 0, False
    deadline = time.monotonic() + limit_secs
    while (ended := os.wait4(child.pid, os.WNOHANG))[0] == 0:
        with suppress(psutil.Error):  # one of them has just ended
            family = [process, *process.children(recursive=True)]
            peak = max(peak, sum(member.memory_info().rss for member in family))
            if late := time.monotonic() > deadline:
                for member in family:
                    member.kill()
        time.sleep(0.05)
    child.returncode = os.waitstatus_to_exitcode(ended[1])
    return peak, ended[2].ru_utime + ended[2].ru_stime, late


def _venv(name: str, venvs: Path) -> Path:
    """Folder of programs of the virtual environment `name`, which is made if it is missing."""
    folder, wanted = venvs / name, "\n".join(REQUIREMENTS[name])
    stamp = folder / "requirements.txt"
    if not stamp.exists() or stamp.read_text() != wanted:
        subprocess.run([sys.executable, "-m", "venv", "--clear", folder], check=True)
        for requirement in REQUIREMENTS[name]:  # torch first: else pip takes a CUDA build
            subprocess.run(
                [folder / "bin" / "pip", "install", "--quiet", requirement],
                check=True,
                capture_output=True,
                text=True,
            )
        stamp.write_text(wanted)
    return folder / "bin"


def _uniform(inputs: _Inputs, targets: Sequence[float]) -> Iterator[Attempt]:
    grid = {(bits, size): bits + 32 / size for bits, size in product(BITS, GROUP_SIZES)}
    for target in targets:
        bits, size = min(grid, key=lambda key: (abs(grid[key] - target), -key[1]))
        yield Attempt(
            method="mlx_lm.convert",
            setting=f"{bits} bits, group {size}",
            target_bpw=target,
            command=_convert(inputs, "--q-bits", str(bits), "--q-group-size", str(size)),
        )


def _mixed(inputs: _Inputs) -> Iterator[Attempt]:
    for recipe in ("mixed_2_6", "mixed_3_4", "mixed_3_6", "mixed_4_6"):
        yield Attempt(
            method="mlx_lm.convert",
            setting=recipe,
            target_bpw=None,
            command=_convert(inputs, "--quant-predicate", recipe, "--q-group-size", "64"),
        )


def _convert(inputs: _Inputs, *options: str) -> tuple[str, ...]:
    folders = ("--hf-path", str(inputs.model), "--mlx-path", "{out}")
    return ("mlx_lm.convert", *folders, "--quantize", *options)


def _dynamic(inputs: _Inputs, targets: Sequence[float], *, full: bool = False) -> Iterator[Attempt]:
    for target in targets:
        for low, high, asked in DYNAMIC[target] if full else DYNAMIC[target][:1]:
            widths = ("--low-bits", str(low), "--high-bits", str(high))
            yield Attempt(
                method="mlx_lm.dynamic_quant",
                setting=f"{low}/{high} bits, {asked:g}",
                target_bpw=target,
                command=_tool(inputs, "dynamic_quant", *widths, "--target-bpw", f"{asked:g}"),
            )


def _with_embedding(
    inputs: _Inputs, name: str, targets: Sequence[float], widths: Sequence[int]
) -> Iterator[Attempt]:
    """Tools with one format for the blocks and one for the embedding."""
    word = {"gptq": "fallback", "awq": "embed"}[name]
    for target in targets:

        def misfit(key: tuple[int, int, int, int], target: float = target) -> tuple[float, float]:
            """The distance to the size, then the distance between the two formats."""
            bits, size, embed_bits, embed_size = key
            inner, outer = bits + 32 / size, embed_bits + 32 / embed_size
            bpw = (1 - inputs.embedded) * inner + inputs.embedded * outer
            return max(abs(bpw - target), EQUAL_BPW / 2), abs(inner - outer)

        grid = product(widths, GROUP_SIZES, BITS, GROUP_SIZES)
        bits, size, embed_bits, embed_size = min(grid, key=misfit)
        formats = ("--bits", bits, "--group-size", size)
        others = (f"--{word}-bits", embed_bits, f"--{word}-group-size", embed_size)
        yield Attempt(
            method=f"mlx_lm.{name}",
            setting=f"{bits} bits, group {size}, embedding {embed_bits}, {embed_size}",
            target_bpw=target,
            command=_tool(inputs, name, *map(str, (*formats, *others))),
        )


def _dwq(inputs: _Inputs, targets: Sequence[float]) -> Iterator[Attempt]:
    """From uniform formats, and on top of `mlx_lm.dynamic_quant`; each at several rates."""
    starts: list[tuple[str, float | None, tuple[str | int, ...]]] = [
        (f"{bits} bits, group {size}", bits + 32 / size, ("--bits", bits, "--group-size", size))
        for bits, size in DWQ_FORMATS
    ]
    for dynamic in _dynamic(inputs, [target for target in (3.0, 3.5) if target in targets]):
        name = f"{dynamic.method} {dynamic.setting}"
        starts.append((name, dynamic.target_bpw, ("--quantized-model", dynamic.slug)))
    for (name, size, options), rate in product(starts, DWQ_RATES):
        yield Attempt(
            method="mlx_lm.dwq",
            setting=f"{name}, rate {rate:g}",
            target_bpw=size,
            goes_on="--quantized-model" in options,
            command=_tool(
                inputs,
                "dwq",
                *map(str, (*options, "--learning-rate", f"{rate:g}")),
                tokens=inputs.fitting,
            ),
        )


def _tool(inputs: _Inputs, name: str, *options: str, tokens: Path | None = None) -> tuple[str, ...]:
    script = str(HERE / "mlx_lm_peer.py")
    folders = ("--model", str(inputs.model), "--mlx-path", "{out}")
    return ("python", script, name, str(tokens or inputs.tokens), *folders, *options)


def _gguf(inputs: _Inputs, targets: Sequence[float]) -> Iterator[Attempt]:
    """llama.cpp's presets, and mixtures where blocks of 256 weights divide the model's width."""
    config = json.loads((inputs.model / "config.json").read_text())
    why_not = "its tensors of experts are not tried" if config.get("num_experts") else ""
    command = ("python", str(HERE / "gguf_peer.py"), str(inputs.model), str(inputs.tokens), "{out}")
    for preset in GGUF_PRESETS:
        yield Attempt(
            method="GGUF",
            setting=preset,
            target_bpw=None,
            venv="gguf",
            command=(*command, "--preset", preset),
            why_not=why_not,
        )
    if config["hidden_size"] % 256 == 0 and not why_not:
        yield Attempt(
            method="GGUF",
            setting="mixture",
            target_bpw=None,
            venv="gguf",
            sizes=tuple(targets),
            command=(*command, "--bpw", ",".join(f"{target:g}" for target in targets)),
        )


def _auto_round(inputs: _Inputs) -> Iterator[Attempt]:
    """It keeps the embedding at 16 bits, so it can make few sizes."""
    device = "0" if mx.cuda.is_available() and mx.default_device() != mx.cpu else "cpu"
    shape: Mapping[str, int] = json.loads(inputs.documents.with_suffix(".json").read_text())
    for bits in (2, 4):
        yield Attempt(
            method="auto-round",
            setting=f"{bits} bits, group 64, mlx",
            target_bpw=None,
            venv="auto-round",
            command=(
                *("auto-round", "--model", str(inputs.model), "--format", "mlx", "--asym"),
                *("--bits", str(bits), "--group_size", "64", "--output_dir", "{out}"),
                *("--dataset", str(inputs.documents), "--nsamples", str(shape["windows"])),
                *("--seqlen", str(shape["tokens"]), "--device_map", device),
            ),
        )


def _optiq(inputs: _Inputs) -> Attempt:
    options = ("--target-bpw", "4.0", "--candidate-bits", "2,3,4,5,6,8", "--skip-baselines")
    return Attempt(
        method="mlx-optiq",
        setting="4.0",
        target_bpw=4.0,
        venv="mlx-optiq",
        command=("optiq", "convert", str(inputs.model), *options, "--output", "{out}"),
    )


def _last_line(output: str) -> str:
    """The last line of a program's output."""
    lines = [line.strip() for line in output.replace("\r", "\n").splitlines() if line.strip()]
    return lines[-1][:200] if lines else ""
