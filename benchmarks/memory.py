"""Peak memory against depth: it should grow with a block and the activations, not the model.

    python benchmarks/memory.py [--depths 4,8,16,32]

Random Qwen3 models of one width and growing depth are quantized in fresh processes, by dynquant
(measure, encode, evaluate) and, for comparison, loaded whole as `mlx_lm.convert` does. Columns are
the size of the weights and MLX's peak memory in each step, in MB.
"""

from __future__ import annotations

import dynquant.mlx_backend  # noqa: F401  OpenBLAS before MLX

# isort: split

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path

import mlx.core as mx
import numpy as np
from mlx.utils import tree_map
from mlx_lm.utils import _get_classes, load_model, save_config, save_model
from rich.table import Table

from dynquant.console import stdout
from dynquant.core.allocate import allocate
from dynquant.core.formats import QuantFormat
from dynquant.core.plan import TextFacts
from dynquant.mlx_backend.calibration import Windows
from dynquant.mlx_backend.quantizer import MlxQuantizer

MENU = tuple(QuantFormat(bits, 64) for bits in (3, 4, 6))
NUM_WINDOWS, WINDOW_TOKENS = 12, 128


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--depths", default="4,8,16,32")
    parser.add_argument("--child", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        sys.stdout.write(json.dumps(peaks(options.child)) + "\n")
        return
    table = Table("blocks", "weights", "measure", "encode", "evaluate", "loaded whole")
    for depth in map(int, options.depths.split(",")):
        with tempfile.TemporaryDirectory() as scratch:
            weight_bytes = make_model(Path(scratch), depth)
            child = subprocess.run(
                [sys.executable, __file__, "--child", scratch],
                capture_output=True,
                text=True,
                check=True,
            )
        found = json.loads(child.stdout.splitlines()[-1])
        table.add_row(str(depth), *(f"{value / 1e6:.0f}" for value in (weight_bytes, *found)))
    stdout.print(table)


def make_model(folder: Path, depth: int) -> int:
    """A random Qwen3 of `depth` blocks in bfloat16; bytes of its weights."""
    config = {
        "model_type": "qwen3",
        "hidden_size": 512,
        "num_hidden_layers": depth,
        "intermediate_size": 1536,
        "num_attention_heads": 8,
        "num_key_value_heads": 4,
        "head_dim": 64,
        "rms_norm_eps": 1e-6,
        "vocab_size": 2048,
        "max_position_embeddings": 512,
        "rope_theta": 10000.0,
        "tie_word_embeddings": True,
    }
    mx.random.seed(0)
    model_class, args_class = _get_classes(config)
    model = model_class(args_class.from_dict(config))
    model.update(tree_map(lambda p: p.astype(mx.bfloat16), model.parameters()))
    save_model(folder, model)
    save_config(config, folder / "config.json")
    return sum(file.stat().st_size for file in folder.glob("*.safetensors"))


def peaks(folder: Path) -> list[int]:
    """MLX's peak memory while measuring, encoding, evaluating, and with the model loaded whole."""
    tokens = np.random.default_rng(0).integers(0, 2048, (NUM_WINDOWS, WINDOW_TOKENS))
    windows = Windows(
        tokens=tokens.astype(np.int32),
        shingles=np.zeros(0, dtype=np.uint64),
        facts=TextFacts(
            name="random", sha256="", num_tokens=tokens.size, window_tokens=WINDOW_TOKENS
        ),
    )
    found, quantizer = [], MlxQuantizer(folder, name="random")

    def peak() -> None:
        found.append(mx.get_peak_memory())
        mx.clear_cache()
        mx.reset_peak_memory()

    def ignore(_step: str, _amount: int = 1) -> None:
        pass

    table = quantizer.measure(windows, menu=MENU, encoder="gptq", seed=0, on_step=ignore)
    peak()
    plan = allocate(table.inventory, target_bpw=4.5)
    with tempfile.TemporaryDirectory() as out:
        target = Path(out)
        quantizer.encode(
            {target: plan}, windows, encoder="gptq", importance=table.importance, on_step=ignore
        )
        peak()
        quantizer.evaluate({"ours": target}, {}, windows, on_step=ignore)
        peak()
    model, _ = load_model(folder)
    mx.eval(model(mx.array(windows.tokens[:1])))
    peak()
    return found


if __name__ == "__main__":
    main()
