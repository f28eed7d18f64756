"""Changes that an attacker may make to the files of a model."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import mlx.core as mx

from tests.families import save_tokenizer
from tests.quant.mlx.factories import VOCAB, save_model, write_safetensors

__all__ = [
    "CHATS",
    "INDEX",
    "STORIES",
    "WEIGHTS",
    "deep",
    "edit_header",
    "edit_json",
    "edit_weights",
    "link",
    "make_sound",
    "raw_header",
    "shards",
    "sparse",
    "template",
    "write",
]

WEIGHTS = "model.safetensors"
INDEX = "model.safetensors.index.json"
CHATS = [
    [
        {"role": "user", "content": f"What is {n} and {n} together, one apple or even more?"},
        {"role": "assistant", "content": f"Together they are {2 * n}; here are the reasons."},
    ]
    for n in range(60)
]
STORIES = [f"Once upon a time there lived {n} bears in the green forest." for n in range(60)]
Change = Callable[[dict[str, Any]], object]


def make_sound(folder: Path) -> None:
    """A valid model of one block."""
    save_model(folder, num_hidden_layers=1, max_position_embeddings=32)
    save_tokenizer(folder, VOCAB)
    (folder / "README.md").write_text("---\nlicense: mit\n---\n# Sound\n")
    (folder / INDEX).unlink(missing_ok=True)


def write(folder: Path, name: str, content: str | bytes) -> None:
    """A file with this content."""
    raw = content.encode("utf-8", "surrogatepass") if isinstance(content, str) else content
    (folder / name).write_bytes(raw)


def edit_json(folder: Path, name: str, **changes: Any) -> None:
    """Change keys of a JSON file."""
    path = folder / name
    found = json.loads(path.read_text()) if path.exists() else {}
    path.write_text(json.dumps(found | changes))


def edit_header(folder: Path, change: Change) -> None:
    """Change the header of the weights and leave the data."""
    raw = (folder / WEIGHTS).read_bytes()
    length = int.from_bytes(raw[:8], "little")
    header = json.loads(raw[8 : 8 + length])
    header.pop("__metadata__", None)
    change(header)
    write_safetensors(folder / WEIGHTS, header, raw[8 + length :])


def raw_header(folder: Path, header: bytes, data: bytes = b"") -> None:
    """Weights with just this header."""
    write(folder, WEIGHTS, len(header).to_bytes(8, "little") + header + data)


def edit_weights(folder: Path, change: Callable[[dict[str, mx.array]], object]) -> None:
    """Change arrays."""
    loaded = mx.load(str(folder / WEIGHTS))
    assert isinstance(loaded, dict)
    weights = dict(loaded)
    change(weights)
    mx.eval(list(weights.values()))
    mx.save_safetensors(str(folder / WEIGHTS), weights, metadata={"format": "mlx"})


def shards(folder: Path, names: Iterable[Iterable[str]]) -> None:
    """Put the arrays of these names into one shard each."""
    loaded = mx.load(str(folder / WEIGHTS))
    assert isinstance(loaded, dict)
    weights = {name: array + 0 for name, array in loaded.items()}
    mx.eval(list(weights.values()))
    (folder / WEIGHTS).unlink()
    parts = [list(each) for each in names]
    for number, part in enumerate(parts, 1):
        file = folder / f"model-{number:05d}-of-{len(parts):05d}.safetensors"
        mx.save_safetensors(str(file), {name: weights[name] for name in part})


def link(folder: Path, name: str, target: str) -> None:
    """A symbolic link in place of a file."""
    (folder / name).unlink(missing_ok=True)
    (folder / name).symlink_to(target)


def fifo(folder: Path, name: str) -> None:
    """A pipe in place of a file: a process that opens it waits for ever."""
    (folder / name).unlink(missing_ok=True)
    os.mkfifo(folder / name)


def sparse(folder: Path, name: str, num_bytes: int) -> None:
    """A sparse file of this size."""
    with (folder / name).open("wb") as stream:
        stream.write(b"{")
        stream.truncate(num_bytes)


def deep(levels: int) -> str:
    """JSON of lists within lists."""
    return "[" * levels + "]" * levels


def template(folder: Path, text: str) -> None:
    """A chat template."""
    write(folder, "chat_template.jinja", text)


def edit_tokenizer(folder: Path, **changes: Any) -> None:
    """Change parts of tokenizer.json."""
    edit_json(folder, "tokenizer.json", **changes)


def split_by(pattern: str) -> Mapping[str, Any]:
    """A pre-tokenizer that splits by a regular expression."""
    return {
        "type": "Split",
        "pattern": {"Regex": pattern},
        "behavior": "Isolated",
        "invert": False,
    }
